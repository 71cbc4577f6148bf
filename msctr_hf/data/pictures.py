"""Decoding picture and label files; of large PNGs no more than is needed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UsageError
from .labels import LabelMapping

try:  # they decode faster than Pillow, to the same pixels
    import pyspng
    import simplejpeg
except ImportError:
    pyspng = simplejpeg = None

_ID_MODES = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_COLOR_MODES = {"RGB", "RGBA"}
_GREY_STEPS = {b"\x02\x00": 85, b"\x04\x00": 17}  # Pillow stretches grey values of 2 and 4 bits to 8
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR_END = 33
_8_BIT_GREY, _8_BIT_RGB = b"\x08\x00", b"\x08\x02"
_ORIENTATION = 0x0112

Decoded = TypeVar("Decoded")


class PartlyReadPicture(Protocol):
    """A picture, or labels, of which parts can be had without the rest."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""

    def region(self, rows: slice, columns: slice) -> np.ndarray:
        """Pixels (h, w, 3), or labels (h, w), uint8."""


@dataclass(frozen=True)
class ArrayPicture:
    """A picture, or labels, as an array that may lie in a mapped file.

    Args:
        pixels (`np.ndarray`): (H, W, 3) or (H, W) uint8.
    """

    pixels: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def region(self, rows: slice, columns: slice) -> np.ndarray:
        """Pixels (h, w, 3), or labels (h, w), uint8."""
        return self.pixels[rows, columns]


@dataclass(frozen=True)
class TopOfPng:
    """An 8-bit RGB PNG that is decoded from the top down to the row that is needed.

    Args:
        data (`bytes`): The file.
        name (`str`): Its name, for messages.
        size (`tuple[int, int]`): Width and height.
    """

    data: bytes
    name: str
    size: tuple[int, int]

    def region(self, rows: slice, columns: slice) -> np.ndarray:
        """Pixels (h, w, 3) uint8.

        Raises:
            UsageError: If the file is damaged; it is named.
        """
        header = self.data[12:20] + struct.pack(">I", min(self.size[1], rows.stop)) + self.data[24:29]
        shortened = b"".join((self.data[:12], header, struct.pack(">I", zlib.crc32(header)), self.data[_IHDR_END:]))
        return _decode_png(shortened, self.name)[rows, columns]


def read_sample(
    image: Any, label: Any, mapping: LabelMapping, *, partly: bool = False
) -> tuple[Image.Image | PartlyReadPicture, Image.Image | PartlyReadPicture]:
    """Decode one picture and its labels.

    Args:
        image, label: Files as `datasets.Image(decode=False)` gives them: dicts with `path` and `bytes`.
        mapping (`LabelMapping`): How label values become train ids.
        partly (`bool`): Both as `PartlyReadPicture`s; an RGB PNG stays undecoded until a part is asked for.

    Returns:
        `tuple`: RGB picture; train ids (mode L), 255 where ignored.

    Raises:
        UsageError: If a file cannot be read, sizes differ or a label value is unknown; the file is named.
    """
    train_ids = _read_train_ids(label, mapping)
    size = (train_ids.shape[1], train_ids.shape[0])
    if partly:
        image = _with_bytes(image)
        if (quick := _as_top_of_png(image, size) or _as_jpeg(image, size)) is not None:
            return quick, ArrayPicture(train_ids)
    picture = _open(image)
    # labels were drawn on the picture as shown; where only the stored orientation fits, they were drawn on that
    upright = _upright(picture)
    picture = picture if upright.size != size == picture.size else upright
    if picture.size != size:
        raise UsageError(
            f"{_name(label)} is {size[0]}x{size[1]} pixels but its picture {_name(image)} is "
            f"{picture.width}x{picture.height}; they must have the same size."
        )
    picture = _as_rgb(picture)
    if partly:
        return ArrayPicture(np.asarray(picture)), ArrayPicture(train_ids)
    return picture, Image.fromarray(train_ids)


def read_labels(label: Any, mapping: LabelMapping) -> Image.Image:
    """Decode labels to train ids (mode L), 255 where ignored.

    Raises:
        UsageError: If the file cannot be read or holds an unknown value; it is named.
    """
    return Image.fromarray(_read_train_ids(label, mapping))


