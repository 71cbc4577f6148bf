"""Decoding of image files and label files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UsageError
from .labels import LabelMapping

try:  # optional: they decode faster than Pillow, to the same pixels
    import pyspng
    import simplejpeg
except ImportError:
    pyspng = simplejpeg = None

_ID_MODES = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_COLOR_MODES = {"RGB", "RGBA"}
_GRAY_STEPS = {b"\x02\x00": 85, b"\x04\x00": 17}  # Pillow stretches gray values of 2 and 4 bits to 8
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR_END = 33
_8_BIT_GRAY, _8_BIT_RGB = b"\x08\x00", b"\x08\x02"
_ORIENTATION = 0x0112

Decoded = TypeVar("Decoded")


def read_sample(
    image: Any, label: Any, mapping: LabelMapping, *, as_arrays: bool = False
) -> tuple[Image.Image, Image.Image] | tuple[np.ndarray, np.ndarray]:
    """Decode one image and its labels.

    Args:
        image, label: Files as `datasets.Image(decode=False)` returns them: dicts with `path` and `bytes`.
        mapping (`LabelMapping`): Mapping from raw label values to train ids.
        as_arrays (`bool`): Whether to return arrays (H, W, 3) and (H, W), which are faster to crop than images of
            Pillow.

    Returns:
        `tuple`: RGB image; train ids (mode L), 255 where ignored.

    Raises:
        UsageError: If a file cannot be read, sizes differ or a label value is unknown; the message names the file.
    """
    train_ids = _read_train_ids(label, mapping)
    size = (train_ids.shape[1], train_ids.shape[0])
    if as_arrays:
        image = _with_bytes(image)
        if (pixels := _decode_quickly(image, size)) is not None:
            return pixels, train_ids
    stored = _open(image)
    # labels are drawn on the image as viewers show it, unless their size fits only the orientation as stored
    upright = _upright(stored)
    shown = stored if upright.size != size == stored.size else upright
    if shown.size != size:
        raise UsageError(
            f"{_name(label)} is {size[0]}x{size[1]} pixels but its image {_name(image)} is "
            f"{shown.width}x{shown.height}; they must have the same size."
        )
    shown = _as_rgb(shown)
    return (np.asarray(shown), train_ids) if as_arrays else (shown, Image.fromarray(train_ids))


def read_labels(label: Any, mapping: LabelMapping) -> Image.Image:
    """Decode labels to train ids (mode L), 255 where ignored.

    Raises:
        UsageError: If the file cannot be read or has an unknown value; the message names the file.
    """
    return Image.fromarray(_read_train_ids(label, mapping))


def read_raw_labels(label: Any, by_color: bool) -> np.ndarray:
    """Decode labels to raw values (H, W), of 8 or 16 bits or indices of a palette, or to colors (H, W, 3).

    Raises:
        UsageError: If the file cannot be read or has another mode; the message names the file.
    """
    label = _with_bytes(label)
    data = label["bytes"]
    _refuse_bomb(data, _name(label))
    if pyspng is not None and not by_color and _png_kind(data) == _8_BIT_GRAY and not _is_interlaced(data):
        return _decode_or_name(_name(label), lambda: pyspng.load(data))
    image = _open(label)
    modes = _COLOR_MODES | {"P"} if by_color else _ID_MODES
    if image.mode not in modes:
        wanted = "an RGB image" if by_color else "one value per pixel (8 or 16 bits, or a palette)"
        remedy = "" if by_color else " For color-coded labels, list the colors in `label_colors` of dataset.yaml."
        raise UsageError(f"{_name(label)}: labels must be {wanted}, but the file has the mode {image.mode}.{remedy}")
    raw = np.asarray(image.convert("RGB") if by_color else image)
    return raw // _GRAY_STEPS[data[24:26]] if _png_kind(data) in _GRAY_STEPS else raw


def read_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, rotated upright.

    Raises:
        UsageError: If the file cannot be read.
    """
    return read_image_file({"path": str(path)})


def read_image_file(file: Any) -> Image.Image:
    """Decode an image as RGB, rotated upright, from a dict with `path` and `bytes`.

    Raises:
        UsageError: If the file cannot be read.
    """
    return _as_rgb(_upright(_open(file)))


def _read_train_ids(label: Any, mapping: LabelMapping) -> np.ndarray:
    return mapping(read_raw_labels(label, mapping.by_color), _name(label))


def _decode_quickly(file: Any, size: tuple[int, int]) -> np.ndarray | None:
    """Decode an upright RGB JPEG or PNG of this size as Pillow does, but faster; return `None` for other files."""
    data = file["bytes"]
    if simplejpeg is None:
        return None
    if data.startswith(_JPEG_SIGNATURE):
        return _decode_or_name(_name(file), lambda: _decode_jpeg(data, size))
    if _png_kind(data) != _8_BIT_RGB or _is_interlaced(data) or _may_be_rotated(data):
        return None
    if struct.unpack(">II", data[16:24]) != size:
        return None
    return _decode_or_name(_name(file), lambda: pyspng.load(data, format="RGB"))


def _decode_jpeg(data: bytes, size: tuple[int, int]) -> np.ndarray | None:
    with Image.open(BytesIO(data)) as header:
        if header.mode != "RGB" or header.size != size or header.getexif().get(_ORIENTATION, 1) != 1:
            return None
    return simplejpeg.decode_jpeg(data, "RGB")


def _png_kind(data: bytes) -> bytes | None:
    """Read the bit depth and color type of a PNG; return `None` for other files."""
    return data[24:26] if data.startswith(_PNG_SIGNATURE) and len(data) > _IHDR_END else None


def _refuse_bomb(data: bytes, name: str) -> None:
    """Apply the size limit of Pillow, against decompression bombs, to PNGs that other decoders would read."""
    if _png_kind(data) is not None:
        width, height = struct.unpack(">II", data[16:24])
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and width * height > 2 * limit:
            raise UsageError(f"{name} would be {width}x{height} pixels, more than {2 * limit}; it is not decoded.")


def _is_interlaced(png: bytes) -> bool:
    return png[28] != 0


def _may_be_rotated(png: bytes) -> bool:
    """Return whether a PNG has a chunk with its orientation, which may also follow the pixels."""
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(png):
        if png[position + 4 : position + 8] == b"eXIf":
            return True
        position += 12 + int.from_bytes(png[position : position + 4], "big")
    return False


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip values at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


def _name(file: Any) -> str:
    return str(file.get("path") or "a file without a name")


def _with_bytes(file: Any) -> dict[str, Any]:
    """Read the file, unless its bytes are already there."""
    data = file.get("bytes") or _decode_or_name(_name(file), lambda: Path(file["path"]).read_bytes())
    return {"path": file.get("path"), "bytes": data}


def _open(file: Any) -> Image.Image:
    def load() -> Image.Image:
        with Image.open(BytesIO(file["bytes"]) if file.get("bytes") else file["path"]) as image:
            image.load()
            return image

    return _decode_or_name(_name(file), load)


def _decode_or_name(name: str, decode: Callable[[], Decoded]) -> Decoded:
    """Decode, and convert any error to a `UsageError` that names the file."""
    try:
        return decode()
    except FileNotFoundError:
        raise UsageError(f"The file {name} does not exist.") from None
    except UnidentifiedImageError:
        raise UsageError(f"{name} cannot be read as an image: its format is unknown.") from None
    except Exception as error:  # decoders raise many kinds of exceptions for corrupt files
        raise UsageError(f"{name} cannot be read as an image: {error}") from None
