"""Images with any number of channels, as arrays of the values that their files store.

Pillow reads most files of one, three or four channels. Other TIFF files are read with tifffile, and files of
`numpy.save` with numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UsageError
from .orientation import known_orientation

MAX_CHANNELS = 16
VALUE_TYPES = {"uint8": 255.0, "uint16": 65535.0, "int32": 1.0, "float32": 1.0}  # type -> value that counts as 1
ARRAY_SUFFIX = ".npy"
_ARRAY_START = b"\x93NUMPY"
_BITS_PER_SAMPLE, _ORIENTATION, _SAMPLES_PER_PIXEL, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 274, 277, 338, 339  # tags
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA, _SIGNED = 1, 2, 2  # values of these tags
_FIRST_AND_SECOND_BYTE = (";16B", ";16L")  # of each value, as Pillow names the ways to unpack them


@dataclass(frozen=True)
class Channels:
    """Number of channels of images that keep all of their bits, and the type of their values.

    Args:
        count (`int`): Number of channels.
        value_type (`str`, *optional*): One of `VALUE_TYPES`; any of them by default.

    Raises:
        UsageError: If the number is not in 1 to 16.
    """

    count: int
    value_type: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_CHANNELS:
            raise UsageError(f"`num_channels` must be in [1, {MAX_CHANNELS}], got {self.count}.")

    @property
    def are_colors(self) -> bool:
        """Whether the channels are red, green and blue, of which white is known."""
        return self.count == 3 and self.value_type in ("uint8", "uint16")

    def check(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """Convert the pixels of an image to the type of all images, and check them.

        Gray values become three equal channels where three are expected.

        Args:
            pixels (`np.ndarray` of shape `(H, W)` or `(H, W, N)`): Values.
            name (`str`): What an error calls the image.

        Returns:
            `np.ndarray` of shape `(H, W, count)` and one of `VALUE_TYPES`.

        Raises:
            UsageError: If the number of channels, the type or a value is not as expected.
        """
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        if pixels.ndim != 3 or 0 in pixels.shape:
            raise UsageError(f"{name}: an image must be an array (H, W) or (H, W, N), got the shape {pixels.shape}.")
        if self.count == 3 and pixels.shape[2] == 1:
            pixels = pixels.repeat(3, axis=2)
        if pixels.shape[2] != self.count:
            hint = " An array must be (H, W, N), with the channels last." if pixels.shape[0] == self.count else ""
            raise UsageError(f"{name} has {count_of(pixels.shape[2])}, but `num_channels` is {self.count}.{hint}")
        pixels = _common_type(pixels, name)
        if self.value_type not in (None, str(pixels.dtype)):
            raise UsageError(
                f"{name} has values of type {pixels.dtype}, but the network is for images of type {self.value_type}; "
                "save all images with one type."
            )
        return pixels


def count_of(channels: int) -> str:
    """Write a number of channels in words."""
    return f"{channels} channel{'s' if channels > 1 else ''}"


def size_of(image: Any) -> tuple[int, int]:
    """Return the width and height of an image of Pillow or of an array (H, W, N), in pixels."""
    return (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size


def rows_of(image: Any, top: int, bottom: int) -> Any:
    """Cut some rows from an image of Pillow or from an array (H, W, N)."""
    return image[top:bottom] if isinstance(image, np.ndarray) else image.crop((0, top, image.width, bottom))


def is_array(data: bytes) -> bool:
    """Return whether a file was written by `numpy.save`."""
    return data.startswith(_ARRAY_START)


def decode_array(data: bytes) -> np.ndarray:
    """Read a file of `numpy.save`, without running code from it."""
    return np.load(BytesIO(data), allow_pickle=False)


def pillow_keeps_values(header: Image.Image) -> bool:
    """Return whether Pillow reads all channels of a TIFF with all bits."""
    tags: Any = header.tag_v2  # type: ignore[attr-defined]
    bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    # of planes, Pillow reads the first as a gray image
    if getattr(header, "n_frames", 1) > 1 or tags.get(_SAMPLES_PER_PIXEL, 1) != len(header.getbands()):
        return False
    if header.mode == "I":
        return set(tags.get(_SAMPLE_FORMAT, (1,))) == {_SIGNED}
    if header.mode in ("RGBA", "RGBX"):
        extra = tags.get(_EXTRA_SAMPLES, ())
        return bits == 8 and len(extra) == 1 and _ASSOCIATED_ALPHA not in extra
    if header.mode == "RGB":
        return bits == 8
    return header.mode in ("1", "L", "P", "F") or header.mode.startswith("I;16")


def decode_tiff(data: bytes, count: int, name: str) -> tuple[np.ndarray, int]:
    """Decode a TIFF whose bands are samples of a pixel, planes or pages.

    Args:
        data (`bytes`): The file.
        count (`int`): Number of channels that are expected; an alpha channel beyond them is left out.
        name (`str`): What an error calls the file.

    Returns:
        `tuple`: pixels (H, W, N) in the order in which the file stores them, and the EXIF orientation.

    Raises:
        UsageError: If tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError:
        raise UsageError(f"{name}: this TIFF needs the package tifffile: pip install 'msctr_hf[tiff]'.") from None
    with tifffile.TiffFile(BytesIO(data)) as file:
        page = file.pages[0]
        size = (page.imagelength, page.imagewidth)
        _refuse_bomb(size[1], size[0])
        orientation = page.tags.get(_ORIENTATION)
        alpha = {_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA} & set(page.extrasamples)
        # a series holds pages of one kind; others than bands are overviews, thumbnails and masks
        bands = [each for each in file.series if not (each.keyframe.is_reduced or each.keyframe.is_mask)]
        bands = [each for each in bands if (each.dtype, _rows_and_columns(each)[1]) == (page.dtype, size)]
        pixels = np.concatenate(
            [np.moveaxis(each.asarray(), _rows_and_columns(each)[0], (0, 1)).reshape(*size, -1) for each in bands],
            axis=2,
        )
    if alpha and pixels.shape[2] == count + 1:
        pixels = pixels[..., :count]
    return pixels, 1 if orientation is None else known_orientation(orientation.value)


