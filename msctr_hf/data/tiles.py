"""Tiles of images as samples of their own: an epoch shows every tile once, and crops are drawn from tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from PIL import Image

from ..errors import UsageError
from .decoding import ReadSamples, attach, reader_of
from .images import read_size
from .predecoded import ReadMapped
from .regions import LARGE_PIXELS, Pixels, Window, as_pixels, large_blocks, whole

Tile = tuple[int, int, int, int]  # top, left, height, width
_COLUMNS = ("tile_top", "tile_left", "tile_height", "tile_width")


@dataclass(frozen=True)
class ReadTiles:
    """Reader of tiles, whose rows are those of the images with the place of the tile.

    Args:
        reader (`ReadSamples` or `ReadMapped`): Reader of the images.
        for_cropping (`bool`): Whether tiles are left unread until they are indexed.
    """

    reader: ReadSamples | ReadMapped
    for_cropping: bool = False

    def __call__(self, batch: dict[str, list]) -> dict[str, list[Any]]:
        """Read tiles: RGB image, train ids (mode L), image id with the first row and column of the tile."""
        places = list(zip(*(batch[name] for name in _COLUMNS), strict=True))
        samples = self.reader.for_crops()({name: rows for name, rows in batch.items() if name not in _COLUMNS})
        parts: dict[str, list[Any]] = {
            name: [self._part(as_pixels(image), place) for image, place in zip(samples[name], places, strict=True)]
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

    def _part(self, pixels: Pixels, place: Tile) -> Pixels | Image.Image:
        top, left, height, width = place
        part = Window(pixels, slice(top, top + height), slice(left, left + width))
        return part if self.for_cropping else Image.fromarray(np.ascontiguousarray(whole(part)))


def cut_into_tiles(dataset: Dataset, tile_size: Sequence[int], overlap: int | None = None) -> Dataset:
    """Divide the images of a data set into tiles, each of which is a sample.

    Args:
        dataset (`datasets.Dataset`): Samples {image, label, image_id} from files or a pre-decoded copy.
        tile_size (`Sequence[int]`): Height and width of a tile, in pixels; smaller images are one tile.
        overlap (`int`, *optional*): Number of pixels that neighboring tiles share. All tiles have the full size then:
            the last of a row or column is shifted inside the image. By default no pixel is in two tiles, and the last
            ones are smaller.

    Returns:
        `datasets.Dataset`: Samples {image, label, image_id}, whose ids end in `@ROW,COLUMN` of the first pixel.

    Raises:
        UsageError: If a large image can only be decoded whole, which every tile would repeat.
    """
    rows, reader = dataset.with_format(None), reader_of(dataset)
    if not isinstance(reader, (ReadSamples, ReadMapped)):
        raise UsageError("`tile_size` needs image files; leave it out for scenes that are drawn on demand.")
    columns = {name: rows[name][:] for name in rows.column_names}
    numbers, places = [], []
    for number, (height, width) in enumerate(_sizes(columns, reader)):
        tiles = list(_tiles(height, width, tile_size, overlap))
        numbers += [number] * len(tiles)
        places += tiles
    cut = {name: [values[number] for number in numbers] for name, values in columns.items()}
    cut |= {name: [place[axis] for place in places] for axis, name in enumerate(_COLUMNS)}
    ids = zip(cut["image_id"], places, strict=True)
    cut["image_id"] = [f"{image_id}@{top},{left}" for image_id, (top, left, _, _) in ids]
    features = Features({**rows.features, **{name: Value("int64") for name in _COLUMNS}})
    return attach(Dataset.from_dict(cut, features=features), ReadTiles(reader))


def tile_starts(side: int, tile: int, overlap: int | None = None) -> list[int]:
    """List the first pixels of the tiles along one side, as `cut_into_tiles` places them."""
    if overlap is None:
        return list(range(0, side, tile))
    if side <= tile:
        return [0]
    return [*range(0, side - tile, tile - overlap), side - tile]


def _tiles(height: int, width: int, tile_size: Sequence[int], overlap: int | None) -> Iterator[Tile]:
    for top in tile_starts(height, tile_size[0], overlap):
        for left in tile_starts(width, tile_size[1], overlap):
            yield top, left, min(tile_size[0], height - top), min(tile_size[1], width - left)


def _sizes(columns: dict[str, list], reader: ReadSamples | ReadMapped) -> Iterator[tuple[int, int]]:
    """Yield height and width of every image, and refuse those that every tile would decode whole."""
    if isinstance(reader, ReadMapped):
        yield from zip(columns["height"], columns["width"], strict=True)
        return
    for image, label in zip(columns["image"], columns["label"], strict=True):
        width, height = read_size(label)
        for file in (image, label):
            if height * width > LARGE_PIXELS and large_blocks(file) is None:
                raise UsageError(
                    f"`tile_size`: {file.get('path')} has {width}x{height} pixels and can only be decoded whole, "
                    "which every tile would repeat; make a copy once (`msctr prepare --predecode --tile_size "
                    "HEIGHT WIDTH --output_dir COPY`), and train with `data_dir` COPY."
                )
        yield height, width
