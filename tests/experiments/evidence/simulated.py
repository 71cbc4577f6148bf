"""Experiments as files, and records of simulated runs."""

from pathlib import Path

import numpy as np
import yaml

from experiments.evidence.plan import read_experiment

FLAGS = "--config configs/quickstart.yaml --max_steps 4 --mixed_precision no"
CLASSES = ("road", "pole")


def confirmation(folder, **changes):
    """Write the file of a confirmation with two arms, or with `changes`, and read it."""
    content = {
        "purpose": "confirmation", "split": "test", "flags": FLAGS, "seeds": list(range(6)), "minutes": 1,
        "threads": 1, "step_cost": 1.5, "groups": {"rare": ["pole"]}, "primary": ["chosen", "ce_time"],
        "arms": {name: {"run": "ce"} for name in ("chosen", "ce_time")}, **changes,
    }  # fmt: skip
    path = Path(folder) / "simulated.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_experiment(path)


def record(mean_iou, **changes):
    """Build the part of the record of a run that a verdict reads."""
    return {"mean_iou": mean_iou, "machine": {"processor": "a CPU", "threads": 1}, "code": "0123", **changes}


def records(experiment, scores):
    """Build the records of all runs from the scores of every arm, (number of seeds,) in points."""
    return {
        (arm, seed, fold): record(scores[arm][experiment.seeds.index(seed)] / 100)
        for arm, seed, fold in experiment.runs()
    }


def sweeps(experiment, count, draw, correlation=0.5, shift=0.0, seed=0):
    """Yield records of sweeps in which no arm differs from another, but for `shift` points of the first arm.

    The differences of the arms from the second one have mean 0, deviation 1 and this correlation with each other;
    draw(random, shape) gives numbers with mean 0 and deviation 1.
    """
    random = np.random.default_rng(seed)
    names, num_seeds = list(experiment.arms), len(experiment.seeds)
    for _ in range(count):
        shared, own = draw(random, num_seeds), draw(random, (len(names), num_seeds))
        differences = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
        differences[0] += shift
        differences[1] = 0
        scores = 60 + random.standard_normal(num_seeds) + differences
        yield records(experiment, dict(zip(names, scores, strict=True)))
