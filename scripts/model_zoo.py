"""Print a table of finished runs: python scripts/model_zoo.py --help"""

if __name__ == "__main__":
    from _door import run

    run("experiments.model_zoo")
