"""Exact tests and intervals equal those of SciPy and of plain enumeration."""

import itertools

import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_1samp

from experiments.evidence.paired_tests import holm, sign_flip_p, t_interval


def enumerated(differences):
    signs = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(sign * size for sign, size in zip(each, differences, strict=True))) for each in signs]
    return np.mean([total >= abs(sum(differences)) - 1e-9 for total in sums])


@pytest.mark.parametrize("count", [1, 2, 6, 9])
def test_the_p_value_is_the_share_of_sign_flips_that_are_as_extreme(count):
    random = np.random.default_rng(count)
    for _ in range(5):
        differences = random.normal(0.5, 1, count).round(1).tolist()  # rounded, so that sums tie
        assert sign_flip_p(differences) == pytest.approx(enumerated(differences), abs=1e-12)


def test_the_p_value_equals_that_of_scipy():
    differences = np.random.default_rng(0).normal(0.4, 1, 8)
    reference = permutation_test(
        (differences, np.zeros(8)), lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples", vectorized=True, n_resamples=np.inf,
    )  # fmt: skip
    assert sign_flip_p(differences.tolist()) == pytest.approx(reference.pvalue, abs=1e-12)


def test_the_smallest_p_value_is_two_of_all_sign_flips():
    assert sign_flip_p([0.1, 0.7, 0.2, 0.4, 0.9, 0.3]) == 2 / 2**6
    assert sign_flip_p([0.0] * 6) == 1


@pytest.mark.parametrize("count", [0, 25])
def test_counts_that_cannot_be_enumerated_are_refused(count):
    with pytest.raises(ValueError, match=f"got {count}"):
        sign_flip_p([1.0] * count)


def test_the_interval_equals_that_of_scipy():
    differences = [0.3, -0.2, 1.1, 0.4, 0.8, 0.1]
    reference = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert t_interval(differences) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_holm_adjusts_the_textbook_example_and_keeps_the_order():
    # Holm: p-values 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