def _rows_and_columns(series: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return which axes of a series of pages are its rows and columns, and the lengths of these axes."""
    rows, columns = (series.axes.index(axis) for axis in "YX")
    return (rows, columns), (series.shape[rows], series.shape[columns])


def decode_deep_png(data: bytes, name: str) -> np.ndarray:
    """Decode a PNG with colors of 16 bits, of which Pillow keeps one byte: the first, or the second if asked.

    Returns:
        `np.ndarray` of shape `(H, W, 3)` or `(H, W, 4)`, uint16.

    Raises:
        UsageError: If it has gray values with transparency.
    """
    halves = []
    for kept in _FIRST_AND_SECOND_BYTE:
        with Image.open(BytesIO(data)) as image:
            tile = image.tile[0]  # type: ignore[attr-defined]
            if not str(tile.args).startswith("RGB"):
                raise UsageError(
                    f"{name}: gray values of 16 bits cannot be read with transparency; save them without."
                )
            image.tile = [tile._replace(args=str(tile.args).replace(";16B", kept))]  # type: ignore[attr-defined]
            halves.append(np.asarray(image).astype(np.uint16))
    return (halves[0] << 8) | halves[1]


def values_of(image: Image.Image, count: int) -> np.ndarray:
    """Return the values of an image of Pillow as an array.

    Colors of a palette or of another model become RGB; transparency is left out unless the `count` of channels
    includes it.
    """
    mode = image.mode
    if mode.startswith("I;16") or mode in ("L", "F", "RGB"):
        return np.asarray(image)
    if mode == "I":
        # Pillow widens PGM, whose values have at most 16 bits
        return np.asarray(image).astype(np.uint16) if image.format == "PPM" else np.asarray(image)
    if mode == "1":
        return np.asarray(image.convert("L"))
    if mode in ("LA", "La"):
        return np.asarray(image.convert("LA"))[..., : 2 if count == 2 else 1]
    if count == 4 and mode == "RGBX":
        return np.asarray(image)
    if count == 4 and (mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info):
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _common_type(pixels: np.ndarray, name: str) -> np.ndarray:
    """Convert values to one of `VALUE_TYPES`: integers other than unsigned ones of 8 and 16 bits to int32."""
    kind = pixels.dtype.kind
    if kind == "f":
        with np.errstate(over="ignore"):  # reported below
            pixels = pixels.astype(np.float32, copy=False)
        if not np.isfinite(pixels).all():
            raise UsageError(
                f"{name} has values that are NaN or infinite; replace them by a number, or by the no-data value "
                "of a GeoTIFF, which may be NaN."
            )
        return pixels
    if kind not in "iu":
        raise UsageError(f"{name}: values must be integers or floating-point numbers, got {pixels.dtype}.")
    if kind == "u" and pixels.dtype.itemsize <= 2:
        return pixels.astype(f"uint{8 * pixels.dtype.itemsize}", copy=False)  # in the byte order of this machine
    limits = np.iinfo(np.int32)
    if pixels.dtype.itemsize >= 4 and not limits.min <= pixels.min() <= pixels.max() <= limits.max:
        raise UsageError(f"{name} has integers of more than 32 bits; scale them, or save them as float32.")
    return pixels.astype(np.int32, copy=False)


def _refuse_bomb(width: int, height: int) -> None:
    """Refuse a file with more pixels than Pillow would read."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise Image.DecompressionBombError(
            f"Image size ({width * height} pixels) exceeds limit of {math.floor(2 * limit)} pixels."
        )
