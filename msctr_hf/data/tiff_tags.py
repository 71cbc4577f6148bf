"""Tags of TIFF files, read without opening the image, since Pillow cannot open most images of several bands."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of a TIFF and a BigTIFF, in both byte orders
NO_DATA_TAG = 42113  # of GDAL: the no-data value as text
_PHOTOMETRIC, _PALETTE = 262, 3  # tag of the meaning of values, and that of indices of a palette
_ASCII, _SHORT = 2, 3  # types: text, of which a character is a byte, and integers of 16 bits
_LONGEST_TEXT = 1 << 12  # bytes; a damaged file may state any length


def is_tiff(data: bytes) -> bool:
    """Return whether a file is a TIFF, which Pillow may not be able to open."""
    return data.startswith(TIFF_STARTS)


def read_tags(file: BinaryIO) -> dict[int, Any]:
    """Read the tags of the first image of a TIFF or a BigTIFF.

    Args:
        file (`BinaryIO`): The file, at its start.

    Returns:
        `dict[int, Any]`: Tag -> its value, if that is a text (`bytes`) or an integer of 16 bits, otherwise `None`.

    Raises:
        struct.error: If the file ends early.
    """
    header = file.read(16)
    if not is_tiff(header):
        return {}
    order = "<" if header.startswith(b"II") else ">"
    is_big = 43 in header[2:4]
    start, count, entry, offset = (8, "Q", "HHQ8s", "Q") if is_big else (4, "H", "HHI4s", "I")
    file.seek(struct.unpack_from(order + offset, header, start)[0])
    (entries,) = _unpack(file, order + count)
    directory = [_unpack(file, order + entry) for _ in range(entries)]
    tags: dict[int, Any] = dict.fromkeys(tag for tag, *_ in directory)
    for tag, kind, length, value in directory:
        if kind == _ASCII:
            if length > len(value):  # then the entry holds the place of the value
                file.seek(struct.unpack(order + offset, value)[0])
                value = file.read(min(length, _LONGEST_TEXT))
            tags[tag] = value[:length].split(b"\0")[0]
        elif kind == _SHORT and length == 1:
            (tags[tag],) = struct.unpack_from(order + "H", value)
    return tags


def no_data_value(tags: Mapping[int, Any]) -> float | None:
    """Return the number that the values without data of a GeoTIFF have; `None` if its tags state none.

    The number of a file with a palette is an index, and no value of the colors that are read.
    """
    if tags.get(_PHOTOMETRIC) == _PALETTE:
        return None
    try:
        return float(tags[NO_DATA_TAG])
    except (KeyError, TypeError, ValueError):  # no such tag, or one of another type or text
        return None


def _unpack(file: BinaryIO, form: str) -> tuple:
    return struct.unpack(form, file.read(struct.calcsize(form)))
