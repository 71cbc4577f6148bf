"""Inference from differences that are paired by seed: sign-flip test, Student's t interval, Holm's adjustment."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache

import numpy as np

MAX_PAIRS = 24  # the exact test goes through 2^(n - 1) sums
_ROUNDING = 1e-9  # sums that differ by less than this share of the largest are equal


def sign_flip_p(differences: Sequence[float]) -> float:
    """Compute the exact two-sided p-value of the hypothesis that the differences are symmetric about zero.

    It is the share of all 2^n ways to flip signs for which the mean is at least as far from zero as observed, so that
    the smallest possible value is 2 / 2^n.

    Args:
        differences (`Sequence[float]`): One difference per seed, at most 24.

    Source: Fisher, The Design of Experiments (1935), section 21.
    """
    if not 1 <= len(differences) <= MAX_PAIRS:
        raise ValueError(f"The exact test needs 1 to {MAX_PAIRS} differences, got {len(differences)}.")
    first, *others = map(abs, differences)
    sums = np.array([first])  # a sum and its mirror image are equally far from zero, so one sign can stay fixed
    for size in others:
        sums = np.concatenate([sums + size, sums - size])
    tolerance = _ROUNDING * sum(map(abs, differences))
    return float(np.mean(np.abs(sums) >= abs(sum(differences)) - tolerance))


def t_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Compute the interval of Student's t for the mean of at least two differences."""
    count = len(differences)
    half = _t_quantile(0.5 + level / 2, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    mean = statistics.fmean(differences)
    return mean - half, mean + half


@cache
def _t_quantile(share: float, freedom: int) -> float:
    from scipy.stats import t  # in the optional dependencies `figures`

    return float(t.ppf(share, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of one family of tests, in the order given.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
