"""Tools of this repository that are not in the wheel: sweeps, experiments, tables, benchmarks, examples/."""
