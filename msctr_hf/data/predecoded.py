"""Copies of data sets as uncompressed, memory-mapped files, of which a crop reads only the part that it shows.

FOLDER/predecoded.json            data set, classes, label values, complete splits
FOLDER/SPLIT.images, .labels      RGB values and train ids of 8 bits, image after image
FOLDER/SPLIT.index.jsonl          image id, size and first pixel of every image, the size of its tiles, and whether its
                                  file stated a no-data value

Labels are ignored where an image has no data, but this is not stored apart from them: images that are read without
labels count as valid everywhere, and a warning says so if an image has areas without data.

The pixels of an image that is larger than a tile are stored tile after tile, row by row; tiles at the right and the
bottom are smaller. A crop then reads a few places of the disk instead of one for each of its rows.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from datasets import Dataset
from PIL import Image

from ..errors import UsageError, as_usage_error, warn_caller
from .decoding import rows_for_crops
from .georeference import no_data_of
from .label_record import LabelRecord, label_differences
from .regions import NoLabels, Pixels, Region, as_pixels, whole

DESCRIPTION = "predecoded.json"
_TILE_COLUMNS = ("stored_tile_height", "stored_tile_width")
_OTHER_LABELS = "{} was pre-decoded with other label values"


@dataclass(frozen=True)
class ReadMapped:
    """Reader that turns rows of the index of a pre-decoded copy into samples {image, label, image_id}.

    Args:
        folder (`str`): Folder of the copy.
        as_arrays (`bool`): Whether to return memory-mapped arrays instead of images of Pillow.
        with_images, with_labels (`bool`): What is read.
        states_no_data (`bool`): Whether a file of an image stated a no-data value.
    """

    folder: str
    as_arrays: bool = False
    with_images: bool = True
    with_labels: bool = True
    states_no_data: bool = False

    def __call__(self, batch: dict[str, list]) -> dict[str, list[Any]]:
        """Look up the samples of rows: RGB image, train ids (mode L), image id."""
        columns = ("split", "start", "height", "width", *_TILE_COLUMNS)
        places = list(zip(*(batch[name] for name in columns), strict=True))
        samples: dict[str, list[Any]] = {
            "label": [
                self._image(split, "labels", start, (h, w), tile) if self.with_labels else NoLabels((h, w))
                for split, start, h, w, *tile in places
            ],
            "image_id": batch["image_id"],
        }
        if self.with_images:
            samples["image"] = [
                self._image(split, "images", 3 * start, (h, w, 3), tile) for split, start, h, w, *tile in places
            ]
        return samples

    def for_crops(self) -> ReadMapped:
        """Return a reader that yields memory-mapped arrays, of which a crop reads only the part that it shows."""
        return replace(self, as_arrays=True)

    def labels_only(self) -> ReadMapped:
        """Return a reader that skips images."""
        return replace(self, with_images=False)

    def unlabeled(self) -> ReadMapped:
        """Return a reader that does not read labels: they are 0, also where an image has no data."""
        if self.states_no_data:
            warn_caller(
                f"{self.folder}: a pre-decoded copy does not store where images have no data, so all of their pixels "
                "count as valid without labels; read the original files or a parquet copy to leave such pixels out."
            )
        return replace(self, with_labels=False)

    def stored_pixels(self, row: dict[str, Any]) -> np.ndarray:
        """Return the values of the pixels of an image as the file has them in order, uint8, without reading them."""
        start, size = 3 * row["start"], 3 * row["height"] * row["width"]
        return _map(f"{self.folder}/{row['split']}.images")[start : start + size]

    def _image(
        self, split: str, kind: str, start: int, shape: tuple[int, ...], tile: Sequence[int]
    ) -> Image.Image | Pixels:
        path = f"{self.folder}/{split}.{kind}"
        values: Pixels
        if tile[0] < shape[0] or tile[1] < shape[1]:
            values = MappedTiles(path, start, shape, (tile[0], tile[1]))
        else:
            values = _map(path)[start : start + math.prod(shape)].reshape(shape)
        return values if self.as_arrays else Image.fromarray(whole(values))


@dataclass(frozen=True)
class MappedTiles:
    """Pixels of an image that is stored tile by tile in a file, of which an index maps only the tiles that it shows.

    Args:
        path (`str`): The file.
        start (`int`): Position of the first value of the image.
        shape (`tuple[int, ...]`): Height, width and, of an image, number of channels.
        tile (`tuple[int, int]`): Height and width of a tile.
    """

    path: str
    start: int
    shape: tuple[int, ...]
    tile: tuple[int, int]

    def __getitem__(self, region: Region, /) -> np.ndarray:
        """Read a region."""
        rows, columns = region
        pixels = np.empty((rows.stop - rows.start, columns.stop - columns.start, *self.shape[2:]), np.uint8)
        for tile in _tiles_of(self.shape, self.tile, region):
            shown = tuple(_overlap(*sides) for sides in zip(region, tile, strict=True))
            pixels[_within(shown, region)] = self._mapped(*tile)[_within(shown, tile)]
        return pixels

    def _mapped(self, rows: slice, columns: slice) -> np.memmap:
        """Map a tile, for a moment: pages that stay mapped count as memory of the process, up to the whole file."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        before = rows.start * self.shape[1] + height * columns.start  # pixels of the tiles above and to the left
        offset = self.start + before * math.prod(self.shape[2:])
        return np.memmap(self.path, np.uint8, "r", offset, (height, width, *self.shape[2:]))


