"""Limit on the number of pixels of an image file, against files that would fill the memory when they are decoded."""

from __future__ import annotations

import os
from fractions import Fraction

from PIL import Image

from ..errors import UsageError

VARIABLE = "MSCTR_MAX_IMAGE_PIXELS"  # worker processes, and programs that are started, inherit the environment


def set_max_image_pixels(pixels: int) -> None:
    """Set the largest number of pixels of an image that is read, in this process and in those that it starts.

    It is the limit of Pillow, and so holds for all code that opens images in this process. By default, Pillow refuses
    images of more than 178,956,970 pixels, which take half a gigabyte when they are decoded.

    Args:
        pixels (`int`): Width times height of the largest image.

    Raises:
        UsageError: If it is not positive.
    """
    if pixels < 1:
        raise UsageError(f"`max_image_pixels` must be at least 1, got {pixels}.")
    # Pillow warns from here, and refuses what is larger than twice; a fraction keeps half of an odd number exact
    Image.MAX_IMAGE_PIXELS = Fraction(pixels, 2)  # type: ignore[assignment]
    os.environ[VARIABLE] = str(pixels)


def _inherit_limit() -> None:
    value = os.environ.get(VARIABLE)
    if value is None:
        return
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"The environment variable {VARIABLE} must be a number of pixels, at least 1, got {value!r}.")
    set_max_image_pixels(int(value))


_inherit_limit()
