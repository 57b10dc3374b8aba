"""`python -m prfaas_lab` is `prfaas-lab`."""

from prfaas_lab.cli import main

main()
