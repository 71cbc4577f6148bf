"""Runs start only where the rest of their seed fits into the time left."""

from pathlib import Path

from experiments.evidence.time_left import TimeLeft
from experiments.sweep import Active, SweepRun


def runs(*pairs):
    return [SweepRun(arm, seed, Path(), [], {"max_steps": steps}) for arm, seed, steps in pairs]


def test_all_runs_of_a_seed_must_fit_beside_the_active_ones():
    planned = runs(("a", 0, 10), ("b", 0, 10), ("a", 1, 10), ("b", 1, 10))
    now = [0.0]
    limit = TimeLeft(41, planned, parallel=2, minutes_per_step=1, clock=lambda: now[0])
    active = []
    for run in planned[:2]:
        assert limit.may_start(run, active)
        active.append(Active(run, 0.0))
    now[0] = 600.0
    # seed 1 beside one run that ends after 10 minutes more: 20 minutes more in all
    assert limit.may_start(planned[2], [Active(planned[1], 600.0)])
    now[0] = 60 * 31.5
    assert not limit.may_start(planned[3], [])


def test_a_slower_machine_starts_fewer_runs():
    planned = runs(("a", 0, 10), ("b", 0, 20))
    assert TimeLeft(31, planned, 1, 1, clock=lambda: 0).may_start(planned[0], [])
    assert not TimeLeft(29, planned, 1, 1, clock=lambda: 0).may_start(planned[0], [])
    limit = TimeLeft(31, planned, 1, 1, clock=lambda: 0)
    limit.measured(planned[0], 12)
    assert not limit.may_start(planned[0], [])
