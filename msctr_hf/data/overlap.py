"""Images that two splits share, found without decoding them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset

from .decoding import ReadSamples, reader_of
from .predecoded import ReadMapped

_SAMPLED_BYTES = 4096
_ROWS_AT_A_TIME = 256


def shared_images(first: Dataset, second: Dataset) -> list[tuple[str, str]]:
    """Find images of the second data set that the first contains too, under the same name or another.

    Images are the same if their files, or their pixels in a pre-decoded copy, have the same size and the same bytes at
    the start, in the middle and at the end. These bytes are read only where sizes agree. Images that are drawn on
    demand are the same if their ids are.

    Args:
        first, second (`datasets.Dataset`): Samples {image, label, image_id}. Files are not compared with pixels of a
            copy.

    Returns:
        `list[tuple[str, str]]`: Image id in the first, image id in the second.
    """
    are_stored = [isinstance(reader_of(each), (ReadSamples, ReadMapped)) for each in (first, second)]
    if not any(are_stored):
        ids, other_ids = (each.with_format(None)["image_id"][:] for each in (first, second))
        return [(image_id, image_id) for image_id in sorted(set(ids) & set(other_ids))]
    if not all(are_stored):
        return []
    sizes, other_sizes = list(_sizes(first)), list(_sizes(second))
    common = set(sizes) & set(other_sizes)
    known = dict(_sampled(first, sizes, common))
    return [
        (known[content], image_id) for content, image_id in _sampled(second, other_sizes, common) if content in known
    ]


def _sizes(dataset: Dataset) -> Iterator[Any]:
    """Yield the size of every image: bytes of its file, or height and width."""
    if isinstance(reader_of(dataset), ReadMapped):
        columns = dataset.with_format(None)
        yield from zip(columns["height"][:], columns["width"][:], strict=True)
        return
    for batch in dataset.with_format("arrow").iter(_ROWS_AT_A_TIME):
        files = batch["image"].combine_chunks()
        embedded = pc.binary_length(files.field("bytes")).to_pylist()
        for length, path in zip(embedded, files.field("path").to_pylist(), strict=True):
            yield length or _size_of_file(path)


def _size_of_file(path: str | None) -> int:
    try:
        return os.stat(path or "").st_size
    except OSError:  # reported with the name of the file when the row is used
        return 0


def _sampled(dataset: Dataset, sizes: list[Any], common: set[Any]) -> Iterator[tuple[Any, str]]:
    """Yield size and hash of some bytes, and the id, of every image whose size is in `common`."""
    rows, reader = dataset.with_format(None), reader_of(dataset)
    for number, size in enumerate(sizes):
        if size and size in common:
            row = rows[number]
            data = reader.some_bytes(row) if isinstance(reader, ReadMapped) else _some_bytes(row["image"], size)
            yield (size, hashlib.sha256(data).digest()), row["image_id"]


def _some_bytes(file: dict[str, Any], size: int) -> bytes:
    places = (0, size // 2, max(0, size - _SAMPLED_BYTES))
    if file["bytes"]:
        return b"".join(file["bytes"][place : place + _SAMPLED_BYTES] for place in places)
    with Path(file["path"]).open("rb") as stream:
        return b"".join(_read_at(stream, place) for place in places)


def _read_at(stream: Any, place: int) -> bytes:
    stream.seek(place)
    return stream.read(_SAMPLED_BYTES)
