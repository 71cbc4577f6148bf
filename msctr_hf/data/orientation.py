"""Orientation of images: how viewers turn the pixels that a file stores, by its EXIF data."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image

Size = tuple[int, int]  # width, height

_TURNS: dict[int, tuple[Image.Transpose, Callable[[np.ndarray], np.ndarray]]] = {  # of images, and of arrays
    2: (Image.Transpose.FLIP_LEFT_RIGHT, lambda pixels: pixels[:, ::-1]),
    3: (Image.Transpose.ROTATE_180, lambda pixels: pixels[::-1, ::-1]),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, lambda pixels: pixels[::-1]),
    5: (Image.Transpose.TRANSPOSE, lambda pixels: pixels.swapaxes(0, 1)),
    6: (Image.Transpose.ROTATE_270, lambda pixels: np.rot90(pixels, 3)),
    7: (Image.Transpose.TRANSVERSE, lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1)),
    8: (Image.Transpose.ROTATE_90, lambda pixels: np.rot90(pixels)),
}
_FIRST_SIDEWAYS = 5  # from here on, width and height change places
_INVERSE = {6: 8, 8: 6}  # the other orientations are their own inverse


def known_orientation(value: object) -> int:
    """Return a value of the tag if viewers turn such images, and otherwise 1, upright."""
    return value if isinstance(value, int) and value in _TURNS else 1


def orientation_of(image: Image.Image) -> int:
    """Read the EXIF orientation of a file, 1 if there is none or none that can be read."""
    try:
        return known_orientation(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises many kinds of exceptions for corrupt EXIF data, which viewers disregard
        return 1


def turned(pixels: Any, orientation: int) -> Any:
    """Turn an image, or an array (H, W) or (H, W, N), as viewers do for an orientation."""
    if orientation == 1:
        return pixels
    of_image, of_array = _TURNS[orientation]
    return np.ascontiguousarray(of_array(pixels)) if isinstance(pixels, np.ndarray) else pixels.transpose(of_image)


def turned_back(pixels: Any, orientation: int) -> Any:
    """Turn an image, or an array, that was turned for an orientation as its file stores it."""
    return turned(pixels, _INVERSE.get(orientation, orientation))


def turned_size(size: Size, orientation: int) -> Size:
    """Return width and height after the turn for an orientation."""
    return size[::-1] if orientation >= _FIRST_SIDEWAYS else size


def matching_turns(
    image_size: Size, image_orientation: int, label_size: Size, label_orientation: int
) -> tuple[int, int] | None:
    """Choose orientations of image and labels with which their sizes are equal, those of viewers before none."""
    for turns in itertools.product((image_orientation, 1), (label_orientation, 1)):
        if turned_size(image_size, turns[0]) == turned_size(label_size, turns[1]):
            return turns
    return None
