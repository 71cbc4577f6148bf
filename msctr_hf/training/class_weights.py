"""Class weights that are computed from the labels of the training set, `class_weights='auto'`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from ..data.class_balance import median_frequency_weights, pixels_of_classes
from ..data.specs import DatasetSpec
from ..errors import UsageError
from .data_record import DATA_FILE
from .processes import on_main
from .run_folder import read_json

AUTO = "auto"
CLASS_WEIGHTS = "class_weights"  # setting, and key in the record of the data of a checkpoint


class ClassPixels:
    """Numbers of pixels of every class in every training image, which are counted when they are first needed.

    The main process reads the labels for all processes, which must ask for the numbers together.

    Args:
        train_set (`datasets.Dataset`): Samples {image, label, image_id}.
        spec (`DatasetSpec`): The data set.
        num_workers (`int`): Number of worker processes that read labels.
    """

    def __init__(self, train_set: Dataset, spec: DatasetSpec, num_workers: int):
        self.train_set, self.spec, self.num_workers = train_set, spec, num_workers

    @cached_property
    def of_images(self) -> np.ndarray:
        """Numbers of shape `(images, classes)`, int64.

        Raises:
            UsageError: On all processes, if labels cannot be read.
        """
        return on_main(lambda: pixels_of_classes(self.train_set, len(self.spec.classes), num_workers=self.num_workers))


def choose_class_weights(given: Any, class_pixels: ClassPixels, checkpoint: Path | None) -> list[float] | None:
    """Compute the class weights of a run if they are 'auto', or read those with which it started.

    Args:
        given (`Any`): Value of the setting.
        class_pixels (`ClassPixels`): Numbers of pixels of the classes.
        checkpoint (`Path`, *optional*): Checkpoint from which the run resumes.

    Returns:
        `list[float]`, *optional*: A weight for every class; `None` if other weights, or none, are given.

    Raises:
        UsageError: If the value is another word or has another length, the training set is a stream, or labels cannot
            be read.
    """
    if not isinstance(given, str):
        classes = len(class_pixels.spec.classes)
        if isinstance(given, list) and len(given) != classes:
            raise UsageError(
                f"`class_weights` must have one entry per class: {classes}, got {len(given)}. Those of a recipe are "
                "for the classes of its data set; 'auto' computes them from the labels."
            )
        return None
    if given != AUTO:
        raise UsageError(f"`class_weights` must be a list with a number for every class, or 'auto', got {given!r}.")
    if isinstance(class_pixels.train_set, IterableDataset):
        raise UsageError(
            "`class_weights='auto'` needs all labels before training; give a number for every class, or leave "
            "`streaming` out."
        )
    if checkpoint is not None and (kept := read_json(checkpoint / DATA_FILE).get(CLASS_WEIGHTS)) is not None:
        return kept
    return median_frequency_weights(class_pixels.of_images)


def describe_class_weights(weights: list[float], spec: DatasetSpec) -> str:
    """Return a sentence with the smallest and the largest weight."""
    ordered = sorted(zip(weights, spec.classes, strict=True))
    (smallest, frequent), (largest, rare) = ordered[0], ordered[-1]
    return f"class_weights auto: from {smallest:g} ({frequent}) to {largest:g} ({rare}), by median frequency"
