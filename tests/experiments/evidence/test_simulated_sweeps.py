"""Simulated sweeps, judged by the code that judges real ones, have the error rates that the rules promise."""

import math

import numpy as np
import pytest
from simulated import confirmation, record, records, sweeps

from experiments.evidence import paired_tests
from experiments.evidence.verdict import judge

ARMS = ("chosen", "ce_time", "ce", "paper", "ms", "placebo")
SECONDARY = [["chosen", "ce"], ["paper", "ce_time"], ["ms", "ce_time"], ["chosen", "placebo"]]
FEW, MANY = 500, 10_000
# coverage in the long test, and the same with the standard error of a 20th of the sweeps
COVERAGE = {MANY: (0.943, 0.957), FEW: (0.925, 0.975)}
FAMILY_WISE = {MANY: 0.057, FEW: 0.075}


def normal(random, shape):
    return random.standard_normal(shape)


def skewed(random, shape):
    return random.exponential(size=shape) - 1


def skewed_to_the_left(random, shape):
    return 1 - random.exponential(size=shape)


def coverage(folder, num_seeds, count, draw=normal, shift=0.8):
    experiment = confirmation(folder, seeds=list(range(100, 100 + num_seeds)))
    inside = []
    for sweep in sweeps(experiment, count, draw, shift=shift, seed=num_seeds):
        primary = judge(experiment, sweep)["primary"]
        inside.append(primary["low"] <= shift <= primary["high"])
    return np.mean(inside)


def family_wise_error(folder, num_seeds, count, draw=normal, correlation=0.5):
    everywhere = ("chosen", "ce_time")
    arms = {name: {"run": "ce", "seeds": num_seeds if name in everywhere else min(num_seeds, 8)} for name in ARMS}
    experiment = confirmation(folder, seeds=list(range(num_seeds)), arms=arms, secondary=SECONDARY)
    wrong = []
    for sweep in sweeps(experiment, count, draw, correlation, seed=num_seeds):
        verdict = judge(experiment, sweep)
        wrong.append(any(row["shown"] for row in (verdict["primary"], *verdict["secondary"])))
    return np.mean(wrong)


SIZES = [FEW, pytest.param(MANY, marks=pytest.mark.long)]


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("num_seeds", [6, 8, 12])
def test_intervals_of_normal_differences_cover_the_true_one_in_95_percent(tmp_path, num_seeds, count):
    low, high = COVERAGE[count]
    assert low <= coverage(tmp_path, num_seeds, count) <= high


@pytest.mark.long
@pytest.mark.parametrize("draw", [skewed, skewed_to_the_left])
@pytest.mark.parametrize("num_seeds", [6, 8, 12])
def test_error_rates_of_skewed_differences_are_reported(tmp_path, num_seeds, draw):
    """Neither the interval nor the sign-flip test is exact for them; pytest -s prints by how much."""
    covered, wrong = coverage(tmp_path, num_seeds, MANY, draw), family_wise_error(tmp_path, num_seeds, MANY, draw)
    print(f"\n{draw.__name__}, {num_seeds} seeds: coverage {100 * covered:.1f} %, shown in {100 * wrong:.1f} %")
    assert covered > 0.85
    assert wrong < 0.2


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("num_seeds", [6, 8])
def test_an_interval_of_the_normal_distribution_in_its_place_covers_too_little(
    tmp_path, num_seeds, count, monkeypatch
):
    monkeypatch.setattr(paired_tests, "_t_quantile", lambda share, freedom: 1.959964)
    assert coverage(tmp_path, num_seeds, count) < COVERAGE[count][0]


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("num_seeds, correlation", [(6, 0.5), (8, 0.9), (12, 0.5), (12, 0.0)])
def test_a_verdict_without_any_difference_shows_one_in_at_most_5_percent(tmp_path, num_seeds, correlation, count):
    assert family_wise_error(tmp_path, num_seeds, count, correlation=correlation) <= FAMILY_WISE[count]


def test_a_large_difference_is_shown(tmp_path):
    experiment = confirmation(tmp_path, seeds=list(range(12)))
    shown = [judge(experiment, sweep)["primary"]["shown"] for sweep in sweeps(experiment, 50, normal, shift=3.0)]
    assert np.mean(shown) > 0.95
    lost = [judge(experiment, sweep)["primary"]["shown"] for sweep in sweeps(experiment, 50, normal, shift=-3.0)]
    assert not any(lost)


def numbers_of(value):
    if isinstance(value, dict):
        return [each for entry in value.values() for each in numbers_of(entry)]
    if isinstance(value, list):
        return [each for entry in value for each in numbers_of(entry)]
    return [value] if isinstance(value, float) else []


def test_with_any_run_missing_no_number_comes_out(tmp_path):
    experiment = confirmation(tmp_path, arms={name: {"run": "ce"} for name in ARMS}, secondary=SECONDARY)
    complete = next(sweeps(experiment, 1, normal))
    assert len(numbers_of(judge(experiment, complete))) > 10
    for run in complete:
        rest = {key: value for key, value in complete.items() if key != run}
        assert judge(experiment, rest) is None


@pytest.mark.parametrize("changes", [{"code": "other"}, {"machine": {"processor": "another CPU", "threads": 1}}])
def test_a_seed_whose_runs_are_from_two_machines_or_two_versions_is_not_paired(tmp_path, changes):
    experiment = confirmation(tmp_path)
    complete = next(sweeps(experiment, 1, normal))
    mixed = complete | {("chosen", 3, ""): record(0.6, **changes)}
    assert judge(experiment, mixed) is None
    whole = mixed | {("ce_time", 3, ""): record(0.6, **changes)}  # a seed may differ from other seeds
    assert judge(experiment, whole)["primary"]["n"] == 6


def test_whoever_looks_before_the_end_can_show_nothing(tmp_path):
    experiment = confirmation(tmp_path, seeds=list(range(8)))
    sweep = next(sweeps(experiment, 1, normal, shift=9.0))
    assert judge(experiment, sweep)["primary"]["shown"]
    verdict = judge(experiment, sweep, exploratory=True)
    assert verdict["exploratory"]
    assert not verdict["primary"]["shown"]


def test_no_p_value_is_given_below_six_seeds_and_secondary_arms_use_the_seeds_that_both_have(tmp_path):
    arms = {"chosen": {"run": "ms"}, "ce_time": {"run": "ce"}, "ce": {"run": "ce", "seeds": 5}, "same": {"run": "ce"}}
    experiment = confirmation(
        tmp_path,
        seeds=list(range(7)),
        arms=arms,
        secondary=[["chosen", "ce"], ["chosen", "same"]],
        calibration=[["ce", "same"]],
    )
    scores = {"chosen": range(62, 69), "ce_time": range(60, 67), "ce": [61] * 7, "same": range(61, 68)}
    verdict = judge(experiment, records(experiment, scores))
    primary, (few, all_seeds) = verdict["primary"], verdict["secondary"]
    assert (primary["n"], primary["mean"], primary["p_sign_flip"]) == (7, pytest.approx(2), 2 / 2**7)
    assert primary["shown"]
    assert (few["n"], few["p_sign_flip"], few["p_holm"], few["shown"]) == (5, None, None, False)
    assert few["mean"] == pytest.approx(np.mean([1, 2, 3, 4, 5]))
    assert all_seeds["p_holm"] == pytest.approx(2 * 2 / 2**7)
    (spread,) = verdict["calibration"]
    assert spread["deviation"] == pytest.approx(math.sqrt(2.5))
