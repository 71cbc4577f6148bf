"""Pixels of a file in the order in which it stores them, and what Pillow does not say about them.

Pillow decides what a file holds; faster decoders, where they are installed, return the same pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ..errors import UsageError
from . import pixel_limit  # noqa: F401  # a worker process inherits the limit of its parent
from .channels import (
    Channels,
    decode_array,
    decode_deep_png,
    decode_tiff,
    is_array,
    pillow_keeps_values,
    values_of,
)
from .missing_values import fill_missing, find_missing
from .orientation import Size, orientation_of, turned_back
from .png_checksums import VerifiedPng, verify_png
from .tiff_tags import is_tiff, no_data_value, read_tags

try:  # optional: they decode faster than Pillow, to the same pixels
    import pyspng
    import simplejpeg
except ImportError:
    pyspng = simplejpeg = None

_PGM_HEADER = re.compile(rb"P[25]" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)")  # width, height, largest value
_LOSSLESS_FORMATS = {"PNG", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA", "WEBP"}
_LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp", "tiff_sgilog", "tiff_sgilog24"}

Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class StoredPixels:
    """Pixels in the order in which a file stores them, and the orientation in which viewers show them.

    Args:
        pixels (`Image` or `np.ndarray` of shape `(H, W)`, `(H, W, 3)` or `(H, W, N)`): Values as Pillow or another
            decoder returns them.
        orientation (`int`): EXIF orientation, 1 for upright.
        bits (`int`): Bits per channel of the file, of which Pillow may keep fewer.
        white (`int`): If it is not 0, Pillow stretched gray values so that this one became 255, or 65,535 in files of
            16 bits.
        missing (`np.ndarray` of the shape of `pixels`, bool, *optional*): True where an array has no data; `None` if
            it has data everywhere.
    """

    pixels: Image.Image | np.ndarray
    orientation: int = 1
    bits: int = 8
    white: int = 0
    missing: np.ndarray | None = None

    @property
    def size(self) -> Size:
        """Width and height of the pixels as stored."""
        if isinstance(self.pixels, np.ndarray):
            return self.pixels.shape[1], self.pixels.shape[0]
        return self.pixels.size


def read_stored(file: Any, quick_mode: str | None = None, *, lossless: bool = False) -> StoredPixels:
    """Decode a file.

    Args:
        file (`dict`): `path` and `bytes`, as `datasets.Image(decode=False)` returns them.
        quick_mode (`str`, *optional*): Mode of Pillow, `"RGB"` or `"L"`, in which an upright file of 8 bits may be
            decoded to an array, where that is faster.
        lossless (`bool`): Whether to refuse files that were compressed with loss, as for labels.

    Raises:
        UsageError: If the file cannot be read or is refused; the message names it.
    """

    def decode() -> StoredPixels:
        data = file.get("bytes") or Path(file["path"]).read_bytes()
        with Image.open(BytesIO(data)) as header:
            if lossless:
                _refuse_loss(header, data, file_name(file))
            png = verify_png(data) if header.format == "PNG" else None
            if header.mode == quick_mode and pyspng is not None:
                pixels = _decode_quickly(header, data, png)
                if pixels is not None:
                    return StoredPixels(pixels)
        return _decode_with_pillow(data if png is None else png.data)

    return decode_or_name(file_name(file), decode)


def read_stored_channels(file: Any, channels: Channels) -> StoredPixels:
    """Decode a file to an array (H, W, N) of the values that it stores, in the order in which it stores them.

    Values without data are replaced by `fill_missing`.

    Raises:
        UsageError: If the file cannot be read, or has other channels; the message names it.
    """
    name = file_name(file)

    def decode() -> StoredPixels:
        data = file.get("bytes") or Path(file["path"]).read_bytes()
        stored = _decode_values(data, channels.count, name)
        pixels: Any = stored.pixels
        if is_tiff(data) and (no_data := no_data_value(read_tags(BytesIO(data)))) is not None:
            missing = find_missing(pixels, no_data)
            if missing is not None:
                return replace(stored, pixels=fill_missing(pixels, missing), missing=missing)
        return stored

    stored = decode_or_name(name, decode)
    pixels, missing = channels.check(stored.pixels, name), stored.missing  # type: ignore[arg-type]
    if missing is not None:  # gray values may have become three channels
        missing = np.broadcast_to(missing if missing.ndim == 3 else missing[..., None], pixels.shape)
    return replace(stored, pixels=pixels, missing=missing)


def _decode_values(data: bytes, count: int, name: str) -> StoredPixels:
    if is_array(data):
        return StoredPixels(decode_array(data))
    png = None
    try:
        with Image.open(BytesIO(data)) as header:
            if header.format == "TIFF" and not pillow_keeps_values(header):
                return StoredPixels(*decode_tiff(data, count, name))
            if header.format == "PNG":
                png = verify_png(data)
                if png.bits == 16 and not has_16_bits(header):
                    pixels = decode_deep_png(png.data, name)
                    return StoredPixels(pixels[..., : max(3, count)], orientation_of(header))
    except UnidentifiedImageError:
        if is_tiff(data):
            return StoredPixels(*decode_tiff(data, count, name))
        raise
    stored = _decode_with_pillow(data if png is None else png.data)
    values = values_of(stored.pixels, count)  # type: ignore[arg-type]
    if values.dtype == np.uint16 and stored.white:
        values = unstretched(values, stored.white, 65535)
    return StoredPixels(values, stored.orientation)


def _decode_quickly(header: Image.Image, data: bytes, png: VerifiedPng | None) -> np.ndarray | None:
    """Decode an upright JPEG or PNG of 8 bits as Pillow does, but faster; return `None` where Pillow must decide."""
    try:
        if png is not None:
            is_simple = png.bits == 8 and png.is_complete and not (png.is_interlaced or png.may_be_rotated)
            return pyspng.load(png.data, format=header.mode) if is_simple else None
        if header.format == "JPEG" and orientation_of(header) == 1:
            return simplejpeg.decode_jpeg(data, header.mode)
    except (RuntimeError, ValueError):  # these decoders refuse some files that Pillow reads
        pass
    return None


def _decode_with_pillow(data: bytes) -> StoredPixels:
    with Image.open(BytesIO(data)) as image:
        bits, white = _bits(image, data), _white(image, data)
        if image.format != "TIFF":
            image.load()
            return StoredPixels(image, orientation_of(image), bits, white)
        orientation = orientation_of(image)  # before loading, when Pillow turns the pixels
        image.load()
        return StoredPixels(turned_back(image, orientation), orientation, bits, white)


def _bits(image: Image.Image, data: bytes) -> int:
    """Read the bits per channel that a file stores, of which Pillow may keep fewer or more."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))  # type: ignore[attr-defined]
    return 16 if has_16_bits(image) else 8


