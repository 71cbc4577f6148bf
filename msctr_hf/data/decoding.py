"""Decoding of rows {image, label, image_id} to images and train ids when they are accessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from datasets import Dataset, IterableDataset

from ..errors import UsageError
from .channels import Channels
from .file_traits import palette_traits, traits_of
from .images import Pair, read_channels, read_image_file, read_labels, read_pair
from .labels import LabelMapping
from .regions import ignore_no_data, no_labels, read_large_image, read_large_labels, read_large_pair

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)
Batch = dict[str, list[Any]]


class Reader(Protocol):
    """Callable that turns undecoded rows into samples {image, label, image_id}."""

    def __call__(self, batch: Batch) -> Batch:
        """Decode rows to samples: RGB image, train ids (mode L), image id."""

    def for_crops(self) -> Reader:
        """Return a reader that yields arrays, or other `Pixels`, if it can, since they are faster to crop."""

    def labels_only(self) -> Reader:
        """Return a reader of the same rows that skips images."""

    def unlabeled(self) -> Reader:
        """Return a reader that does not read labels: those of its samples are `regions.no_labels`."""


@dataclass(frozen=True)
class ReadSamples:
    """Reader that decodes image and label files.

    Args:
        mapping (`LabelMapping`): Mapping from raw label values to train ids.
        as_arrays (`bool`): Whether to return arrays instead of images of Pillow; large TIFF files become
            `regions.Pixels`, which are decoded when they are indexed.
        with_images (`bool`): Whether to read images, and not only labels.
        with_labels (`bool`): Whether to read labels, and not only images.
        is_unlabeled (`bool`): Whether samples without labels of their own get `regions.no_labels`.
        embedded (`bool`): Whether to refuse rows that contain the path of a file instead of the file: a copy made by
            someone else must not choose which files of this machine are read.
        with_traits (`bool`): Whether samples have a column `traits`, which a check of the data set counts, and with
            channels a column `missing`.
        channels (`Channels`, *optional*): Channels of the images, which are then arrays (H, W, N); RGB by default.
        advice (`str`): Sentence that follows the one about a faulty file.
    """

    mapping: LabelMapping
    as_arrays: bool = False
    with_images: bool = True
    with_labels: bool = True
    is_unlabeled: bool = False
    embedded: bool = False
    with_traits: bool = False
    channels: Channels | None = None
    advice: str = ""

    def __call__(self, batch: Batch) -> Batch:
        """Decode rows to samples: RGB image, train ids (mode L), image id."""
        try:
            return self._read(batch)
        except UsageError as error:
            if not self.advice:
                raise
            raise UsageError(f"{error} {self.advice}") from error

    def _read(self, batch: Batch) -> Batch:
        if self.embedded:
            _refuse_missing(batch, ("image", "label") if self.with_labels else ("image",))
        elif self.with_labels:
            _refuse_stored_labels(batch)
        if not self.with_labels:
            return self._read_images(batch)
        if not self.with_images:
            images = batch.get("image", [{}] * len(batch["label"]))
            labels = [self._labels(*pair) for pair in zip(images, batch["label"], strict=True)]
            return {"label": labels, "image_id": batch["image_id"]}
        pairs = [self._pair(*pair) for pair in zip(batch["image"], batch["label"], strict=True)]
        samples = {
            "image": [pair.image for pair in pairs],
            "label": [pair.label for pair in pairs],
            "image_id": batch["image_id"],
        }
        if self.with_traits:
            palettes = [() if self.mapping.by_color else palette_traits(label) for label in batch["label"]]
            traits = [(*traits_of(pair), *colors) for pair, colors in zip(pairs, palettes, strict=True)]
            samples |= {"traits": traits, "missing": [pair.missing for pair in pairs]}
        return samples

    def _read_images(self, batch: Batch) -> Batch:
        if self.is_unlabeled:
            images = list(map(self._image, batch["image"]))
            labels = list(map(no_labels, images, batch["image"]))
            return {"image": images, "label": labels, "image_id": batch["image_id"]}
        if self.channels is None:
            return {"image": list(map(self._image, batch["image"])), "image_id": batch["image_id"]}
        images, missing = zip(*(read_channels(file, self.channels) for file in batch["image"]), strict=True)
        return {"image": list(images), "missing": list(missing), "image_id": batch["image_id"]}

    def _pair(self, image: Any, label: Any) -> Pair:
        lazily = self.as_arrays and self.channels is None  # blocks of a TIFF are decoded as RGB
        if lazily and (large := read_large_pair(image, label, self.mapping)) is not None:
            return Pair(*large)  # type: ignore[arg-type]
        pair = read_pair(image, label, self.mapping, as_arrays=self.as_arrays, channels=self.channels)
        return replace(pair, label=ignore_no_data(pair.label, image))

    def _image(self, file: Any) -> Any:
        if self.as_arrays and self.channels is None and (large := read_large_image(file)) is not None:
            return large
        return read_image_file(file, self.channels, as_array=self.as_arrays)

    def _labels(self, image: Any, label: Any) -> Any:
        if self.as_arrays and (large := read_large_labels(label, self.mapping, image)) is not None:
            return large
        return ignore_no_data(read_labels(label, self.mapping), image)

    def for_crops(self) -> ReadSamples:
        """Return a reader that yields arrays, or `Pixels` of large TIFF files, which are faster to crop."""
        return replace(self, as_arrays=True)

    def labels_only(self) -> ReadSamples:
        """Return a reader that skips images."""
        return replace(self, with_images=False)

    def images_only(self) -> ReadSamples:
        """Return a reader that skips labels, which may be missing.

        With channels, its samples have a column `missing`: where an image has no data, (H, W, N) bool, or `None`.
        """
        return replace(self, with_labels=False)

    def unlabeled(self) -> ReadSamples:
        """Return a reader that does not read labels, which may be missing: those of its samples are `no_labels`."""
        return replace(self, with_labels=False, is_unlabeled=True)

    def with_channels(self, channels: Channels) -> ReadSamples:
        """Return a reader whose images have these channels."""
        return replace(self, channels=channels)

    def for_check(self) -> ReadSamples:
        """Return a reader whose samples have columns `traits` and `missing`, as of `images_only`."""
        return replace(self, with_traits=True)


def is_empty(file: dict[str, Any] | None) -> bool:
    """Return whether the cell of a file contains neither its bytes nor its path."""
    return not file or not (file.get("bytes") or file.get("path"))


def _refuse_missing(batch: Batch, columns: Sequence[str]) -> None:
    for column in columns:
        for file, image_id in zip(batch[column], batch["image_id"], strict=True):
            if is_empty(file):
                raise UsageError(f"The copy does not contain the {column} of {image_id}: its cell is empty.")
            if not file.get("bytes"):
                raise UsageError(
                    f"The copy does not contain the {column} of {image_id}, only the path {file.get('path')}, which "
                    "is not followed; write a copy that contains the files (`msctr prepare`, or save_to_disk)."
                )


def _refuse_stored_labels(batch: Batch) -> None:
    """Refuse labels that `Dataset.map` stored instead of the file: they would be mapped to train ids a second time."""
    if any(file and file.get("bytes") and not file.get("path") for file in batch.get("label", ())):
        raise UsageError(
            "The labels of these rows were stored by `Dataset.map` and are train ids already, which would be mapped a "
            "second time; change samples when they are read, as in a collate function."
        )


def attach(dataset: AnyDataset, reader: Reader) -> AnyDataset:
    """Attach the reader that decodes the rows of a data set, or of a stream, when they are accessed."""
    if isinstance(dataset, IterableDataset):
        return dataset.map(reader, batched=True, batch_size=1, remove_columns=list(dataset.column_names or []))
    return dataset.with_transform(reader)


def reader_of(dataset: Dataset) -> Reader:
    """Return the reader that was attached to a data set."""
    return dataset.format["format_kwargs"]["transform"]


def files_of(dataset: Dataset, column: str) -> list[Path] | None:
    """Return the file of the image or the label of every row; `None` if the data set does not consist of files."""
    reader = reader_of(dataset)
    if not isinstance(reader, ReadSamples) or reader.embedded:
        return None
    return [Path(file["path"]) for file in dataset.with_format(None)[column][:]]


def rows_with_channels(dataset: Dataset, channels: Channels) -> Dataset:
    """Return the same data set, with images that must have these channels."""
    return dataset.with_transform(reader_of(dataset).with_channels(channels))  # type: ignore[attr-defined]


def rows_without_labels(dataset: Dataset) -> Dataset:
    """Return the images of a data set without their labels: 0 everywhere, and 255 where an image has no data."""
    rows, reader = dataset.with_format(None), reader_of(dataset)
    if "label" in rows.column_names:  # so that nothing can read them
        rows = rows.remove_columns("label")
    return rows.with_transform(reader.unlabeled())


def rows_for_crops(dataset: Dataset) -> Dataset:
    """Return the same data set, with samples decoded to the form that is fastest to crop."""
    return dataset.with_transform(reader_of(dataset).for_crops())


def rows_of_labels(dataset: Dataset) -> Dataset:
    """Return the same data set without its images."""
    return dataset.with_transform(reader_of(dataset).labels_only())
