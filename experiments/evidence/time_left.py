"""Time left: a seed starts only if all of its runs can end in time, and so does a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..sweep import Active, SweepRun


class TimeLeft:
    """Decision on whether a run may start.

    Args:
        minutes (`float`): Minutes until all runs must have ended.
        runs (`Sequence[SweepRun]`): Runs that are to be started.
        parallel (`int`): Runs at a time.
        minutes_per_step (`float`): Minutes of a run by its number of steps, until slower ones were measured.
        clock (`Callable`): Monotonic clock, in seconds.
    """

    def __init__(
        self,
        minutes: float,
        runs: Sequence[SweepRun],
        parallel: int,
        minutes_per_step: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.clock = clock
        self.deadline = clock() + 60 * minutes
        self.waiting = list(runs)
        self.parallel = parallel
        self.minutes_per_step = minutes_per_step
        self.started: set[int] = set()

    def measured(self, run: SweepRun, minutes: float) -> None:
        """Note how long a run took from its first step to its score."""
        self.minutes_per_step = max(self.minutes_per_step, minutes / run.settings["max_steps"])

    def may_start(self, run: SweepRun, active: Sequence[Active]) -> bool:
        """Return whether a run, and all that are left of its seed if it is the first of them, can end in time."""
        together = [run] if run.seed in self.started else [each for each in self.waiting if each.seed == run.seed]
        ends = sorted([self.clock()] * (self.parallel - len(active)) + [self._end(each) for each in active])
        for each in together:  # each takes the place that is free first
            ends = sorted([ends[0] + self._seconds(each), *ends[1:]])
        if ends[-1] > self.deadline:
            return False
        self.started.add(run.seed)
        self.waiting.remove(run)
        return True

    def _seconds(self, run: SweepRun) -> float:
        return 60 * self.minutes_per_step * run.settings["max_steps"]

    def _end(self, active: Active) -> float:
        return max(self.clock(), active.since + self._seconds(active.run))
