"""Regions of large images and their labels, of which no more is decoded than the region shows.

They are indexed as arrays, by two slices that have a start and a stop inside the image: `pixels[rows, columns]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .georeference import NoData, no_data_of
from .images import other_size, read_image_file, read_labels
from .labels import IGNORE_INDEX, LabelMapping
from .tiff_blocks import SUFFIXES, TiffBlocks, tiff_blocks

LARGE_PIXELS = 1 << 24  # 4096 x 4096; decoding this much for every crop takes most of the time of training
_DECODED_PIXELS = 1 << 21  # pixels of blocks that are decoded at a time, if blocks are not larger
Region = tuple[slice, slice]


class Pixels(Protocol):
    """Pixels of an image, (H, W, 3), or of its labels, (H, W): an array, or what is read when it is indexed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and, of an image, number of channels."""

    def __getitem__(self, region: Region, /) -> np.ndarray:
        """Return the pixels of a region."""


@dataclass(frozen=True)
class BlockPixels:
    """Pixels of a large TIFF, of which the blocks that show a region are decoded when it is indexed.

    Args:
        blocks (`TiffBlocks`): The blocks of the file.
        shape (`tuple[int, ...]`): Height, width and, of an image, number of channels.
        decode (`Callable`): Function from a dict with `path` and `bytes` to the image of this file.
    """

    blocks: TiffBlocks
    shape: tuple[int, ...]
    decode: Callable[[dict[str, Any]], Image.Image]

    def __getitem__(self, region: Region, /) -> np.ndarray:
        """Decode a region, a few rows of blocks at a time, since strips are as wide as the image."""
        rows, columns = region
        (block_height, block_width), width = self.blocks.block, columns.stop - columns.start
        step = block_height * max(1, _DECODED_PIXELS // (block_height * max(block_width, width)))
        pixels = np.empty((rows.stop - rows.start, width, *self.shape[2:]), np.uint8)
        for start in range(rows.start // step * step, rows.stop, step):
            part = slice(max(rows.start, start), min(rows.stop, start + step))
            data, top, left = self.blocks.cut(part, columns)
            decoded = np.asarray(self.decode({"path": self.blocks.path, "bytes": data}))
            pixels[part.start - rows.start : part.stop - rows.start] = decoded[
                part.start - top : part.stop - top, columns.start - left : columns.stop - left
            ]
        return pixels


@dataclass(frozen=True)
class ValidLabels:
    """Labels that are ignored where the image has no data."""

    labels: Pixels
    no_data: NoData

    @property
    def shape(self) -> tuple[int, ...]:
        """Height and width."""
        return self.labels.shape

    def __getitem__(self, region: Region, /) -> np.ndarray:
        """Read the labels and the valid pixels of a region."""
        height, width = self.shape
        return _ignored(self.labels[region], self.no_data.mask(*region, (width, height)))


@dataclass(frozen=True)
class NoLabels:
    """Labels of an image that has none: 0 in every pixel, which takes no memory before it is indexed.

    Args:
        shape (`tuple[int, ...]`): Height and width.
    """

    shape: tuple[int, ...]

    def __getitem__(self, region: Region, /) -> np.ndarray:
        """Return zeros."""
        rows, columns = region
        return np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)


@dataclass(frozen=True)
class Window:
    """Part of other pixels, which is not read before it is indexed."""

    pixels: Pixels
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and, of an image, number of channels."""
        height, width = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return (height, width, *self.pixels.shape[2:])

    def __getitem__(self, region: Region, /) -> np.ndarray:
        """Return the pixels of a region, which is counted from the first pixel of the part."""
        rows, columns = region
        top, left = self.rows.start, self.columns.start
        return self.pixels[rows.start + top : rows.stop + top, columns.start + left : columns.stop + left]


def as_pixels(image: Image.Image | Pixels) -> Pixels:
    """Return the array of an image, or what can be indexed as one."""
    return np.asarray(image) if isinstance(image, (Image.Image, np.ndarray)) else image


def whole(pixels: Pixels) -> np.ndarray:
    """Read all pixels."""
    return pixels[0 : pixels.shape[0], 0 : pixels.shape[1]]


def read_large_pair(image: Any, label: Any, mapping: LabelMapping) -> tuple[Pixels, Pixels] | None:
    """Open a large image and its labels without decoding them.

    Args:
        image, label: Files as `datasets.Image(decode=False)` returns them: dicts with `path` and `bytes`.
        mapping (`LabelMapping`): Mapping from raw label values to train ids.

    Returns:
        `tuple`: RGB values (H, W, 3) and train ids (H, W), 255 where ignored; `None` if the image is not large, or one
        of the two must be decoded whole.

    Raises:
        UsageError: If their sizes differ.
    """
    pixels, labels = read_large_image(image), read_large_labels(label, mapping, image)
    if pixels is None or labels is None:
        return None
    if pixels.shape[:2] != labels.shape:
        raise other_size(image, label, pixels.shape[1::-1], labels.shape[::-1])  # type: ignore[arg-type]
    return pixels, labels


def read_large_labels(label: Any, mapping: LabelMapping, image: Any) -> Pixels | None:
    """Open labels without decoding them, as `read_large_pair` does."""
    blocks = large_blocks(label)
    if blocks is None:
        return None
    labels = BlockPixels(blocks, blocks.size, lambda file: read_labels(file, mapping))
    no_data = no_data_of(image)
    return labels if no_data is None else ValidLabels(labels, no_data)


def read_large_image(image: Any) -> Pixels | None:
    """Open a large image without decoding it; `None` if it is not large, or must be decoded whole."""
    blocks = large_blocks(image)
    return None if blocks is None else BlockPixels(blocks, (*blocks.size, 3), read_image_file)


def no_labels(image: Image.Image | Pixels, file: Any = None) -> Pixels:
    """Return labels for an image that has none: 0, and 255 where its file states that it has no data.

    Args:
        image (`Image` or `Pixels` of shape `(H, W, C)`): The image.
        file: Its file, as `datasets.Image(decode=False)` returns it, if it has one.
    """
    labels, no_data = NoLabels(as_pixels(image).shape[:2]), no_data_of(file)
    return labels if no_data is None else ValidLabels(labels, no_data)


def large_blocks(file: Any) -> TiffBlocks | None:
    """Find the blocks of a TIFF with more than `LARGE_PIXELS` pixels; `None` for every other file."""
    path = file.get("path") if not file.get("bytes") else None
    if path is None or not path.lower().endswith(SUFFIXES):
        return None
    try:
        blocks = tiff_blocks(path, LARGE_PIXELS)
    except Exception:  # Pillow raises many kinds for a file that cannot be read, which is refused when it is decoded
        return None
    return blocks if blocks is not None and blocks.size[0] * blocks.size[1] > LARGE_PIXELS else None


def ignore_no_data(labels: Any, image: Any) -> Any:
    """Ignore labels, an image of mode L or an array, where the file of their image states that it has no data."""
    no_data = no_data_of(image)
    if no_data is None:
        return labels
    height, width = np.asarray(labels).shape
    without_data = no_data.mask(slice(0, height), slice(0, width), (width, height))
    ignored = _ignored(np.asarray(labels), without_data)
    return ignored if isinstance(labels, np.ndarray) else Image.fromarray(ignored)


def _ignored(labels: np.ndarray, without_data: np.ndarray) -> np.ndarray:
    if labels.shape != without_data.shape:  # labels of another size are refused where their image is read
        return labels
    return np.where(without_data, np.uint8(IGNORE_INDEX), labels)
