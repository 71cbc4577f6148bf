"""Validation within a run: score the network, show what it sees, keep the best."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from datasets import Dataset, IterableDataset
from PIL import Image
from torch import nn

from ..data.specs import DatasetSpec
from ..evaluation.predictor import Predictor
from ..evaluation.scoring import score_dataset
from ..evaluation.visualization import contact_sheet
from ..models.image_processing_msctr import MsctrImageProcessor
from .checkpointing import Progress, together
from .devices import full_state_dict
from .logs import RunLog
from .run_folder import PREDICTIONS_FILE, RESULTS_FILE, save_model, save_picture, write_json
from .training_data import num_pictures

PICTURES_SHOWN = 4
_LOGGED = ("mean_iou", "mean_accuracy", "overall_accuracy")


class Validation:
    """Scores a network on all processes and saves it where it is the best so far.

    Args:
        accelerator (`Accelerator`): The processes.
        dataset (`datasets.Dataset`): Validation pictures.
        spec (`DatasetSpec`): Their classes.
        image_processor (`MsctrImageProcessor`): Prepares them, and is saved with the network.
        output_dir (`Path`): Where the best network goes.
        num_workers (`int`): Of the loader.
        publish (`Callable`, *optional*): Called by the first process with the folder of every new best network.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        dataset: Dataset | IterableDataset,
        spec: DatasetSpec,
        image_processor: MsctrImageProcessor,
        output_dir: Path,
        num_workers: int,
        publish: Callable[[Path], None] | None = None,
    ):
        self.accelerator = accelerator
        self.dataset = dataset
        self.spec = spec
        self.image_processor = image_processor
        self.output_dir = output_dir
        self.num_workers = num_workers
        self.publish = publish

    def run(self, model: nn.Module, progress: Progress, log: RunLog, should_stop: Callable[[], bool]) -> bool:
        """Score the network; `False` if a process was told to stop before the end, and nothing came of it."""
        # without SyncBatchNorm every process has statistics of its own; those of the first are the ones saved
        broadcast(list(model.buffers()))
        shown: list[tuple] = []
        results = self._score(model, shown, should_stop)
        if results is None:
            return False
        progress.validated_step = progress.step
        sheet = contact_sheet(shown, self.spec.palette, self.spec.classes) if shown else None
        log.write({f"validation/{name}": results[name] for name in _LOGGED}, progress.step)
        if sheet is not None:
            log.show("validation/predictions", sheet, progress.step)
        mean_iou = results["mean_iou"] or 0.0
        self.accelerator.print(f"step {progress.step}: validation mIoU {100 * mean_iou:.2f} %")
        if mean_iou > progress.best_mean_iou:
            progress.best_mean_iou = mean_iou
            progress.best_results = {"step": progress.step, **results}
            weights = full_state_dict(self.accelerator, model)
            together(
                self.accelerator,
                lambda: self._save_best(model, weights, progress, sheet),
                f"The best model in {self.output_dir}",
            )
        return True

    def _save_best(
        self, model: nn.Module, weights: dict[str, torch.Tensor] | None, progress: Progress, sheet: Image.Image | None
    ) -> None:
        if self.accelerator.is_main_process:
            save_model(model, self.image_processor, self.output_dir, weights)
            write_json(self.output_dir / RESULTS_FILE, progress.best_results)
            if sheet is not None:
                save_picture(sheet, self.output_dir / PREDICTIONS_FILE)
            if self.publish is not None:
                self.publish(self.output_dir)

    def _score(self, model: nn.Module, shown: list[tuple], should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        # from all over the set: neighbours are often frames of one video
        pictures = (num_pictures(self.dataset) or PICTURES_SHOWN) // self.accelerator.num_processes
        every, seen = max(1, pictures // PICTURES_SHOWN), itertools.count()

        def keep_a_few(samples: list[dict[str, Any]], predictions: list[np.ndarray]) -> None:
            if next(seen) % every == 0 and len(shown) < PICTURES_SHOWN:
                shown.append((samples[0]["image"], samples[0]["label"], predictions[0]))

        with _in_full_precision(model):
            scores = score_dataset(
                Predictor(model, self.image_processor),
                self.dataset,
                num_labels=len(self.spec.classes),
                accelerator=self.accelerator,
                num_workers=self.num_workers,
                on_batch=keep_a_few,
                should_stop=should_stop,
            )
        return None if scores is None else scores.results(self.spec.id2label, self.spec.groups)


@contextmanager
def _in_full_precision(model: nn.Module) -> Iterator[None]:
    """Take off Accelerate's mixed precision, so that validation scores the network as it is saved."""
    mixed_precision_forward = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if mixed_precision_forward is not None:
            model.forward = mixed_precision_forward
