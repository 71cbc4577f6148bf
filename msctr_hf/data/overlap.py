"""Images that two splits share, found without decoding them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
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
    images, others = _Stored(first), _Stored(second)
    common = set(images.sizes) & set(others.sizes)
    alike: dict[Any, list[int]] = {}
    for sample, number in images.sampled(common):
        alike.setdefault(sample, []).append(number)
    by_contents: dict[Any, dict[Any, str]] = {}  # of images whose sample another one has
    shared = []
    for sample, number in others.sampled(common):
        if sample in alike:
            if sample not in by_contents:
                by_contents[sample] = {images.contents(each): images.ids[each] for each in alike[sample]}
            if image_id := by_contents[sample].get(others.contents(number)):
                shared.append((image_id, others.ids[number]))
    return shared


class _Stored:
    """Images of a data set as they are stored: sizes, hashes of some of their bytes, and of all of them."""

    def __init__(self, dataset: Dataset):
        self.rows, self.reader = dataset.with_format(None), reader_of(dataset)
        self.ids = self.rows["image_id"][:]
        self.sizes = list(_sizes(dataset))

    def sampled(self, common: set[Any]) -> Iterator[tuple[Any, int]]:
        """Yield size and hash of some bytes, and the row, of every readable image whose size is in `common`."""
        for number, size in enumerate(self.sizes):
            if size and size in common:
                read, length = self._opened(number)
                places = (0, length // 2, max(0, length - _SAMPLED_BYTES))
                try:
                    sample = b"".join(read(place, place + _SAMPLED_BYTES) for place in places)
                except OSError:  # reported with the name of the file when the row is used
                    continue
                yield (size, hashlib.sha256(sample).digest()), number

    def contents(self, number: int) -> bytes:
        """Hash all bytes of an image."""
        read, length = self._opened(number)
        return hashlib.sha256(read(0, length)).digest()

    def _opened(self, number: int) -> tuple[Callable[[int, int], bytes], int]:
        """Return a function that reads bytes of an image, from one place to another, and their number."""
        row = self.rows[number]
        if isinstance(self.reader, ReadMapped):
            pixels = self.reader.stored_pixels(row)
            return lambda start, end: pixels[start:end].tobytes(), len(pixels)
        data, path = row["image"]["bytes"], row["image"]["path"]
        if data:
            return lambda start, end: data[start:end], len(data)
        return lambda start, end: _read(path, start, end), self.sizes[number]


def _read(path: str, start: int, end: int) -> bytes:
    with Path(path).open("rb") as file:
        file.seek(start)
        return file.read(end - start)


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
