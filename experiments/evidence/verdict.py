"""Verdict on an experiment: what its runs show by the rules, once all of them are there.

A primary comparison is shown if the exact two-sided sign-flip test has p <= 0.05 and the 95 % t interval is above 0; a
secondary one if its p, adjusted by Holm within the experiment, is at most 0.05 and its mean above 0. An arm is worse
if the same holds with the other sign. Intervals of secondary comparisons are not adjusted. Differences are in points,
100 times a difference of mean IoUs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from .paired_tests import holm, sign_flip_p, t_interval
from .plan import Comparison, Experiment

LEVEL = 0.05
MIN_PAIRS = 6  # with fewer, the smallest possible p is above 0.05
_SHARED = ("machine", "code")  # what the runs of a seed must have in common to be paired

Records = Mapping[tuple[str, int, str], Mapping[str, Any]]  # (arm, seed, fold) -> record of a run


def missing_runs(experiment: Experiment, records: Records) -> list[str]:
    """Describe all runs that are missing, and all seeds whose runs are from different machines or code."""
    wanted = experiment.runs()
    absent = [_name(*run) for run in wanted if run not in records]
    return [
        *absent,
        *(f"seed {seed}, whose runs are from different machines or code" for seed in mixed_seeds(records)),
    ]


def mixed_seeds(records: Records) -> list[int]:
    """List the seeds whose runs must not be paired, because they are from different machines or code."""
    shared: dict[int, list[list[Any]]] = {}
    for (_, seed, _), record in records.items():
        mine = [record[name] for name in _SHARED]
        if mine not in shared.setdefault(seed, []):
            shared[seed].append(mine)
    return sorted(seed for seed, kinds in shared.items() if len(kinds) > 1)


def judge(experiment: Experiment, records: Records, *, exploratory: bool = False) -> dict[str, Any] | None:
    """Judge a confirmation, or choose the arms of a selection; `None` while a run is missing.

    Args:
        experiment (`Experiment`): The file that was fixed before the first run.
        records (`Mapping`): Records of its runs, with `mean_iou` in 0..1, by (arm, seed, fold).
        exploratory (`bool`): Whether someone looked at results before all runs were finished: nothing is shown then.
    """
    if missing_runs(experiment, records):
        return None
    if experiment.purpose == "selection":
        return {"experiment": experiment.name, "purpose": "selection", **_select(experiment, records)}
    return {
        "experiment": experiment.name,
        "purpose": "confirmation",
        "exploratory": exploratory,
        **compare(experiment, scores_by_seed(records), exploratory=exploratory),
    }


def scores_by_seed(records: Records) -> dict[str, dict[int, float]]:
    """Return the mean IoU of every arm and seed in points, which is the mean over folds if there are any."""
    values: dict[str, dict[int, list[float]]] = {}
    for (arm, seed, _), record in records.items():
        values.setdefault(arm, {}).setdefault(seed, []).append(100 * record["mean_iou"])
    return {arm: {seed: statistics.fmean(of) for seed, of in seeds.items()} for arm, seeds in values.items()}


def compare(
    experiment: Experiment, scores: Mapping[str, Mapping[int, float]], *, exploratory: bool = False
) -> dict[str, Any]:
    """Make all comparisons of an experiment with the seeds that both arms have."""
    primary = _describe(experiment.primary, paired(experiment.primary, scores))
    is_primary_clear = not exploratory and _is_significant(primary["p_sign_flip"])
    primary["shown"] = is_primary_clear and primary["low"] > 0
    primary["worse"] = is_primary_clear and primary["high"] < 0
    secondary = [_describe(pair, paired(pair, scores)) for pair in experiment.secondary]
    # comparisons with too few seeds for a p-value are tests too: they count in the family, and can never be shown
    adjusted = holm([1.0 if row["p_sign_flip"] is None else row["p_sign_flip"] for row in secondary])
    for row, p_holm in zip(secondary, adjusted, strict=True):
        row["p_holm"] = None if row["p_sign_flip"] is None else p_holm
        is_clear = not exploratory and _is_significant(row["p_holm"])
        row["shown"] = is_clear and row["mean"] > 0
        row["worse"] = is_clear and row["mean"] < 0
    return {
        "primary": primary,
        "secondary": secondary,
        "calibration": [_spread(pair, paired(pair, scores)) for pair in experiment.calibration],
    }


def paired(comparison: Comparison, scores: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """Return the differences of two arms by seed, for the seeds that both have."""
    arm, baseline = (scores.get(name, {}) for name in comparison)
    return {seed: score - baseline[seed] for seed, score in arm.items() if seed in baseline}


def _describe(comparison: Comparison, differences: Mapping[int, float]) -> dict[str, Any]:
    values = list(differences.values())
    low, high = t_interval(values) if len(values) > 1 else (None, None)
    return {
        **_spread(comparison, differences),
        "low": low,
        "high": high,
        "p_sign_flip": sign_flip_p(values) if len(values) >= MIN_PAIRS else None,
    }


def _spread(comparison: Comparison, differences: Mapping[int, float]) -> dict[str, Any]:
    values = list(differences.values())
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {**comparison._asdict(), "n": len(values), "mean": statistics.fmean(values), "deviation": deviation}


def _is_significant(p_value: float | None) -> bool:
    return p_value is not None and p_value <= LEVEL


def _select(experiment: Experiment, records: Records) -> dict[str, Any]:
    scores = {arm: statistics.fmean(seeds.values()) for arm, seeds in scores_by_seed(records).items()}
    means = {arm: scores[arm] / 100 for arm in experiment.arms}
    if experiment.at_rest is not None:
        chosen = {family: _at_rest(arms, scores, experiment.at_rest) for family, arms in experiment.families.items()}
        rule = (
            f"the first arm from which on none is more than {experiment.at_rest:g} points above the one before it, by "
            "the mean over folds and seeds of mean IoU"
        )
        return {"rule": rule, "mean_iou": means, "chosen": chosen}
    return {
        "rule": "the highest mean over folds and seeds of mean IoU",
        "mean_iou": means,
        "chosen": {family: max(arms, key=scores.__getitem__) for family, arms in experiment.families.items()},
    }


def _at_rest(arms: Sequence[str], scores: Mapping[str, float], points: float) -> str | None:
    """Return the first arm from which on none gains more points over the one before it, `None` if the last one does.

    A single small gain of a noisy curve is no rest.
    """
    first = None
    for before, arm in reversed(list(pairwise(arms))):
        if scores[arm] - scores[before] > points:
            break
        first = arm
    return first


def group_score(per_category: Mapping[str, float | None], names: Iterable[str]) -> float | None:
    """Return the mean score of the classes of a group that are present, or `None`."""
    present = [score for name in names if (score := per_category[name]) is not None]
    return statistics.fmean(present) if present else None


def _name(arm: str, seed: int, fold: str) -> str:
    return ", ".join((arm, *([fold] if fold else []), f"seed {seed}"))


def describe_missing(missing: Sequence[str], total: int) -> str:
    """Write the sentence that replaces a verdict while runs are missing."""
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return f"no verdict: {len(missing)} of {total} runs are missing ({'; '.join(missing[:3])}{more})"
