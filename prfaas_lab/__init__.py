"""prfaas-lab: an emulation testbed for Prefill-as-a-Service (arXiv 2604.15039)."""

__version__ = "0.1.0"