def read_raw_labels(label: Any, by_color: bool) -> np.ndarray:
    """Class values (H, W), palettes and 16 bits taken as values, or colours (H, W, 3).

    Raises:
        UsageError: If the file cannot be read or has another mode; it is named.
    """
    label = _with_bytes(label)
    data = label["bytes"]
    _refuse_bomb(data, _name(label))
    if pyspng is not None and not by_color and _png_kind(data) == _8_BIT_GREY and not _is_interlaced(data):
        return _named(_name(label), lambda: pyspng.load(data))
    picture = _open(label)
    modes = _COLOR_MODES | {"P"} if by_color else _ID_MODES
    if picture.mode not in modes:
        wanted = "an RGB picture" if by_color else "one value a pixel (8 or 16 bits, or a palette)"
        raise UsageError(f"{_name(label)}: labels must be {wanted}, but the file has the mode {picture.mode}.")
    raw = np.asarray(picture.convert("RGB") if by_color else picture)
    return raw // _GREY_STEPS[data[24:26]] if _png_kind(data) in _GREY_STEPS else raw


def read_image(path: str | Path) -> Image.Image:
    """Read a picture as RGB, upright.

    Raises:
        UsageError: If the file cannot be read.
    """
    return _as_rgb(_upright(_open({"path": str(path)})))


def _read_train_ids(label: Any, mapping: LabelMapping) -> np.ndarray:
    return mapping(read_raw_labels(label, mapping.by_color), _name(label))


def _as_top_of_png(file: Any, size: tuple[int, int]) -> TopOfPng | None:
    """The file if it is a plain RGB PNG of this size, else `None`."""
    data = file["bytes"]
    if _png_kind(data) != _8_BIT_RGB or _is_interlaced(data) or _may_be_turned(data):
        return None
    if struct.unpack(">II", data[16:24]) != size:
        return None
    return TopOfPng(data, _name(file), size)


def _as_jpeg(file: Any, size: tuple[int, int]) -> ArrayPicture | None:
    """The decoded file if it is an upright RGB JPEG of this size, else `None`; the pixels are Pillow's, but sooner."""
    data = file["bytes"]
    if simplejpeg is None or not data.startswith(_JPEG_SIGNATURE):
        return None

    def decode() -> np.ndarray | None:
        with Image.open(BytesIO(data)) as header:
            if header.mode != "RGB" or header.size != size or header.getexif().get(_ORIENTATION, 1) != 1:
                return None
        return simplejpeg.decode_jpeg(data, "RGB")

    pixels = _named(_name(file), decode)
    return None if pixels is None else ArrayPicture(pixels)


def _png_kind(data: bytes) -> bytes | None:
    """Bit depth and colour type of a PNG."""
    return data[24:26] if data.startswith(_PNG_SIGNATURE) and len(data) > _IHDR_END else None


def _refuse_bomb(data: bytes, name: str) -> None:
    """Pillow's own limit, for PNGs that other decoders would read."""
    if _png_kind(data) is not None:
        width, height = struct.unpack(">II", data[16:24])
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and width * height > 2 * limit:
            raise UsageError(f"{name} would be {width}x{height} pixels, more than {2 * limit}; it is not decoded.")


def _is_interlaced(png: bytes) -> bool:
    return png[28] != 0


def _may_be_turned(png: bytes) -> bool:
    """Whether a PNG has a chunk with its orientation; it may also lie behind the pixels."""
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(png):
        if png[position + 4 : position + 8] == b"eXIf":
            return True
        position += 12 + int.from_bytes(png[position : position + 4], "big")
    return False


def _decode_png(data: bytes, name: str) -> np.ndarray:
    """RGB pixels (H, W, 3)."""
    if pyspng is None:
        return np.asarray(_open({"bytes": data, "path": name}))
    return _named(name, lambda: pyspng.load(data, format="RGB"))


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # Pillow would clip at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(picture) if picture.getexif().get(_ORIENTATION, 1) != 1 else picture


def _name(file: Any) -> str:
    return str(file.get("path") or "a file without a name")


def _with_bytes(file: Any) -> dict[str, Any]:
    """The file, read."""
    data = file.get("bytes") or _named(_name(file), lambda: Path(file["path"]).read_bytes())
    return {"path": file.get("path"), "bytes": data}


def _open(file: Any) -> Image.Image:
    def load() -> Image.Image:
        with Image.open(BytesIO(file["bytes"]) if file.get("bytes") else file["path"]) as picture:
            picture.load()
            return picture

    return _named(_name(file), load)


def _named(name: str, decode: Callable[[], Decoded]) -> Decoded:
    """Decode; what goes wrong becomes a sentence with the name of the file."""
    try:
        return decode()
    except FileNotFoundError:
        raise UsageError(f"There is no file {name}.") from None
    except UnidentifiedImageError:
        raise UsageError(f"{name} cannot be read as a picture: its format is unknown.") from None
    except Exception as error:  # decoders raise a dozen kinds for broken files
        raise UsageError(f"{name} cannot be read as a picture: {error}") from None
