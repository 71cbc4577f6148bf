"""Measure time and memory, as ratios within one run: python scripts/benchmark.py --help"""

if __name__ == "__main__":
    from _door import run

    run("experiments.benchmark.command")
