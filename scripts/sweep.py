"""Compare contrastive modes over seeds: python scripts/sweep.py --help"""

if __name__ == "__main__":
    from _door import run

    run("experiments.sweep_command")
