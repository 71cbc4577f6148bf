"""From undecoded rows {image, label, image_id} to images and train ids, when a row is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from datasets import Dataset, IterableDataset

from ..errors import UsageError
from .images import read_labels, read_sample
from .labels import LabelMapping

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)
Batch = dict[str, list[Any]]


class Reader(Protocol):
    """Turns undecoded rows into samples {image, label, image_id}."""

    def __call__(self, batch: Batch) -> Batch:
        """Samples: RGB image, train ids (mode L), id."""

    def for_crops(self) -> Reader:
        """Give arrays (H, W, 3) and (H, W), which crops take sooner than Pillow's images, where they are at hand."""

    def labels_only(self) -> Reader:
        """The same samples without images."""


@dataclass(frozen=True)
class ReadSamples:
    """Decodes image and label files.

    Args:
        mapping (`LabelMapping`): Raw label values -> train ids.
        as_arrays (`bool`): Give arrays instead of Pillow's images.
        with_images (`bool`): Whether images are read at all.
        embedded (`bool`): Refuse rows with the path of a file instead of the file: a foreign copy must not choose
            which files of this machine are read.
    """

    mapping: LabelMapping
    as_arrays: bool = False
    with_images: bool = True
    embedded: bool = False

    def __call__(self, batch: Batch) -> Batch:
        """Samples: RGB image, train ids (mode L), id."""
        if self.embedded:
            _refuse_paths(batch)
        if not self.with_images:
            labels = [read_labels(file, self.mapping) for file in batch["label"]]
            return {"label": labels, "image_id": batch["image_id"]}
        samples = [
            read_sample(image, label, self.mapping, as_arrays=self.as_arrays)
            for image, label in zip(batch["image"], batch["label"], strict=True)
        ]
        return {
            "image": [image for image, _ in samples],
            "label": [label for _, label in samples],
            "image_id": batch["image_id"],
        }

    def for_crops(self) -> ReadSamples:
        """Give arrays, which crops take sooner than Pillow's images."""
        return replace(self, as_arrays=True)

    def labels_only(self) -> ReadSamples:
        """Leave images alone."""
        return replace(self, with_images=False)


def _refuse_paths(batch: Batch) -> None:
    for column in ("image", "label"):
        for file, image_id in zip(batch[column], batch["image_id"], strict=True):
            if not file.get("bytes"):
                raise UsageError(
                    f"The copy holds no {column} of {image_id}, only the path {file.get('path')}, which is not "
                    "followed; write it with the files themselves (`msctr prepare`, or save_to_disk)."
                )


def attach(dataset: AnyDataset, reader: Reader) -> AnyDataset:
    """Read the rows of a data set, or of a stream, with this reader."""
    if isinstance(dataset, IterableDataset):
        return dataset.map(reader, batched=True, batch_size=1, remove_columns=list(dataset.column_names or []))
    return dataset.with_transform(reader)


def reader_of(dataset: Dataset) -> Reader:
    """The reader that was attached."""
    return dataset.format["format_kwargs"]["transform"]


def rows_for_crops(dataset: Dataset) -> Dataset:
    """The same rows for training, in what crops take soonest."""
    return dataset.with_transform(reader_of(dataset).for_crops())


def rows_of_labels(dataset: Dataset) -> Dataset:
    """The same rows without their images."""
    return dataset.with_transform(reader_of(dataset).labels_only())
