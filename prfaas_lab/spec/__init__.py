"""Files -> frozen values. `load_scenario` and `load_topology` report every mistake at once."""
