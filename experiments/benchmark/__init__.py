"""What `scripts/benchmark.py` measures: our paths beside straightforward ones, as ratios within one run."""
