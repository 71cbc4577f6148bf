"""Validation during a run, with scores of the network and a figure of a few predictions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from datasets import Dataset, IterableDataset
from PIL import Image
from torch import nn

from ..data.specs import DatasetSpec
from ..errors import UsageError, brief_reason
from ..evaluation.finite import NotFiniteError, find_fault_of_weights
from ..evaluation.predictor import Predictor
from ..evaluation.scoring import score_dataset
from ..evaluation.visualization import contact_sheet
from ..models.image_processing_msctr import MsctrImageProcessor
from .training_data import num_images

IMAGES_SHOWN = 4


METRICS = ("mean_iou", "mean_accuracy")  # choices of `metric_for_best_model` in addition to groups of classes


def check_metric(metric: str, spec: DatasetSpec) -> None:
    """Check that a validation on this data set has a score of this name.

    Raises:
        UsageError: If it does not; the message lists the names.
    """
    choices = [*METRICS, *(group for group in spec.groups if group not in METRICS)]
    if metric not in choices:
        no_groups = "" if spec.groups else f" ({spec.name} has no groups of classes)"
        raise UsageError(
            f"`metric_for_best_model` must be one of {', '.join(map(repr, choices))}{no_groups}, got {metric!r}."
        )


class ValidationResult(NamedTuple):
    """Scores and figure of one validation.

    Args:
        results (`dict`): Scores, as in results.json; empty if the network is not finite.
        sheet (`Image`, *optional*): Figure of a few images with labels and predictions; `None` in a process without
            images.
        unlabeled (`frozenset[str]`): Metrics for whose classes no pixel is labeled, so that they are not scores.
        not_finite (`str`, *optional*): Sentence about weights or logits that are not finite.
    """

    results: dict[str, Any]
    sheet: Image.Image | None
    unlabeled: frozenset[str] = frozenset()
    not_finite: str | None = None

    def score(self, metric: str) -> float:
        """Return the score that decides which network is the best; 0 if nothing was measured."""
        return self.measured(metric) or 0.0

    def measured(self, metric: str) -> float | None:
        """Return a score by its name; `None` if none of its classes is labeled, or the network is not finite."""
        if metric in self.unlabeled or self.not_finite is not None:
            return None
        return self.results[metric] if metric in METRICS else self.results["groups"][metric]["mean_iou"]


class Validation:
    """Validation of a network on all processes, which does not change the network.

    Args:
        accelerator (`Accelerator`): Processes that share the images.
        dataset (`datasets.Dataset`): Validation images with labels.
        spec (`DatasetSpec`): Classes of the data set.
        image_processor (`MsctrImageProcessor`): Preprocessing of the images.
        num_workers (`int`): Number of worker processes of the loader.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        dataset: Dataset | IterableDataset,
        spec: DatasetSpec,
        image_processor: MsctrImageProcessor,
        num_workers: int,
    ):
        self.accelerator = accelerator
        self.dataset = dataset
        self.spec = spec
        self.image_processor = image_processor
        self.num_workers = num_workers

    def run(self, model: nn.Module, should_stop: Callable[[], bool]) -> ValidationResult | None:
        """Score the network; return `None` if a process was told to stop before the end.

        A network that is not finite has no scores: argmax would take NaN for the most probable class.

        Raises:
            UsageError: If an image does not fit into the memory of the device.
        """
        shown: list[tuple] = []
        faults = gather_object([find_fault_of_weights(model)])  # processes may have different statistics
        if fault := next((text for text in faults if text is not None), None):
            return ValidationResult({}, None, not_finite=fault)
        try:
            results = self._score(model, shown, should_stop)
        except NotFiniteError as error:
            return ValidationResult({}, None, not_finite=str(error))
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"The validation does not fit into the memory of the device ({brief_reason(error)}). It takes whole "
                "images, or whole tiles, however small the crops of training are: set `tile_size` to cut images into "
                "smaller tiles, or resize them before training."
            ) from error
        if results is None:
            return None
        sheet = contact_sheet(shown, self.spec.palette, self.spec.classes) if shown else None
        return ValidationResult(results, sheet, _unlabeled_metrics(results, self.spec))

    def _score(self, model: nn.Module, shown: list[tuple], should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        # images from the whole set, since neighbors are often frames of one video
        images = (num_images(self.dataset) or IMAGES_SHOWN) // self.accelerator.num_processes
        every, seen = max(1, images // IMAGES_SHOWN), itertools.count()

        def keep_a_few(samples: list[dict[str, Any]], predictions: list[np.ndarray]) -> None:
            if next(seen) % every == 0 and len(shown) < IMAGES_SHOWN:
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


def _unlabeled_metrics(results: dict[str, Any], spec: DatasetSpec) -> frozenset[str]:
    """List the metrics none of whose classes has a labeled pixel: those of a group are 0 if it is only predicted."""
    labeled = {name for name, accuracy in results["per_category_accuracy"].items() if accuracy is not None}
    classes = {group: {spec.classes[label] for label in labels} for group, labels in spec.groups.items()}
    classes |= dict.fromkeys(METRICS, set(spec.classes))
    return frozenset(metric for metric, names in classes.items() if not names & labeled)


def share_statistics(model: nn.Module) -> None:
    """Copy the normalization statistics of the main process to all processes.

    Without synchronized normalization, every process has its own, but the network is scored and saved with those of
    the main process. They are copied before the checkpoint of a step that is validated, since a sharded checkpoint
    would otherwise contain a mixture.
    """
    broadcast(list(model.buffers()))


@contextmanager
def _in_full_precision(model: nn.Module) -> Iterator[None]:
    """Suspend the mixed precision of Accelerate, so that validation scores the network as it is saved."""
    mixed_precision_forward = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if mixed_precision_forward is not None:
            model.forward = mixed_precision_forward
