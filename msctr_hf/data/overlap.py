"""Images that two splits share, found without decoding them."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
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

    Images are the same if their files, or their pixels in a pre-decoded copy, have the same bytes. Some at the start,
    in the middle and at the end are read where sizes agree, and all where these agree too: scanned pages, or tiles
    with margins, may have no others there. Images that are drawn on demand are the same if their ids are.

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
    known, others = _Stored(first), _Stored(second)
    common = set(known.sizes) & set(others.sizes)
    candidates: dict[Any, list[int]] = {}
    for sample, number in known.sampled(common):
        candidates.setdefault(sample, []).append(number)
    return [
        (known.ids[same[-1]], others.ids[number])
        for sample, number in others.sampled(common)
        if (same := [each for each in candidates.get(sample, ()) if known.is_same(each, others, number)])
    ]


class _Stored:
    """Images of a data set as they are stored: sizes, hashes of some of their bytes, and of all of them."""

    def __init__(self, dataset: Dataset):
        self.rows, self.reader = dataset.with_format(None), reader_of(dataset)
        self.ids = self.rows["image_id"][:]
        self.sizes = list(_sizes(dataset))
        self._hashes: dict[int, bytes] = {}

    def sampled(self, common: set[Any]) -> Iterator[tuple[Any, int]]:
        """Yield size and hash of some bytes, and the row, of every image whose size is in `common`."""
        for number, size in enumerate(self.sizes):
            if size and size in common:
                with self._bytes(number) as data:
                    places = (0, len(data) // 2, max(0, len(data) - _SAMPLED_BYTES))
                    some = b"".join(bytes(data[place : place + _SAMPLED_BYTES]) for place in places)
                yield (size, hashlib.sha256(some).digest()), number

    def is_same(self, number: int, others: _Stored, other: int) -> bool:
        """Return whether an image and one of another data set are one file, or have the same bytes."""
        path = self._path(number)
        return (path is not None and path == others._path(other)) or self._hash(number) == others._hash(other)

    def _path(self, number: int) -> str | None:
        if isinstance(self.reader, ReadMapped):
            return None
        file = self.rows[number]["image"]
        return None if file["bytes"] else file["path"]

    def _hash(self, number: int) -> bytes:
        if number not in self._hashes:
            with self._bytes(number) as data:
                self._hashes[number] = hashlib.sha256(data).digest()
        return self._hashes[number]

    @contextmanager
    def _bytes(self, number: int) -> Iterator[Any]:
        """Give access to the bytes of an image; of a file or a pre-decoded copy, only those that are used are read."""
        row = self.rows[number]
        if isinstance(self.reader, ReadMapped):
            yield self.reader.stored_pixels(row)
        elif row["image"]["bytes"]:
            yield row["image"]["bytes"]
        else:
            with (
                Path(row["image"]["path"]).open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                yield data


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
