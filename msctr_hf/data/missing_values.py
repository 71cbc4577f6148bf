"""Values without data in images of any number of channels: where they are, and what the network sees in their place.

A no-data value such as -9999 is no measurement: it would ruin mean and standard deviation, and resizing would mix it
into its neighbors. So it is replaced when a file is decoded, before anything else sees the pixels.
"""

from __future__ import annotations

import math

import numpy as np


def find_missing(pixels: np.ndarray, no_data: float) -> np.ndarray | None:
    """Find the values that a file states to be no data.

    Of pixels in which only some channels have the value, these channels are missing, unless the value may be a
    measurement too: 0, and any value of 8 or 16 bits without a sign. It then counts only where all channels have it.

    Args:
        pixels (`np.ndarray` of shape `(H, W)` or `(H, W, N)`): Values as the file stores them.
        no_data (`float`): No-data value of the file, which may be NaN.

    Returns:
        `np.ndarray` of the same shape, bool: true where there is no data; `None` if this is nowhere.
    """
    missing = np.isnan(pixels) if math.isnan(no_data) else pixels == _in_type_of(pixels, no_data)
    may_be_measured = no_data == 0 or (pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2)
    if may_be_measured and pixels.ndim == 3:
        missing = np.broadcast_to(missing.all(axis=2, keepdims=True), pixels.shape)
    return missing if missing.any() else None


def fill_missing(pixels: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Replace missing values by the mean of the valid values of their channel in this image, or 0 if there are none.

    Args:
        pixels (`np.ndarray` of shape `(H, W)` or `(H, W, N)`): Values; integers get a rounded mean.
        missing (`np.ndarray` of the same shape, bool): True where there is no data.
    """
    filled = pixels.copy()
    by_channel = [array.reshape(*pixels.shape[:2], -1) for array in (filled, missing)]
    for channel in range(by_channel[0].shape[2]):
        values, without = (array[..., channel] for array in by_channel)
        valid = values[~without]
        with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite are refused by name later
            mean = valid.mean(dtype=np.float64) if valid.size else 0.0
            values[without] = mean if pixels.dtype.kind == "f" else np.rint(mean)
    return filled


def _in_type_of(pixels: np.ndarray, no_data: float) -> float | np.floating:
    """Round a no-data value, whose text may have fewer or more digits, as the values of the file are rounded."""
    if pixels.dtype.kind != "f":
        return no_data
    with np.errstate(over="ignore"):
        return pixels.dtype.type(no_data)
