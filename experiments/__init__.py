"""Tools of this repository that are not in the wheel: sweeps, tables of runs, benchmarks, the network of examples/."""
