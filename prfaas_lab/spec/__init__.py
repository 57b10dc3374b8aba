"""Files -> frozen values. `load_scenario` and `load_topology` report every mistake at once."""

from prfaas_lab.spec.dump import dump, schema
from prfaas_lab.spec.load import kind_of, load_scenario, load_topology

__all__ = ["dump", "kind_of", "load_scenario", "load_topology", "schema"]
