"""Parts of TIFF files: the blocks (tiles or strips) that show a region, as a small TIFF of their own.

Only these blocks are read from the disk, and whoever decodes the whole file decodes the small one to the same pixels:
every compression, predictor, bit depth, palette and number of channels is that of the file.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin

SUFFIXES = (".tif", ".tiff")

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _ORIENTATION, _CHANNELS, _ROWS_PER_STRIP, _STRIP_LENGTHS = 273, 274, 277, 278, 279
_PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_LENGTHS = 284, 322, 323, 324, 325
# what decoding depends on, and is the same for every block: bits, compression, colors, order of bits, channels,
# planes, fax options, predictor, palette, inks, transparency, type of the values, tables of JPEG, and YCbCr
_KEPT = (258, 259, 262, 266, 277, 284, 292, 293, 317, 320, 332, 338, 339, 347, 529, 530, 531, 532)
_UNCOMPRESSED, _OLD_JPEG, _YCBCR = 1, 6, 6
_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 7: "s"}  # TIFF type -> how Python packs its values
_SHORT, _LONG, _RATIONAL, _LONG8 = 3, 4, 5, 16


@dataclass(frozen=True)
class TiffBlocks:
    """Blocks of the first image of a TIFF file.

    Args:
        path (`str`): The file.
        size (`tuple[int, int]`): Height and width of the image, in pixels.
        block (`tuple[int, int]`): Height and width of a block; those at the right and the bottom may be smaller.
        planes (`int`): Number of planes, each with its own blocks: the channels, if they are stored one by one.
        places (`Sequence[tuple[int, int]]`): Offset and length of every block, in bytes, row by row, plane by plane.
        entries (`dict[int, tuple[int, Any]]`): Tag -> type and value, of what decoding depends on.
        byte_order (`str`): "<" or ">".
        is_tiled (`bool`): Whether blocks are tiles instead of strips.
        row_bytes (`int`): Number of bytes of a row of an uncompressed strip; 0 if blocks are read whole.
    """

    path: str
    size: tuple[int, int]
    block: tuple[int, int]
    planes: int
    places: Sequence[tuple[int, int]]
    entries: dict[int, tuple[int, Any]]
    byte_order: str
    is_tiled: bool
    row_bytes: int

    def cut(self, rows: slice, columns: slice) -> tuple[bytes, int, int]:
        """Read the blocks that show a region.

        Args:
            rows, columns (`slice`): Region in pixels, with a start and a stop inside the image.

        Returns:
            `tuple`: small TIFF file; row and column of its first pixel in the image.
        """
        (height, width), (block_height, block_width) = self.size, self.block
        per_row = -(-width // block_width)
        per_plane = per_row * -(-height // block_height)
        first_row, last_row = rows.start // block_height, (rows.stop - 1) // block_height
        first_column, last_column = columns.start // block_width, (columns.stop - 1) // block_width
        top, left = first_row * block_height, first_column * block_width
        bottom, right = min(height, (last_row + 1) * block_height), min(width, (last_column + 1) * block_width)
        needed = [
            self.places[plane * per_plane + row * per_row + column]
            for plane in range(self.planes)
            for row in range(first_row, last_row + 1)
            for column in range(first_column, last_column + 1)
        ]
        block = self.block
        with open(self.path, "rb") as file:
            if not self.row_bytes:
                data = [_read(file, offset, length) for offset, length in needed]
            else:  # the rows of an uncompressed file are one after the other, and become a strip
                per_plane = len(needed) // self.planes
                data = [
                    _read_rows(file, needed[plane * per_plane : (plane + 1) * per_plane], self.row_bytes,
                               rows.start - top, rows.stop - top, block_height)
                    for plane in range(self.planes)
                ]  # fmt: skip
                top, bottom = rows.start, rows.stop
                block = (bottom - top, width)
        return self._small_tiff((bottom - top, right - left), block, data), top, left

    def _small_tiff(self, size: tuple[int, int], block: tuple[int, int], data: Sequence[bytes]) -> bytes:
        """Write a TIFF file of these blocks."""
        offsets, position = [], 8
        for one in data:
            offsets.append(position)
            position += len(one)
        lengths = list(map(len, data))
        entries = {**self.entries, _WIDTH: (_LONG, (size[1],)), _HEIGHT: (_LONG, (size[0],))}
        if self.is_tiled:
            entries |= {_TILE_WIDTH: (_LONG, (block[1],)), _TILE_HEIGHT: (_LONG, (block[0],))}
            entries |= {_TILE_OFFSETS: (_LONG, offsets), _TILE_LENGTHS: (_LONG, lengths)}
        else:
            entries |= {_ROWS_PER_STRIP: (_LONG, (block[0],))}
            entries |= {_STRIP_OFFSETS: (_LONG, offsets), _STRIP_LENGTHS: (_LONG, lengths)}
        padding = position % 2  # the directory starts at an even byte
        start = position + padding
        header = (b"II" if self.byte_order == "<" else b"MM") + struct.pack(f"{self.byte_order}HI", 42, start)
        return b"".join([header, *data, b"\0" * padding, _directory(entries, start, self.byte_order)])


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _read_rows(
    file: BinaryIO, strips: Sequence[tuple[int, int]], row_bytes: int, start: int, stop: int, strip_rows: int
) -> bytes:
    """Read rows of uncompressed strips, counted from the first row of the first strip."""
    parts = []
    for number, (offset, _) in enumerate(strips):
        above, below = max(start - number * strip_rows, 0), min(stop - number * strip_rows, strip_rows)
        parts.append(_read(file, offset + above * row_bytes, (below - above) * row_bytes))
    return b"".join(parts)


def _directory(entries: dict[int, tuple[int, Any]], start: int, byte_order: str) -> bytes:
    """Write the directory of a TIFF file that begins at a byte of the file."""
    end = start + 2 + 12 * len(entries) + 4
    lines, values = [struct.pack(f"{byte_order}H", len(entries))], b""
    for tag, (kind, value) in sorted(entries.items()):
        packed, count = _packed(kind, value, byte_order)
        if len(packed) > 4:
            place, values = end + len(values), values + packed + b"\0" * (len(packed) % 2)
            packed = struct.pack(f"{byte_order}I", place)
        lines.append(struct.pack(f"{byte_order}HHI", tag, kind, count) + packed.ljust(4, b"\0"))
    return b"".join([*lines, b"\0\0\0\0", values])


def _packed(kind: int, value: Any, byte_order: str) -> tuple[bytes, int]:
    """Return the bytes of the values of a tag, and their number."""
    if isinstance(value, bytes):
        return value, len(value)
    if kind == _RATIONAL:
        numbers = [part for each in value for part in (each.numerator, each.denominator)]
        return struct.pack(f"{byte_order}{len(numbers)}I", *numbers), len(value)
    return struct.pack(f"{byte_order}{len(value)}{_FORMATS[kind]}", *value), len(value)


def tiff_blocks(path: str | Path, largest_block: int) -> TiffBlocks | None:
    """Read where the blocks of a TIFF file are, which is remembered for a few files.

    Args:
        path (`str` or `Path`): The file.
        largest_block (`int`): Number of pixels of the largest block that may be decoded for a part of it.

    Returns:
        `TiffBlocks`; `None` if the file is not a TIFF, is turned by its orientation, has larger blocks, or has blocks
        that cannot be decoded alone.
    """
    status = os.stat(path)
    blocks = _blocks_of(str(path), status.st_mtime_ns, status.st_size)
    if blocks is None or (not blocks.row_bytes and blocks.block[0] * blocks.block[1] > largest_block):
        return None
    return blocks


@functools.lru_cache(maxsize=64)
def _blocks_of(path: str, changed: int, length: int) -> TiffBlocks | None:
    with Image.open(path) as image:
        if not isinstance(image, TiffImagePlugin.TiffImageFile):
            return None
        directory = image.tag_v2
    tags = dict(directory.items())
    is_tiled = _TILE_OFFSETS in tags
    compression = tags.get(_COMPRESSION, _UNCOMPRESSED)
    offsets, lengths = (tags.get(tag, ()) for tag in _place_tags(is_tiled))
    is_odd = compression == _OLD_JPEG or (compression == _UNCOMPRESSED and tags.get(_PHOTOMETRIC) == _YCBCR)
    if is_odd or tags.get(_ORIENTATION, 1) != 1 or not offsets or len(offsets) != len(lengths):
        return None
    height, width, channels = tags[_HEIGHT], tags[_WIDTH], tags.get(_CHANNELS, 1)
    planes = channels if tags.get(_PLANAR, 1) == 2 else 1
    if is_tiled:
        block = (tags[_TILE_HEIGHT], tags[_TILE_WIDTH])
    else:
        block = (min(height, tags.get(_ROWS_PER_STRIP, height)), width)
    if len(offsets) != planes * -(-height // block[0]) * -(-width // block[1]):
        return None
    row_bytes = 0
    if compression == _UNCOMPRESSED and not is_tiled:
        bits = tags.get(_BITS, (1,))
        row_bytes = -(-width * (bits[0] if planes > 1 else sum(bits)) // 8)
    kept = {tag: _entry(directory.tagtype[tag], tags[tag]) for tag in _KEPT if tag in tags}
    return TiffBlocks(
        path, (height, width), block, planes, tuple(zip(offsets, lengths, strict=True)), kept,
        "<" if directory.prefix == b"II" else ">", is_tiled, row_bytes,
    )  # fmt: skip


def _place_tags(is_tiled: bool) -> tuple[int, int]:
    return (_TILE_OFFSETS, _TILE_LENGTHS) if is_tiled else (_STRIP_OFFSETS, _STRIP_LENGTHS)


def _entry(kind: int, value: Any) -> tuple[int, Any]:
    kind = _LONG if kind == _LONG8 else kind
    return kind, value if isinstance(value, (tuple, bytes)) else (value,)
