"""Tools of this repository that are not in the wheel: sweeps, the table of finished runs, benchmarks, the example."""
