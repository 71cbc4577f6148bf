"""Decoding of image files and label files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UsageError
from . import pixel_limit  # noqa: F401  # a worker process inherits the limit of its parent
from .channels import (
    Channels,
    decode_array,
    decode_deep_png,
    decode_tiff,
    is_array,
    is_tiff,
    pillow_keeps_values,
    turn,
    values_of,
)
from .labels import LabelMapping
from .png_checksums import VerifiedPng, verify_png

try:  # optional: they decode faster than Pillow, to the same pixels
    import pyspng
    import simplejpeg
except ImportError:
    pyspng = simplejpeg = None

_ID_MODES = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_COLOR_MODES = {"RGB", "RGBA"}
_PGM_HEADER = re.compile(rb"P[25]" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)")  # width, height, largest value
_32_BIT_MODES = {"I": "32-bit integers", "F": "floating-point numbers"}
_LOSSLESS_FORMATS = {"PNG", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA", "WEBP"}
_LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp", "tiff_sgilog", "tiff_sgilog24"}
_ORIENTATION, _BITS_PER_SAMPLE = 274, 258  # tags of EXIF and TIFF
_TURNS = {  # EXIF orientation -> how viewers turn the pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_SIDEWAYS = 5  # from here on, width and height change places
_INVERSE = {6: 8, 8: 6}  # the other orientations are their own inverse

Decoded = TypeVar("Decoded")
Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Pair:
    """Image with its labels, and how their files are stored.

    Args:
        image (`Image` or `np.ndarray` of shape `(H, W, 3)`): RGB values; with `channels`, an array (H, W, N).
        label (`Image` or `np.ndarray` of shape `(H, W)`): Train ids, 255 where ignored.
        bits (`int`): Bits per channel of an image file of which 8 are kept.
        tagged (`str`, *optional*): Which files were turned by their EXIF orientation: "both", "label" or "image";
            "stored" if that of the image was disregarded, because the labels fit only the image as stored; `None` if
            no orientation matters.
    """

    image: Image.Image | np.ndarray
    label: Image.Image | np.ndarray
    bits: int = 8
    tagged: str | None = None


@dataclass(frozen=True)
class _Stored:
    """Pixels in the order in which a file stores them, and the orientation in which viewers show them.

    Pillow stretches gray values so that `white`, if it is not 0, becomes 255, or 65,535 in files of 16 bits.
    """

    pixels: Image.Image | np.ndarray
    orientation: int = 1
    bits: int = 8
    white: int = 0

    @property
    def size(self) -> Size:
        """Width and height of the pixels as stored."""
        if isinstance(self.pixels, np.ndarray):
            return self.pixels.shape[1], self.pixels.shape[0]
        return self.pixels.size


def read_pair(
    image: Any, label: Any, mapping: LabelMapping, *, as_arrays: bool = False, channels: Channels | None = None
) -> Pair:
    """Decode one image and its labels, and turn both as viewers show them.

    Labels without an orientation were drawn on the image as viewers show it, unless their size fits only the image as
    stored.

    Args:
        image, label: Files as `datasets.Image(decode=False)` returns them: dicts with `path` and `bytes`.
        mapping (`LabelMapping`): Mapping from raw label values to train ids.
        as_arrays (`bool`): Whether to return arrays, which are faster to crop than images of Pillow.
        channels (`Channels`, *optional*): Channels of the image, whose values are kept; RGB of 8 bits by default.

    Raises:
        UsageError: If a file cannot be read, sizes differ or a label value is unknown; the message names the file.
    """
    train_ids, orientation = _read_train_ids(label, mapping)
    size = (train_ids.shape[1], train_ids.shape[0])
    stored = _read(image, "RGB" if as_arrays else None) if channels is None else _read_channels(image, channels)
    turns = _matching_turns(stored.size, stored.orientation, size, orientation)
    if turns is None:
        width, height = _turned_size(size, orientation)
        raise other_size(image, label, _turned_size(stored.size, stored.orientation), (width, height))
    convert = np.asarray if as_arrays else _as_image
    labels, tagged = convert(_turned(train_ids, turns[1])), _tagged(stored.orientation, turns)
    if channels is not None:
        return Pair(turn(stored.pixels, turns[0]), labels, tagged=tagged)  # type: ignore[arg-type]
    return Pair(convert(_turned(_as_rgb(stored.pixels, _name(image)), turns[0])), labels, stored.bits, tagged)


def other_size(image: Any, label: Any, image_size: Size, label_size: Size) -> UsageError:
    """Return the error about labels that have another size than their image."""
    (width, height), shown = label_size, image_size
    return UsageError(
        f"{_name(label)} is {width}x{height} pixels but its image {_name(image)} is {shown[0]}x{shown[1]}; they "
        "must have the same size. Export the labels at the size of the images, or resize them by nearest neighbor."
    )


def read_size(file: Any) -> Size:
    """Read width and height of an image as viewers show it, without decoding it.

    Raises:
        UsageError: If the file cannot be read.
    """

    def decode() -> Size:
        with Image.open(BytesIO(file["bytes"]) if file.get("bytes") else file["path"]) as header:
            return _turned_size(header.size, _orientation(header))

    return _decode_or_name(_name(file), decode)


def read_sample(image: Any, label: Any, mapping: LabelMapping, *, as_arrays: bool = False) -> tuple[Any, Any]:
    """Decode one image and its labels as `read_pair` does.

    Returns:
        `tuple`: RGB image; train ids (mode L), 255 where ignored. As arrays: (H, W, 3) and (H, W), uint8.

    Raises:
        UsageError: If a file cannot be read, sizes differ or a label value is unknown; the message names the file.
    """
    pair = read_pair(image, label, mapping, as_arrays=as_arrays)
    return pair.image, pair.label


def read_labels(label: Any, mapping: LabelMapping) -> Image.Image:
    """Decode labels to train ids (mode L), 255 where ignored, turned as viewers show them.

    Raises:
        UsageError: If the file cannot be read or has an unknown value; the message names the file.
    """
    return _as_image(_turned(*_read_train_ids(label, mapping)))


def read_raw_labels(label: Any, by_color: bool) -> np.ndarray:
    """Decode labels to raw values (H, W), of 8 or 16 bits or indices of a palette, or to colors (H, W, 3).

    Raises:
        UsageError: If the file cannot be read, has another mode or was compressed with loss; the message names the
            file.
    """
    return _read_raw_labels(label, by_color)[0]


def read_image(path: str | Path, channels: Channels | None = None) -> Any:
    """Read an image as `read_image_file` does.

    Raises:
        UsageError: If the file cannot be read, or has more than 16 bits per channel or other `channels`.
    """
    return read_image_file({"path": str(path)}, channels)


def read_image_file(file: Any, channels: Channels | None = None, *, as_array: bool = False) -> Any:
    """Decode an image, turned as viewers show it, from a dict with `path` and `bytes`.

    Returns:
        RGB image of Pillow; with `channels`, an array (H, W, N) of the values in the file. With `as_array`, an RGB
        image may be an array too, where that is faster.

    Raises:
        UsageError: If the file cannot be read, or has more than 16 bits per channel or other `channels`.
    """
    if channels is not None:
        kept = _read_channels(file, channels)
        return turn(kept.pixels, kept.orientation)  # type: ignore[arg-type]
    stored = _read(file, "RGB" if as_array else None)
    return _turned(_as_rgb(stored.pixels, _name(file)), stored.orientation)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of Pillow to RGB and turn it as viewers show it.

    Raises:
        UsageError: If its file cannot be read, or has more than 16 bits per channel.
    """
    name = _name({"path": getattr(image, "filename", None)})
    # before the orientation is read, since Pillow turns a TIFF when it is loaded, and then removes the orientation
    _decode_or_name(name, image.load)
    return _turned(_as_rgb(image, name), _orientation(image))


