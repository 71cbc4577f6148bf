"""Tiles of images as samples of their own: an epoch shows every tile once, and crops are drawn from tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from PIL import Image

from ..errors import UsageError
from .decoding import ReadSamples, attach, reader_of
from .images import read_image_file, read_size
from .predecoded import ReadMapped
from .regions import LARGE_PIXELS, Pixels, Window, as_pixels, large_blocks, whole

Tile = tuple[int, int, int, int]  # top, left, height, width
_IMAGE = "tile_image"
_COLUMNS = ("tile_top", "tile_left", "tile_height", "tile_width")


@dataclass(frozen=True)
class ReadTiles:
    """Reader of tiles, whose rows have the number of the image and the place of the tile.

    Args:
        images (`datasets.Dataset`): Undecoded rows of the images, which those of tiles do not repeat: a copy may hold
            the whole files in them.
        reader (`ReadSamples` or `ReadMapped`): Reader of the images.
        for_cropping (`bool`): Whether tiles are left unread until they are indexed.
    """

    images: Dataset
    reader: ReadSamples | ReadMapped
    for_cropping: bool = False

    def __call__(self, batch: dict[str, list]) -> dict[str, list[Any]]:
        """Read tiles: RGB image, or an array if `reader` states channels; train ids (mode L); image id with the first
        row and column of the tile.
        """
        places = list(zip(*(batch[name] for name in _COLUMNS), strict=True))
        samples = self.reader.for_crops()(self.images[batch[_IMAGE]])
        parts: dict[str, list[Any]] = {
            name: [
                self._part(as_pixels(image), place, name) for image, place in zip(samples[name], places, strict=True)
            ]
            for name in ("image", "label")
            if name in samples
        }
        return {**parts, "image_id": batch["image_id"]}

    def for_crops(self) -> ReadTiles:
        """Return a reader of tiles that are left unread until they are indexed."""
        return replace(self, for_cropping=True)

    def labels_only(self) -> ReadTiles:
        """Return a reader that skips images."""
        return replace(self, reader=self.reader.labels_only())

    def unlabeled(self) -> ReadTiles:
        """Return a reader that does not read labels."""
        return replace(self, reader=self.reader.unlabeled())

    def _part(self, pixels: Pixels, place: Tile, name: str) -> Pixels | Image.Image:
        top, left, height, width = place
        part = Window(pixels, slice(top, top + height), slice(left, left + width))
        if self.for_cropping:
            return part
        values = np.ascontiguousarray(whole(part))
        return values if name == "image" and _has_channels(self.reader) else Image.fromarray(values)


def cut_into_tiles(dataset: Dataset, tile_size: Sequence[int], overlap: int | None = None) -> Dataset:
    """Divide the images of a data set into tiles, each of which is a sample.

    Args:
        dataset (`datasets.Dataset`): Samples {image, label, image_id} from files or a pre-decoded copy.
        tile_size (`Sequence[int]`): Height and width of a tile, in pixels; smaller images are one tile.
        overlap (`int`, *optional*): Number of pixels that neighboring tiles share. All tiles have the full size then:
            the last of a row or column is shifted inside the image. By default no pixel is in two tiles, and all have
            nearly the same size, which is at most the full one: a strip of a few pixels is no input for a network.

    Returns:
        `datasets.Dataset`: Samples {image, label, image_id}, whose ids end in `@ROW,COLUMN` of the first pixel.

    Raises:
        UsageError: If a large image can only be decoded whole, which every tile would repeat.
    """
    rows, reader = dataset.with_format(None), reader_of(dataset)
    if not isinstance(reader, (ReadSamples, ReadMapped)):
        raise UsageError("`tile_size` needs image files; leave it out for scenes that are drawn on demand.")
    image_ids = rows["image_id"][:]
    cut: dict[str, list] = {name: [] for name in ("image_id", _IMAGE, *_COLUMNS)}
    for number, (height, width) in enumerate(_sizes(rows, reader)):
        for place in _tiles(height, width, tile_size, overlap):
            entries = (f"{image_ids[number]}@{place[0]},{place[1]}", number, *place)
            for name, entry in zip(cut, entries, strict=True):
                cut[name].append(entry)
    features = Features({name: Value("string" if name == "image_id" else "int64") for name in cut})
    return attach(Dataset.from_dict(cut, features=features), ReadTiles(rows, reader))


def tile_starts(side: int, tile: int, overlap: int | None = None) -> list[int]:
    """List the first pixels of the tiles along one side, as `cut_into_tiles` places them."""
    if overlap is None:
        count = math.ceil(side / tile)
        return [side * number // count for number in range(count)]
    if side <= tile:
        return [0]
    return [*range(0, side - tile, tile - overlap), side - tile]


def _tiles(height: int, width: int, tile_size: Sequence[int], overlap: int | None) -> Iterator[Tile]:
    for top, rows in _spans(height, tile_size[0], overlap):
        for left, columns in _spans(width, tile_size[1], overlap):
            yield top, left, rows, columns


def _spans(side: int, tile: int, overlap: int | None) -> Iterator[tuple[int, int]]:
    """Yield the first pixel and the length of the tiles along one side."""
    starts = tile_starts(side, tile, overlap)
    if overlap is None:
        yield from ((start, stop - start) for start, stop in itertools.pairwise([*starts, side]))
    else:
        yield from ((start, min(tile, side)) for start in starts)


def _sizes(rows: Dataset, reader: ReadSamples | ReadMapped) -> Iterator[tuple[int, int]]:
    """Yield height and width of every image, and refuse those that every tile would decode whole."""
    if isinstance(reader, ReadMapped):
        yield from zip(rows["height"][:], rows["width"][:], strict=True)
        return
    remedy = (
        "make a copy once (`msctr prepare --predecode --tile_size HEIGHT WIDTH --output_dir COPY`), and train with "
        "`data_dir` COPY."
    )
    if not reader.with_labels:  # a copy is made of images with labels
        remedy = "save it as a TIFF in tiles, which is read by regions, or cut it into smaller images."
    if _has_channels(reader):
        remedy = "save it in parts, since with `num_channels` no image is read by regions."
    for row in rows:
        width, height = read_size(row["label"]) if reader.with_labels else _size_of_image(row["image"], reader)
        for file in (row["image"], row["label"]) if reader.with_labels else (row["image"],):
            if height * width > LARGE_PIXELS and (_has_channels(reader) or large_blocks(file) is None):
                raise UsageError(
                    f"`tile_size`: {file.get('path')} has {width}x{height} pixels and can only be decoded whole, "
                    f"which every tile would repeat; {remedy}"
                )
        yield height, width


def _size_of_image(file: Any, reader: ReadSamples) -> tuple[int, int]:
    """Return the width and height of an image, which is decoded if Pillow may not know its format."""
    if not _has_channels(reader):
        return read_size(file)
    height, width = read_image_file(file, reader.channels).shape[:2]
    return width, height


def _has_channels(reader: ReadSamples | ReadMapped) -> bool:
    """Return whether images are arrays (H, W, N) with the values of their files, and not RGB."""
    return isinstance(reader, ReadSamples) and reader.channels is not None
