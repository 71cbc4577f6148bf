"""Cost of a training step of one arm over that of another, in interleaved repetitions."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from msctr_hf.commands.train import command_line
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

    A step is forward pass, objective, backward pass and update; loading runs beside it in training, and is left out.

    Args:
        arm, baseline (`Sequence[str]`): Flags of `scripts/train.py`.
        threads (`int`): Threads of torch during the measurement.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        steps = [_Step(flags) for flags in (arm, baseline)]
        batches = list(itertools.islice(_batches(steps[1].setup), WARM_UP + REPETITIONS))
        rounds = []
        for number, batch in enumerate(batches):
            order = (0, 1) if number % 2 else (1, 0)  # so that neither always finds the caches of the other
            seconds = {place: steps[place].seconds(batch) for place in order}
            rounds.append((seconds[0], seconds[1]))
    finally:
        torch.set_num_threads(before)
    rounds = rounds[WARM_UP:]
    arms, baselines = zip(*rounds, strict=True)
    return StepCost(statistics.median(arms), statistics.median(baselines), statistics.median(a / b for a, b in rounds))


def _batches(setup: Setup) -> Any:
    while True:
        yield from setup.loader


class _Step:
    """Training step of one arm, with all that a run has, but without its files."""

    def __init__(self, flags: Sequence[str]):
        model, data, training, _, network = command_line().parse(flags)
        self.setup = Setup(model, data, training, network, validation_images=1)
        self.setup.model.train()

    def seconds(self, batch: dict[str, torch.Tensor]) -> float:
        setup = self.setup
        pixel_values = batch["pixel_values"]
        if setup.args.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        start = time.perf_counter()
        output = setup.model(pixel_values=pixel_values, labels=batch["labels"])
        setup.accelerator.backward(output.loss)
        setup.optimizer.step()
        setup.optimizer.zero_grad()
        if setup.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start
