"""Train a control arm of an experiment: python scripts/control.py placebo --config configs/quickstart.yaml"""

if __name__ == "__main__":
    from _door import run

    run("experiments.evidence.controls")
