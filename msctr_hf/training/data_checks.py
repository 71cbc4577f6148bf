"""Checks of the training data before the first step, where they are cheap: labels, and shared images."""

from __future__ import annotations

import numpy as np
from datasets import Dataset, IterableDataset

from ..data.checking import no_labeled_pixel
from ..data.decoding import ReadSamples, reader_of, rows_of_labels
from ..data.overlap import shared_images
from ..data.predecoded import ReadMapped
from ..data.specs import DatasetSpec
from ..errors import UsageError
from .processes import on_main

MAX_PIXELS = 3 * 10**8  # of labels that are read, about three seconds; the command `prepare` reads all


def check_data(
    train_set: Dataset | IterableDataset,
    validation_set: Dataset | IterableDataset,
    spec: DatasetSpec,
    train_split: str,
) -> list[str]:
    """Check the data of a run on the main process, and return sentences to print at its start.

    Args:
        train_set, validation_set (`datasets.Dataset` or `datasets.IterableDataset`): Samples {image, label, image_id}.
        spec (`DatasetSpec`): The data set.
        train_split (`str`): Name of the training split, or several joined by `+`.

    Raises:
        UsageError: On all processes, if no pixel of the training set has a class.
    """

    def check() -> list[str]:
        if not isinstance(train_set, Dataset):
            return []
        notes = missing_classes(train_set, spec)
        if isinstance(validation_set, Dataset) and "validation" not in train_split:
            notes += _shared(train_set, validation_set)
        return notes

    return on_main(check)


def check_unlabeled(
    unlabeled_set: Dataset | IterableDataset,
    train_set: Dataset | IterableDataset,
    validation_set: Dataset | IterableDataset,
) -> list[str]:
    """Check the images without labels on the main process, and return sentences to print at the start of a run.

    Args:
        unlabeled_set, train_set, validation_set (`datasets.Dataset` or `datasets.IterableDataset`): Samples {image,
            label, image_id}; streams are not checked.

    Raises:
        UsageError: On all processes, if images with labels are among those without.
    """

    def check() -> list[str]:
        if not isinstance(unlabeled_set, Dataset):
            return []
        if isinstance(train_set, Dataset) and (shared := shared_images(train_set, unlabeled_set)):
            (training_id, image_id), count = shared[0], len(shared)
            raise UsageError(
                f"{count} of {len(unlabeled_set)} images without labels are training images too, such as {image_id} "
                f"({training_id} in training): leave them out of `unlabeled_dir` or `unlabeled`."
            )
        if isinstance(validation_set, Dataset) and (shared := shared_images(validation_set, unlabeled_set)):
            return [
                f"warning: {len(shared)} of {len(validation_set)} validation images are trained on without labels, "
                f"such as {shared[0][1]}"
            ]
        return []

    return on_main(check)


def without_copies(rest: Dataset, train_set: Dataset) -> tuple[Dataset, list[str]]:
    """Leave out the images without labels that are copies of training images, which nobody could leave out by name.

    Args:
        rest (`datasets.Dataset`): Images that `train_images` left out.
        train_set (`datasets.Dataset`): Images with labels.

    Returns:
        `tuple`: the other images, and sentences to print at the start of a run.
    """
    copies = dict(on_main(lambda: [(copy, original) for original, copy in shared_images(train_set, rest)]))
    if not copies:
        return rest, []
    kept = [number for number, image_id in enumerate(rest.with_format(None)["image_id"][:]) if image_id not in copies]
    (copy, original), *_ = copies.items()
    note = f"{len(copies)} of {len(rest)} images without labels are left out: they are copies of training images"
    return rest.select(kept), [f"{note}, such as {copy} of {original}"]


def missing_classes(train_set: Dataset, spec: DatasetSpec) -> list[str]:
    """Name the classes that no training image has, if all labels could be read within `MAX_PIXELS`.

    Labels are read in random order until all classes have occurred, or without a limit until one has.

    Raises:
        UsageError: If no pixel of the training set has a class.
    """
    if not isinstance(reader_of(train_set), (ReadSamples, ReadMapped)):
        return []  # drawn on demand
    labels = rows_of_labels(train_set)
    present, pixels, is_complete = np.zeros(len(spec.classes), dtype=bool), 0, True
    for number in np.random.default_rng(0).permutation(len(labels)):
        if present.all() or (present.any() and pixels > MAX_PIXELS):
            is_complete = False
            break
        try:
            label = labels[int(number)]["label"]
        except UsageError:  # ends the run with the name of the file, or is never drawn in a short one
            is_complete = False
            continue
        present |= np.asarray(label.histogram()[: len(spec.classes)]) > 0
        pixels += label.width * label.height
    if not is_complete:
        return []
    if len(labels) and not present.any():
        raise UsageError(f"Training set: {no_labeled_pixel(spec, len(labels), {})}")
    absent = [name for name, is_present in zip(spec.classes, present, strict=True) if not is_present]
    return [f"warning: no training image has a pixel of {', '.join(absent)}"] if absent else []


def _shared(train_set: Dataset, validation_set: Dataset) -> list[str]:
    shared = shared_images(train_set, validation_set)
    if not shared:
        return []
    (training_id, image_id), count = shared[0], len(shared)
    return [
        f"warning: {count} of {len(validation_set)} validation images are training images too, such as {image_id} "
        f"({training_id} in training)"
    ]
