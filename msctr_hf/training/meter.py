"""Measurements of a training run: means of losses, images per second, memory, and progress."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from ..progress import progress
from .devices import used_megabytes
from .logs import RunningMeans

CONFIDENT_PIXELS = "pseudo_cross_entropy/confident_pixels"  # diagnostic: share of the pixels without labels
BATCHES_WITHOUT_ANCHORS = 100  # number of batches in a row that leads to a warning


class Meter:
    """Means of losses, and time without validation, saving and logging, since the last report.

    Args:
        accelerator (`Accelerator`): Processes over which losses are averaged.
        means (`RunningMeans`): Means of losses, whose state is part of a checkpoint.
        images_per_step (`int`): Number of images per step, over all processes.
    """

    def __init__(self, accelerator: Accelerator, means: RunningMeans, images_per_step: int):
        self.accelerator = accelerator
        self.means = means
        self.images_per_step = images_per_step
        self.batches_without_anchors = 0

    @contextmanager
    def running(self, step: int, max_steps: int) -> Iterator[None]:
        """Start the stopwatch at a step, and show the progress of the run until the end of the block."""
        self._since, self._reported_step = time.perf_counter(), step
        shown = self.accelerator.is_main_process
        self._bar = progress(total=max_steps, start=step, title="training", unit="step", shown=shown, keep=True)
        with self._bar:
            yield

    def add_batch(
        self, terms: Mapping[str, torch.Tensor], facts: Mapping[str, float], diagnostics: Mapping[str, torch.Tensor]
    ) -> None:
        """Add the loss terms of a batch, its facts, which the host knows, and its diagnostics on the device."""
        self.means.update(terms, facts, diagnostics)
        nothing_contrasted = facts.get("contrastive/skipped_stages", 0.0) == 1
        self.batches_without_anchors = self.batches_without_anchors + 1 if nothing_contrasted else 0
        if self.batches_without_anchors == BATCHES_WITHOUT_ANCHORS:
            warnings.warn(
                f"No anchors in the last {BATCHES_WITHOUT_ANCHORS} batches: no class has enough pixels in any image. "
                "Use larger crops or batches, or lower `contrastive_min_anchors_per_class`.",
                stacklevel=2,
            )

    def end_step(self, grad_norm: torch.Tensor | None) -> None:
        """Count a step and add the norm of its gradient, which some launchers do not provide."""
        if isinstance(grad_norm, torch.Tensor):
            self.means.update({"grad_norm": grad_norm})
        self._bar.update()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the stopwatch within the block."""
        self._paused = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - self._paused

    def report(self, step: int, learning_rate: Any, skipped_steps: int) -> dict[str, float]:
        """Return the scalars of the steps since the last report, and reset them; must be called within `paused`."""
        values = self.means.report(self.accelerator)
        seconds = self._paused - self._since
        values["learning_rate"] = float(learning_rate)
        values["images_per_second"] = (step - self._reported_step) * self.images_per_step / seconds
        values["skipped_steps"] = skipped_steps
        values["used_mb"] = round(used_megabytes(self.accelerator.device), 1)
        self._since, self._reported_step = self._paused, step
        confident = {"confident": f"{values[CONFIDENT_PIXELS]:.2f}"} if CONFIDENT_PIXELS in values else {}
        self._bar.set_postfix(
            loss=f"{values.get('loss', float('nan')):.4f}",
            rate=f"{values['learning_rate']:.2e}",
            img_s=f"{values['images_per_second']:.1f}",
            **confident,
        )
        return values
