"""Sweeps, the table of finished runs, benchmarks: tools of this repository, which no wheel holds."""
