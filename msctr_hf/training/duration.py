"""Length of a run: epochs and optimizer steps of a training set, and the interval of validations.

An epoch ends after a batch, which may be within a step: the step then takes its other batches from the next epoch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..data.loaders import ShuffledSampler
from ..errors import UsageError
from .settings import TrainingSettings

DEFAULT_VALIDATIONS, MAX_STEPS_WITHOUT_VALIDATION = 20, 5_000  # if `validation_steps` is not given


@dataclass(frozen=True)
class Epochs:
    """Epochs of a training set, whose images may be split over processes, in batches and optimizer steps.

    All steps have the same number of batches, so an epoch need not be a whole number of steps.

    Args:
        sampler (`ShuffledSampler`): Order of the images; with repeat factors, their number differs between epochs.
        batch_size (`int`): Number of images of a batch of one process; an incomplete batch is dropped.
        gradient_accumulation_steps (`int`): Number of batches of one step.
        num_processes (`int`): Number of processes that train together.
    """

    sampler: ShuffledSampler
    batch_size: int
    gradient_accumulation_steps: int
    num_processes: int

    def batches(self, epoch: int) -> int:
        """Count the batches that every process gets in an epoch."""
        sampler = copy.copy(self.sampler)
        sampler.set_epoch(epoch)
        return len(sampler) // self.batch_size // self.num_processes

    def steps_until(self, num_epochs: float) -> int:
        """Count the optimizer steps that see a number of epochs, which may end within an epoch."""
        whole = int(num_epochs)
        part = round((num_epochs - whole) * self.batches(whole), 6)  # 0.1 of 10 batches is 1, not 1.0000000000000009
        # a product if all epochs are equally long, since a run that is meant to end early may have very many of them
        of_whole = whole * self.batches(0) if self.sampler.repeats is None else sum(map(self.batches, range(whole)))
        num_batches = max(1, of_whole + math.ceil(part))
        return -(-num_batches // self.gradient_accumulation_steps)  # rounded up

    def epochs_until(self, num_steps: int) -> float:
        """Compute the number of epochs that a number of optimizer steps sees, the inverse of `steps_until`."""
        num_batches = num_steps * self.gradient_accumulation_steps
        if self.sampler.repeats is None:
            return num_batches / self.batches(0)
        epoch = 0
        while num_batches > (length := self.batches(epoch)):
            num_batches -= length
            epoch += 1
        return epoch + num_batches / length


@dataclass(frozen=True)
class Duration:
    """Length of a run in optimizer steps.

    Args:
        max_steps (`int`): Total number of steps.
        validation_steps (`int`): Number of steps from one validation to the next.
        batches_per_epoch (`int`, *optional*): Number of batches of the first epoch, of one process; `None` for a
            stream.
        num_epochs (`float`, *optional*): Number of passes over the training set; `None` for a stream.
    """

    max_steps: int
    validation_steps: int
    batches_per_epoch: int | None = None
    num_epochs: float | None = field(default=None, compare=False)  # determined by the others and the training set


def plan_duration(
    arguments: TrainingSettings, epochs: Epochs | None, before: Mapping[str, int] | None = None
) -> Duration:
    """Derive the length of a run from its settings and its training set.

    Args:
        arguments (`TrainingSettings`): Settings of the run.
        epochs (`Epochs`, *optional*): Passes over the training set; `None` for a stream.
        before (`Mapping[str, int]`, *optional*): `max_steps` and `validation_steps` of the run before it was resumed.

    Raises:
        UsageError: If the length of a stream is given in epochs.
    """
    before = before or {}
    max_steps = before.get("max_steps", arguments.max_steps)
    if max_steps is None:
        if epochs is None or arguments.num_train_epochs is None:
            raise UsageError(
                f"`num_train_epochs={arguments.num_train_epochs}` counts passes over the training set, and the length "
                "of a stream is not known; use `max_steps`, or leave `streaming` out."
            )
        max_steps = epochs.steps_until(arguments.num_train_epochs)
    steps_of_an_epoch = 1 if epochs is None else epochs.steps_until(1)
    by_default = min(max(steps_of_an_epoch, max_steps // DEFAULT_VALIDATIONS), MAX_STEPS_WITHOUT_VALIDATION)
    validation_steps = before.get("validation_steps", arguments.validation_steps) or by_default
    if epochs is None:
        return Duration(max_steps, validation_steps)
    return Duration(max_steps, validation_steps, epochs.batches(0), epochs.epochs_until(max_steps))
