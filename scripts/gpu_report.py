"""Print the section of docs/benchmarks.md about GPUs: python scripts/gpu_report.py"""

if __name__ == "__main__":
    from _door import run

    run("experiments.benchmark.gpu_report")
