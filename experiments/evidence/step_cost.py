"""Cost of a training step of one arm over that of another, in interleaved repetitions."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from msctr_hf.commands.train import command_line
from msctr_hf.training.interruption import StopRequest
from msctr_hf.training.loop import TrainingLoop
from msctr_hf.training.setup import Setup

REPETITIONS = 15
WARM_UP = 3


class StepCost(NamedTuple):
    """Median seconds of a step of an arm and of its baseline, and the median of their ratios."""

    arm: float
    baseline: float
    ratio: float


def measure_step_cost(arm: Sequence[str], baseline: Sequence[str], threads: int) -> StepCost:
    """Measure steps of two arms on the same batches of training images, in turn, after a warm-up.

    They are the steps of the training loop, without loading, which other processes do meanwhile. Images without labels
    are loaded before a step too, if the arm trains on them at its first steps.

    Args:
        arm, baseline (`Sequence[str]`): Flags of `scripts/train.py`.
        threads (`int`): Threads of torch during the measurement.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            loops = [_start(flags, Path(folder) / name, stack) for name, flags in (("arm", arm), ("base", baseline))]
            unlabeled = {loop.teacher: loop.teacher.batches for loop in loops if loop.teacher is not None}
            rounds = []
            for number in range(WARM_UP + REPETITIONS):
                batches = list(loops[1].next_batches())
                for teacher in filter(None, (loop.teacher_of_step() for loop in loops)):
                    fetched = list(itertools.islice(unlabeled[teacher], len(batches)))
                    teacher.batches = (batch for batch in fetched)
                order = (0, 1) if number % 2 else (1, 0)  # so that neither always finds the caches of the other
                seconds = {place: seconds_of_step(loops[place], batches) for place in order}
                rounds.append((seconds[0], seconds[1]))
            for loaded in (*(loop.batches for loop in loops), *unlabeled.values()):
                loaded.close()
    finally:
        torch.set_num_threads(before)
    measured = rounds[WARM_UP:]
    arms, baselines = zip(*measured, strict=True)
    ratio = statistics.median(ours / base for ours, base in measured)
    return StepCost(statistics.median(arms), statistics.median(baselines), ratio)


def _start(flags: Sequence[str], folder: Path, stack: ExitStack) -> TrainingLoop:
    model, data, training, _, network = command_line().parse([*flags, "--output_dir", str(folder)])
    setup = Setup(model, data, training, network, validation_images=1)
    setup.start()
    loop = TrainingLoop(setup, StopRequest())
    loop.model.train()
    stack.enter_context(loop.meter.running(0, WARM_UP + REPETITIONS))
    return loop


def seconds_of_step(loop: TrainingLoop, batches: list[dict[str, Any]]) -> float:
    """Train for one step, and return its seconds, up to the end of the work of the device."""
    start = time.perf_counter()
    loop.train_step(iter(batches))
    loop.guard.check(wait=True)
    return time.perf_counter() - start
