"""Decoding of image files and label files."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UsageError
from .channels import Channels, values_of
from .labels import LabelMapping
from .missing_values import fill_missing, find_missing
from .orientation import Size, matching_turns, orientation_of, turned, turned_size
from .stored_pixels import (
    decode_or_name,
    file_name,
    has_16_bits,
    read_stored,
    read_stored_channels,
    unstretched,
)
from .tiff_tags import no_data_value

_ID_MODES = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_COLOR_MODES = {"RGB", "RGBA"}
_32_BIT_MODES = {"I": "32-bit integers", "F": "floating-point numbers"}


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
        missing (`np.ndarray` of shape `(H, W, N)`, bool, *optional*): With `channels`, where the file states that it
            has no data; the values there are those of `missing_values.fill_missing`.
    """

    image: Image.Image | np.ndarray
    label: Image.Image | np.ndarray
    bits: int = 8
    tagged: str | None = None
    missing: np.ndarray | None = None


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
    stored = (
        read_stored(image, "RGB" if as_arrays else None) if channels is None else read_stored_channels(image, channels)
    )
    turns = matching_turns(stored.size, stored.orientation, size, orientation)
    if turns is None:
        width, height = turned_size(size, orientation)
        raise other_size(image, label, turned_size(stored.size, stored.orientation), (width, height))
    convert = np.asarray if as_arrays else _as_image
    labels, tagged = convert(turned(train_ids, turns[1])), _tagged(stored.orientation, turns)
    if channels is not None:
        missing = None if stored.missing is None else turned(stored.missing, turns[0])
        return Pair(turned(stored.pixels, turns[0]), labels, tagged=tagged, missing=missing)
    return Pair(convert(turned(_as_rgb(stored.pixels, file_name(image)), turns[0])), labels, stored.bits, tagged)


def other_size(image: Any, label: Any, image_size: Size, label_size: Size) -> UsageError:
    """Return the error about labels that have another size than their image."""
    (width, height), shown = label_size, image_size
    return UsageError(
        f"{file_name(label)} is {width}x{height} pixels but its image {file_name(image)} is {shown[0]}x{shown[1]}; "
        "they must have the same size. Export the labels at the size of the images, or resize them by nearest "
        "neighbor."
    )


def read_size(file: Any) -> Size:
    """Read width and height of an image as viewers show it, without decoding it.

    Raises:
        UsageError: If the file cannot be read.
    """

    def decode() -> Size:
        with Image.open(BytesIO(file["bytes"]) if file.get("bytes") else file["path"]) as header:
            return turned_size(header.size, orientation_of(header))

    return decode_or_name(file_name(file), decode)


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
    return _as_image(turned(*_read_train_ids(label, mapping)))


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
        RGB image of Pillow; with `channels`, an array (H, W, N) of the values in the file, in which those without data
        are replaced by `missing_values.fill_missing`. With `as_array`, an RGB image may be an array too, where that is
        faster.

    Raises:
        UsageError: If the file cannot be read, or has more than 16 bits per channel or other `channels`.
    """
    if channels is not None:
        return read_channels(file, channels)[0]
    stored = read_stored(file, "RGB" if as_array else None)
    return turned(_as_rgb(stored.pixels, file_name(file)), stored.orientation)


def read_channels(file: Any, channels: Channels) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode an image as `read_image_file` does.

    Returns:
        `tuple`: values (H, W, N); where the file states that it has no data, (H, W, N) bool, or `None` if nowhere.
    """
    stored = read_stored_channels(file, channels)
    missing = None if stored.missing is None else turned(stored.missing, stored.orientation)
    return turned(stored.pixels, stored.orientation), missing  # type: ignore[return-value]


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of Pillow to RGB and turn it as viewers show it.

    Raises:
        UsageError: If its file cannot be read, or has more than 16 bits per channel.
    """
    name = file_name({"path": getattr(image, "filename", None)})
    # before the orientation is read, since Pillow turns a TIFF when it is loaded, and then removes the orientation
    decode_or_name(name, image.load)
    return turned(_as_rgb(image, name), orientation_of(image))


def to_channels(image: Image.Image, channels: Channels) -> np.ndarray:
    """Return the values of an image of Pillow as an array (H, W, N), as `read_image_file` does.

    Raises:
        UsageError: If its file cannot be read, or has other channels.
    """
    name = file_name({"path": getattr(image, "filename", None) or "The image"})
    decode_or_name(name, image.load)  # before the orientation is read, as for `to_rgb`
    values, no_data = values_of(image, channels.count), no_data_value(getattr(image, "tag_v2", {}))
    if no_data is not None and (missing := find_missing(values, no_data)) is not None:
        values = fill_missing(values, missing)
    return turned(channels.check(values, name), orientation_of(image))


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
    return mapping(raw, file_name(label)), orientation


def _read_raw_labels(label: Any, by_color: bool) -> tuple[np.ndarray, int]:
    stored = read_stored(label, None if by_color else "L", lossless=True)
    image = stored.pixels
    if isinstance(image, np.ndarray):
        return image, stored.orientation
    modes = _COLOR_MODES | {"P"} if by_color else _ID_MODES
    if image.mode not in modes:
        wanted = "an RGB image" if by_color else "one value per pixel (8 or 16 bits, or a palette)"
        remedy = "" if by_color else " For color-coded labels, list the colors in `label_colors` of dataset.yaml."
        raise UsageError(
            f"{file_name(label)}: labels must be {wanted}, but the file has the mode {image.mode}.{remedy}"
        )
    raw = np.asarray(image.convert("RGB") if by_color else image)
    if image.format == "GIF" and image.mode == "P" and not by_color:
        raw = _gray_values(image, file_name(label))
    if stored.white and image.mode in ("L", "I"):
        raw = unstretched(raw, stored.white, 255 if image.mode == "L" else 65535)
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


def _as_rgb(image: Image.Image | np.ndarray, name: str) -> Image.Image | np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    if has_16_bits(image):  # Pillow would clip values at 255
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


def _as_image(pixels: Any) -> Image.Image:
    return Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels


def _tagged(image_orientation: int, turns: tuple[int, int]) -> str | None:
    if turns[0] != image_orientation:
        return "stored"
    if turns[0] != 1:
        return "both" if turns[1] != 1 else "image"
    return "label" if turns[1] != 1 else None