def has_16_bits(image: Image.Image) -> bool:
    """Return whether an image has one channel of 16 bits, which Pillow widens to 32 for PGM."""
    return image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")


def _white(image: Image.Image, data: bytes) -> int:
    """Read the largest gray value that a file can hold if Pillow stretches it to 255 or 65,535; otherwise 0."""
    if image.format == "PPM":
        header = _PGM_HEADER.match(data)
        return int(header[3]) if header else 0
    bits = _bits(image, data)
    return 2**bits - 1 if bits in (2, 4) else 0


def _refuse_loss(header: Image.Image, data: bytes, name: str) -> None:
    """Refuse a file whose compression changes values, whatever its name is."""
    kind = str(header.format)
    is_lossless = kind in _LOSSLESS_FORMATS
    if kind == "TIFF" and (compression := header.info.get("compression")) in _LOSSY_TIFF:
        kind, is_lossless = f"TIFF with {compression} compression", False
    if kind == "WEBP" and b"VP8 " in _webp_chunks(data):
        kind, is_lossless = "lossy WebP", False
    if not is_lossless:
        raise UsageError(
            f"{name}: labels must be stored without loss, but the file is a {kind}, whatever its name is; make them "
            "again as PNG, from data that were never compressed with loss."
        )


def _webp_chunks(data: bytes) -> Iterable[bytes]:
    """Yield the kinds of the chunks of a WebP, those of the frames of an animation included."""
    position = 12
    while position + 8 <= len(data):
        kind = data[position : position + 4]
        yield kind
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 24 if kind == b"ANMF" else 8 + length + length % 2


def unstretched(raw: np.ndarray, white: int, full: int) -> np.ndarray:
    """Compute the gray values of a file, of at most `white`, from those that Pillow stretched to `full`."""
    if white == full:
        return raw
    table = (np.arange(full + 1) * white + full // 2) // full
    return table.astype(np.uint8 if full == 255 else np.uint16)[raw]


def file_name(file: Any) -> str:
    """Return how messages name a file, a dict with `path` and `bytes`."""
    return str(file.get("path") or "a file without a name")


def decode_or_name(name: str, decode: Callable[[], Decoded]) -> Decoded:
    """Return what `decode` does.

    Raises:
        UsageError: In place of any exception of `decode`; the message names the file.
    """
    try:
        return decode()
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"The file {name} does not exist.") from None
    except UnidentifiedImageError:
        raise UsageError(f"{name} cannot be read as an image: its format is unknown.") from None
    except Image.DecompressionBombError as error:
        raise UsageError(
            f"{name} cannot be read as an image: {error} If you trust the file, raise `max_image_pixels`."
        ) from None
    except Exception as error:  # decoders raise many kinds of exceptions for corrupt files
        raise UsageError(f"{name} cannot be read as an image: {error}") from None
