"""Differences between arms are paired by seed, with intervals from Student's t."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from experiments.sweep_report import compare_arms, markdown

SCORES = {"ce": [0.61, 0.64, 0.60], "ms": [0.63, 0.65, 0.64]}


def rows(scores=SCORES):
    return [
        {
            "arm": arm,
            "seed": seed,
            "mean_iou": score,
            "per_category_iou": {"road": score + 0.2, "pole": score - 0.2},
            "images_per_second": {"ce": 10.0, "ms": 8.0}[arm],
            "used_mb": {"ce": 100.0, "ms": 110.0}[arm],
        }
        for arm, of_arm in scores.items()
        for seed, score in enumerate(of_arm)
    ]


def test_the_interval_of_paired_differences_equals_that_of_scipy():
    _, ms = compare_arms(rows(), "ce")
    reference = ttest_rel(SCORES["ms"], SCORES["ce"]).confidence_interval(0.95)
    assert ms.difference - ms.interval == pytest.approx(reference.low, abs=1e-12)
    assert ms.difference + ms.interval == pytest.approx(reference.high, abs=1e-12)


def test_costs_are_ratios_to_the_baseline_and_class_ious_are_differences_from_it():
    ce, ms = compare_arms(rows(), "ce")
    assert (ce.time, ce.memory, ms.time, ms.memory) == pytest.approx((1, 1, 1.25, 1.1))
    assert ce.per_class == pytest.approx({"road": np.mean(SCORES["ce"]) + 0.2, "pole": np.mean(SCORES["ce"]) - 0.2})
    assert ms.per_class == pytest.approx({"road": ms.difference, "pole": ms.difference})


def test_seeds_without_a_partner_count_in_the_mean_but_not_in_the_difference():
    _, ms = compare_arms(rows({"ce": [0.5], "ms": [0.6, 0.9]}), "ce")
    assert ms.scores == [0.6, 0.9]
    assert ms.difference == pytest.approx(0.1)
    assert ms.interval is None


def test_the_order_of_the_seeds_does_not_matter():
    shuffled = [rows()[place] for place in (5, 1, 3, 0, 4, 2)]
    of_ms = next(each for each in compare_arms(shuffled, "ce") if each.arm == "ms")
    assert of_ms.difference == pytest.approx(compare_arms(rows(), "ce")[1].difference)


def test_the_baseline_comes_first_and_absent_classes_have_no_difference():
    given = rows({"ms": [0.6], "ce": [0.5]})
    for row in given:
        row["per_category_iou"]["cave"] = None
    ce, ms = compare_arms(given, "ce")
    assert (ce.arm, ms.arm) == ("ce", "ms")
    assert np.isnan(ce.per_class["cave"])
    assert np.isnan(ms.per_class["cave"])
    assert ms.per_class["pole"] == pytest.approx(0.1)


def test_the_table_shows_means_differences_and_classes():
    text = markdown(compare_arms(rows(), "ce"))
    assert "| ce | 3 | 61.67 ± 2.08 |  | 1.00 | 1.00 |" in text
    assert "| ms | 3 | 64.00 ± 1.00 | +2.33 ± 3.79 | 1.25 | 1.10 |" in text
    assert "| pole | 41.7 | +2.3 |" in text
