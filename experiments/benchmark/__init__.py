"""Measurements of `scripts/benchmark.py`: this package and straightforward code, as ratios within one run."""