def _tiles_of(shape: Sequence[int], tile: Sequence[int], region: Region | None = None) -> Iterator[Region]:
    """Yield rows and columns of the tiles that show a region of an image, in the order in which they are stored."""
    rows, columns = region or (slice(0, shape[0]), slice(0, shape[1]))
    for top in range(rows.start // tile[0] * tile[0], rows.stop, tile[0]):
        for left in range(columns.start // tile[1] * tile[1], columns.stop, tile[1]):
            yield slice(top, min(top + tile[0], shape[0])), slice(left, min(left + tile[1], shape[1]))


def _overlap(one: slice, other: slice) -> slice:
    return slice(max(one.start, other.start), min(one.stop, other.stop))


def _within(part: Sequence[slice], whole: Sequence[slice]) -> tuple[slice, ...]:
    """Count a part of an image from the first row and column of a larger part."""
    return tuple(
        slice(small.start - large.start, small.stop - large.start) for small, large in zip(part, whole, strict=True)
    )


@functools.lru_cache(maxsize=16)
def _map(path: str) -> np.memmap:
    return np.memmap(path, dtype=np.uint8, mode="r")


def holds_predecoded(folder: Path) -> bool:
    """Return whether a folder is a pre-decoded copy."""
    return (folder / DESCRIPTION).is_file()


def predecoded_splits(folder: Path) -> list[str]:
    """List the complete splits of a pre-decoded copy."""
    return _read_description(folder)["splits"]


def files_of_split(split: str, folder: Path) -> list[Path]:
    """List the files that a pre-decoded copy has for a split; they need not exist."""
    return [folder / f"{split}.{ending}" for ending in ("images", "labels", "index.jsonl")]


def index_predecoded(
    split: str, folder: Path, *, name: str, classes: Sequence[str], labels: LabelRecord | None = None
) -> tuple[Dataset, ReadMapped]:
    """Index one split of a copy of the data set `name`; return rows and the reader that looks up samples.

    Args:
        split (`str`): train, validation or test.
        folder (`Path`): Folder of the copy.
        name (`str`): Name of the data set.
        classes (`Sequence[str]`): Class names of the data set.
        labels (`dict`, *optional*): Label values that the reader expects, as from `label_record`.

    Raises:
        UsageError: If the copy is of another data set or was made with other label values, or the split is missing or
            incomplete.
    """
    description = _read_description(folder)
    if description["classes"] != list(classes):
        raise UsageError(f"{folder} was pre-decoded for {description['dataset']}, not for {name}.")
    _refuse_other_labels(description, labels, _OTHER_LABELS.format(folder), "make the copy again")
    if split not in description["splits"]:
        raise UsageError(
            f"{folder} has the splits {description['splits']}, not {split!r}; add it with `msctr prepare`."
        )
    for kind in ("images", "labels"):
        if not (folder / f"{split}.{kind}").is_file():
            raise UsageError(f"{folder / f'{split}.{kind}'} is missing; make the copy again with `msctr prepare`.")
    with as_usage_error(OSError, ValueError, prefix=f"{folder}: the index of {split} cannot be read: "):
        rows = list(_read_index(folder / f"{split}.index.jsonl"))
    columns = {column: [row[column] for row in rows] for column in ("image_id", "start", "height", "width")}
    # an image that is not stored tile by tile is a tile, as all are in copies of older versions
    tiles = zip(*(row.get("tile", (row["height"], row["width"])) for row in rows), strict=True)
    columns |= dict(zip(_TILE_COLUMNS, map(list, tiles), strict=True))
    reader = ReadMapped(str(folder.resolve()), states_no_data=any(row.get("states_no_data") for row in rows))
    return Dataset.from_dict({**columns, "split": [split] * len(rows)}), reader


def write_predecoded(
    dataset: Dataset,
    split: str,
    folder: Path,
    *,
    name: str,
    classes: Sequence[str],
    label_records: Sequence[LabelRecord] = (),
    tile_size: Sequence[int] | None = None,
) -> Iterator[int]:
    """Decode a split into a folder, resuming where an earlier call stopped; yield the number of finished images.

    Args:
        dataset (`datasets.Dataset`): Samples {image, label, image_id}.
        split (`str`): train, validation or test.
        folder (`Path`): Folder of the copy.
        name (`str`): Name of the data set.
        classes (`Sequence[str]`): Class names of the data set.
        label_records (`Sequence[dict]`): Label values for which the copy may be read, as from `label_record`: those
            that were mapped, and those of the description if `id_map` or `reduce_zero_label` replaced them.
        tile_size (`Sequence[int]`, *optional*): Height and width of the tiles in which larger images are stored; by
            default images are stored whole.

    Raises:
        UsageError: If the folder contains another data set, or a sample cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = _description(name, classes, label_records, folder)
    index = folder / f"{split}.index.jsonl"
    done = list(_read_index(index)) if index.exists() else []
    start = done[-1]["start"] + done[-1]["height"] * done[-1]["width"] if done else 0
    samples, files = rows_for_crops(dataset), dataset.with_format(None)
    with (
        _open_at(folder / f"{split}.images", 3 * start) as images,
        _open_at(folder / f"{split}.labels", start) as labels,
        _open_at(index, sum(len(json.dumps(row)) + 1 for row in done)) as lines,
    ):
        for number in range(len(done), len(dataset)):
            sample = samples[number]
            image_id, pixels, train_ids = sample["image_id"], as_pixels(sample["image"]), as_pixels(sample["label"])
            height, width = train_ids.shape
            tile = _stored_tile(height, width, tile_size)
            for region in _tiles_of((height, width), tile or (height, width)):
                images.write(pixels[region].tobytes())
                labels.write(train_ids[region].tobytes())
            del sample, pixels, train_ids  # a large image must be freed before the next is read
            for file in (images, labels):
                file.flush()
            # written after its pixels, so that an interruption leaves no line without pixels
            row = {"image_id": image_id, "start": start, "height": height, "width": width}
            row |= {"tile": tile} if tile is not None else {}
            row |= {"states_no_data": True} if no_data_of(files[number].get("image")) is not None else {}
            lines.write(json.dumps(row).encode() + b"\n")
            start += height * width
            yield number + 1
        for file in (images, labels, lines):
            file.flush()
            os.fsync(file.fileno())
    splits = sorted({*description["splits"], split})
    (folder / DESCRIPTION).write_text(json.dumps({**description, "splits": splits}, indent=2), encoding="utf-8")


def refuse_other_tiles(folder: Path, tile_size: Sequence[int] | None) -> None:
    """Refuse a copy with images that are stored in other tiles, since images that are copied are not written again.

    Raises:
        UsageError: The message names the tiles.
    """
    for index in sorted(folder.glob("*.index.jsonl")):
        with as_usage_error(OSError, ValueError, prefix=f"{index} cannot be read: "):
            rows = list(_read_index(index))
        for row in rows:
            stored, wanted = row.get("tile"), _stored_tile(row["height"], row["width"], tile_size)
            if stored != wanted:
                raise UsageError(
                    f"`tile_size`: {folder} stores {row['image_id']} {_in_tiles(stored)} and not {_in_tiles(wanted)}; "
                    "keep the setting, or choose another folder."
                )


def _stored_tile(height: int, width: int, tile_size: Sequence[int] | None) -> list[int] | None:
    """Return the size of the tiles in which an image is stored; `None` if it is stored whole."""
    return list(tile_size) if tile_size and (tile_size[0] < height or tile_size[1] < width) else None


def _in_tiles(tile: Sequence[int] | None) -> str:
    return "whole" if tile is None else f"in tiles of {tile[0]} x {tile[1]} pixels"


def _description(name: str, classes: Sequence[str], labels: Sequence[LabelRecord], folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.exists():
        return {"dataset": name, "classes": list(classes), "splits": [], "labels": list(labels)}
    description = _read_description(folder)
    if description["classes"] != list(classes):
        raise UsageError(f"{folder} was pre-decoded for {description['dataset']}; choose another folder.")
    for record in labels[:1]:
        _refuse_other_labels(description, record, _OTHER_LABELS.format(folder), "choose another folder")
    return description


def _refuse_other_labels(description: dict[str, Any], labels: LabelRecord | None, fault: str, remedy: str) -> None:
    """Refuse label values with which a copy was not made; copies of older versions do not say theirs."""
    recorded = description.get("labels", [])
    differences = [label_differences(record, labels) for record in recorded] if labels is not None else []
    if differences and all(differences):
        raise UsageError(f"{fault} ({differences[0]}); {remedy}.")


def _read_description(folder: Path) -> dict[str, Any]:
    with as_usage_error(OSError, ValueError, prefix=f"{folder / DESCRIPTION} cannot be read: "):
        return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))


def _read_index(path: Path) -> Iterator[dict[str, Any]]:
    """Read the complete lines of an index, of which an interruption may have cut off the last."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def _open_at(path: Path, size: int) -> IO[bytes]:
    """Open a file for writing after its first `size` bytes, and drop the rest."""
    file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 (the caller closes it)
    file.truncate(size)
    file.seek(size)
    return file