def to_channels(image: Image.Image, channels: Channels) -> np.ndarray:
    """Return the values of an image of Pillow as an array (H, W, N), turned as viewers show it.

    Raises:
        UsageError: If its file cannot be read, or has other channels.
    """
    name = _name({"path": getattr(image, "filename", None) or "The image"})
    _decode_or_name(name, image.load)  # before the orientation is read, as for `to_rgb`
    return turn(channels.check(values_of(image, channels.count), name), _orientation(image))


def array_to_rgb(pixels: np.ndarray) -> Image.Image:
    """Convert an array of 8 or 16 bits per channel to an RGB image, as a file with these values is read.

    Args:
        pixels (`np.ndarray` of shape `(H, W)`, `(H, W, 1)`, `(H, W, 3)` or `(H, W, 4)`, uint8 or uint16): Gray
            values, RGB, or RGB with transparency, which is dropped.

    Raises:
        UsageError: If it has another shape or type.
    """
    if pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
        raise UsageError(
            f"An array must be an image of 8 or 16 bits (uint8 or uint16), got {pixels.dtype}; scale its values to 0 "
            "to 255 and convert them to uint8."
        )
    if 0 in pixels.shape or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))):
        raise UsageError(f"An array must be an image (H, W), (H, W, 3) or (H, W, 4), got the shape {pixels.shape}.")
    if pixels.dtype.itemsize == 2:
        pixels = _high_bytes(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _read_train_ids(label: Any, mapping: LabelMapping) -> tuple[np.ndarray, int]:
    """Decode labels to train ids as the file stores them, and read their orientation."""
    raw, orientation = _read_raw_labels(label, mapping.by_color)
    return mapping(raw, _name(label)), orientation


def _read_raw_labels(label: Any, by_color: bool) -> tuple[np.ndarray, int]:
    stored = _read(label, None if by_color else "L", lossless=True)
    image = stored.pixels
    if isinstance(image, np.ndarray):
        return image, stored.orientation
    modes = _COLOR_MODES | {"P"} if by_color else _ID_MODES
    if image.mode not in modes:
        wanted = "an RGB image" if by_color else "one value per pixel (8 or 16 bits, or a palette)"
        remedy = "" if by_color else " For color-coded labels, list the colors in `label_colors` of dataset.yaml."
        raise UsageError(f"{_name(label)}: labels must be {wanted}, but the file has the mode {image.mode}.{remedy}")
    raw = np.asarray(image.convert("RGB") if by_color else image)
    if image.format == "GIF" and image.mode == "P" and not by_color:
        raw = _gray_values(image, _name(label))
    if stored.white and image.mode in ("L", "I"):
        raw = _unstretched(raw, stored.white, 255 if image.mode == "L" else 65535)
    return raw, stored.orientation


def _gray_values(gif: Image.Image, name: str) -> np.ndarray:
    """Look up the gray values of a GIF, whose indices programs number anew in every file."""
    palette = np.asarray(gif.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    indices = np.asarray(gif)
    colors = palette[np.unique(indices).clip(max=len(palette) - 1)]
    if (colors != colors[:, :1]).any():
        raise UsageError(
            f"{name}: the values of a GIF with colors may differ from file to file; list the colors in `label_colors` "
            "of dataset.yaml, or save the labels again as PNG."
        )
    return palette[indices.clip(max=len(palette) - 1), 0]


def _unstretched(raw: np.ndarray, white: int, full: int) -> np.ndarray:
    """Compute the gray values of a file, of at most `white`, from those that Pillow stretched to `full`."""
    if white == full:
        return raw
    table = (np.arange(full + 1) * white + full // 2) // full
    return table.astype(np.uint8 if full == 255 else np.uint16)[raw]


def _read(file: Any, quick_mode: str | None = None, *, lossless: bool = False) -> _Stored:
    """Decode a file, quickly to an array if it has this mode and its pixels are upright."""

    def decode() -> _Stored:
        data = file.get("bytes") or Path(file["path"]).read_bytes()
        with Image.open(BytesIO(data)) as header:
            if lossless:
                _refuse_loss(header, data, _name(file))
            png = verify_png(data) if header.format == "PNG" else None
            if header.mode == quick_mode and pyspng is not None:
                pixels = _decode_quickly(header, data, png)
                if pixels is not None:
                    return _Stored(pixels)
        return _decode_with_pillow(data if png is None else png.data)

    return _decode_or_name(_name(file), decode)


def _read_channels(file: Any, channels: Channels) -> _Stored:
    """Decode a file to an array (H, W, N) of the values that it stores, in the order in which it stores them."""
    name, count = _name(file), channels.count

    def decode() -> _Stored:
        data = file.get("bytes") or Path(file["path"]).read_bytes()
        if is_array(data):
            return _Stored(decode_array(data))
        png = None
        try:
            with Image.open(BytesIO(data)) as header:
                if header.format == "TIFF" and not pillow_keeps_values(header):
                    return _Stored(*decode_tiff(data, count, name))
                if header.format == "PNG":
                    png = verify_png(data)
                    if png.bits == 16 and not _has_16_bits(header):
                        pixels = decode_deep_png(png.data, name)
                        return _Stored(pixels[..., : max(3, count)], _orientation(header))
        except UnidentifiedImageError:
            if is_tiff(data):
                return _Stored(*decode_tiff(data, count, name))
            raise
        stored = _decode_with_pillow(data if png is None else png.data)
        values = values_of(stored.pixels, count)  # type: ignore[arg-type]
        if values.dtype == np.uint16 and stored.white:
            values = _unstretched(values, stored.white, 65535)
        return _Stored(values, stored.orientation)

    stored = _decode_or_name(name, decode)
    return replace(stored, pixels=channels.check(stored.pixels, name))  # type: ignore[arg-type]


def _decode_quickly(header: Image.Image, data: bytes, png: VerifiedPng | None) -> np.ndarray | None:
    """Decode an upright JPEG or PNG of 8 bits as Pillow does, but faster; return `None` where Pillow must decide."""
    try:
        if png is not None:
            is_simple = png.bits == 8 and png.is_complete and not (png.is_interlaced or png.may_be_rotated)
            return pyspng.load(png.data, format=header.mode) if is_simple else None
        if header.format == "JPEG" and _orientation(header) == 1:
            return simplejpeg.decode_jpeg(data, header.mode)
    except (RuntimeError, ValueError):  # these decoders refuse some files that Pillow reads
        pass
    return None


def _decode_with_pillow(data: bytes) -> _Stored:
    with Image.open(BytesIO(data)) as image:
        bits, white = _bits(image, data), _white(image, data)
        if image.format != "TIFF":
            image.load()
            return _Stored(image, _orientation(image), bits, white)
        orientation = _orientation(image)  # before loading, when Pillow turns the pixels
        image.load()
        return _Stored(_turned(image, _INVERSE.get(orientation, orientation)), orientation, bits, white)


def _bits(image: Image.Image, data: bytes) -> int:
    """Read the bits per channel that a file stores, of which Pillow may keep fewer or more."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))  # type: ignore[attr-defined]
    return 16 if _has_16_bits(image) else 8


def _has_16_bits(image: Image.Image) -> bool:
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


def _as_rgb(image: Image.Image | np.ndarray, name: str) -> Image.Image | np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    if _has_16_bits(image):  # Pillow would clip values at 255
        image = Image.fromarray(_high_bytes(np.asarray(image)))
    if image.mode in _32_BIT_MODES:
        raise UsageError(
            f"{name}: images must have 8 or 16 bits per channel, but the file has {_32_BIT_MODES[image.mode]} (mode "
            f"{image.mode}); scale its values to 0 to 255 or 0 to 65,535 and save them as a PNG of 8 or 16 bits."
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_bytes(values: np.ndarray) -> np.ndarray:
    """Compute the 8 bits of values of 16 bits that Pillow keeps of RGB images."""
    return (values >> 8).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation of a file, 1 if there is none or none that can be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds of exceptions for corrupt EXIF data, which viewers disregard
        return 1
    return orientation if orientation in _TURNS else 1


def _turned(pixels: Any, orientation: int) -> Any:
    """Turn an image, or an array (H, W) or (H, W, 3), as viewers do for an EXIF orientation."""
    if orientation == 1:
        return pixels
    return _as_image(pixels).transpose(_TURNS[orientation])


def _as_image(pixels: Any) -> Image.Image:
    return Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels


def _turned_size(size: Size, orientation: int) -> Size:
    return size[::-1] if orientation >= _FIRST_SIDEWAYS else size


def _matching_turns(
    image_size: Size, image_orientation: int, label_size: Size, label_orientation: int
) -> tuple[int, int] | None:
    """Choose orientations of image and labels with which their sizes are equal, those of viewers before none."""
    for turns in itertools.product((image_orientation, 1), (label_orientation, 1)):
        if _turned_size(image_size, turns[0]) == _turned_size(label_size, turns[1]):
            return turns
    return None


def _tagged(image_orientation: int, turns: tuple[int, int]) -> str | None:
    if turns[0] != image_orientation:
        return "stored"
    if turns[0] != 1:
        return "both" if turns[1] != 1 else "image"
    return "label" if turns[1] != 1 else None


def _name(file: Any) -> str:
    return str(file.get("path") or "a file without a name")


def _decode_or_name(name: str, decode: Callable[[], Decoded]) -> Decoded:
    """Decode, and convert any error to a `UsageError` that names the file."""
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
