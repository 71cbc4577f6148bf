"""Benchmarks of `scripts/benchmark.py`: this package compared with straightforward code, as ratios within one run."""
