"""Images without labels: their files, the check of these, and the two views that consistency training needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..errors import UsageError
from .augmentation import TrainingAugmentation
from .channels import Channels
from .checking import check_rows, describe_sizes
from .decoding import ReadSamples, attach
from .faults import group_faults
from .file_source import rows_of_images
from .image_files import FilesBelow, files_below, is_image, name_some, readable_suffixes
from .labels import IGNORE_INDEX, LabelMapping
from .loading import prepare_command
from .strong_view import StrongView

MIXED_SHARE = 0.5  # of the pixels, which a box covers
_PURPOSE = 2  # part of the seed, so that order and views are independent of those of the labeled images


def index_folder(folder: str | Path, channels: Channels | None = None) -> Dataset:
    """Find the images in a folder and all its subfolders.

    Args:
        folder (`str` or `Path`): The folder.
        channels (`Channels`, *optional*): Channels of the images, as of `load_segmentation_dataset`.

    Returns:
        `datasets.Dataset`: Samples {image, label, image_id}; labels are 0, and 255 where an image has no data. The id
        of an image is its path below the folder.

    Raises:
        UsageError: If the folder does not exist or has no images, or a link leads to no file.
    """
    found = _find_images(Path(folder), channels)
    if links := found.broken_links:
        raise UsageError(f"`unlabeled_dir`: {len(links)} link(s) lead to no file: {name_some(links)}.")
    command = prepare_command({"unlabeled_dir": folder, "num_channels": None if channels is None else channels.count})
    advice = (
        f"`{command}` checks all files. Put a readable image in its place under the same name and resume, "
        "or start again without it."
    )
    return attach(_rows(found, Path(folder)), replace(_reader(channels), advice=advice))


def check_folder(folder: str | Path, channels: Channels | None = None, *, num_workers: int = 0) -> None:
    """Decode all images in a folder and its subfolders, and print how many there are and what is wrong with others.

    Args:
        folder (`str` or `Path`): The folder.
        channels (`Channels`, *optional*): Channels of the images; RGB of 8 bits by default.
        num_workers (`int`): Number of worker processes.

    Raises:
        UsageError: If the folder does not exist or has no images, or files cannot be used, which are printed before.
    """
    found = _find_images(Path(folder), channels)
    rows = _rows(found, Path(folder))
    report = check_rows(
        rows.add_column("label", [None] * len(rows)),
        _reader(channels),
        num_classes=0,
        num_workers=num_workers,
        title="checking images",
        labels_optional=True,
    )
    print(f"{folder}: {report.unlabeled} images without labels, {describe_sizes(report.sizes)}")
    if report.channels is not None:
        print(f"  channels of {report.channels.value_type}, mean ± standard deviation: {report.channels}")
    links = [(str(path), f"{path} is a link that leads to no file.") for path in found.broken_links]
    faults = [*links, *report.broken.items()]
    for sentence in group_faults(faults):
        print(f"broken: {sentence}")
    if faults:
        raise UsageError(
            f"`unlabeled_dir`: {len(faults)} images of {folder} cannot be used (see above); repair them, or move "
            "them out of the folder before a run."
        )


def _find_images(folder: Path, channels: Channels | None) -> FilesBelow:
    if not folder.is_dir():
        raise UsageError(f"`unlabeled_dir`: the folder {folder} does not exist.")
    below, suffixes = files_below(folder), readable_suffixes(channels)
    images = [path for path in below.files if is_image(path, suffixes)]
    if not images and not below.broken_links:
        raise UsageError(f"`unlabeled_dir`: {folder} has no images ({', '.join(suffixes)}).")
    return replace(below, files=images)


def _rows(found: FilesBelow, folder: Path) -> Dataset:
    return rows_of_images([(path.relative_to(folder).as_posix(), path) for path in found.files])


def _reader(channels: Channels | None) -> ReadSamples:
    return ReadSamples(LabelMapping({}), channels=channels).unlabeled()


def unlabeled_seed(seed: int) -> int:
    """Derive the seed of the unlabeled images from that of a run."""
    return int(np.random.SeedSequence(seed, spawn_key=(_PURPOSE,)).generate_state(1)[0])


@dataclass(frozen=True)
class UnlabeledAugmentation:
    """Two views of a random crop of an image without labels, and the random numbers with which it will be mixed.

    Both views show the same pixels. The weak one has the geometry of the training augmentation and unchanged colors;
    the strong one has random colors in addition.

    Args:
        training (`TrainingAugmentation`): Geometry, normalization and padding.
        strong_view (`StrongView`): Change of the colors.
        num_classes (`int`): Number of classes K.
    """

    training: TrainingAugmentation
    strong_view: StrongView
    num_classes: int

    def tensors(self, sample: dict[str, Any], random: np.random.Generator) -> dict[str, torch.Tensor]:
        """Augment a sample {image, label}, whose labels only say where the image has no data.

        Returns:
            `dict`: `weak_pixel_values` and `strong_pixel_values` (C, h, w) float32; `is_valid` (h, w) bool, false
            where padded; `mix_box` (4,) int64: first row, first column, and the row and column after the last;
            `mix_priority` (K,) float32: order in which classes are chosen, from the largest.
        """
        pixels, labels = self.training.crop(sample["image"], sample["label"], random)
        strong = self.strong_view(pixels, random)
        weak = pixels.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        # always drawn, so that another way of mixing does not change the views
        box, priority = draw_box(labels.shape, random), random.random(self.num_classes, dtype=np.float32)
        return {
            "weak_pixel_values": self.training.normalized(weak),
            "strong_pixel_values": self.training.normalized(strong),
            "is_valid": torch.from_numpy(labels != IGNORE_INDEX),
            "mix_box": torch.tensor(box),
            "mix_priority": torch.from_numpy(priority),
        }


def draw_box(size: Sequence[int], random: np.random.Generator) -> list[int]:
    """Draw a box that covers half of an image, up to rounding, with a random shape at a random place.

    Its height is the image's times 0.5^u, u uniform in [0, 1), and its width the image's times 0.5^(1 - u), as in
    CutMix-Seg (https://arxiv.org/abs/1906.01916).

    Returns:
        `list[int]`: first row, first column, row after the last, column after the last.
    """
    exponent = random.random()
    shares = (MIXED_SHARE**exponent, MIXED_SHARE ** (1 - exponent))
    sides = [max(1, round(side * share)) for side, share in zip(size, shares, strict=True)]
    starts = [int(random.integers(whole - part + 1)) for whole, part in zip(size, sides, strict=True)]
    return [*starts, *(start + part for start, part in zip(starts, sides, strict=True))]
