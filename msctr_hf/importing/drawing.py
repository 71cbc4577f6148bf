"""Drawing of objects: polygons and masks become one label per pixel, by one rule for all formats.

An object is the union of its polygons. A polygon covers the pixels whose centers are inside it by the even-odd rule.
Objects with more pixels are drawn first, so that smaller ones are visible where they overlap; of equal ones the later
is on top. Crowd regions are drawn below all objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_NUDGE = 1e-6  # pixels
_MAX_STEPS = 100_000  # more pixels than images have in a row; coordinates may be far outside
_NUDGES = ((-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(frozen=True)
class Patch:
    """Pixels of an object, as a mask (h, w) bool of a part of the image that begins at `left`, `top`."""

    mask: np.ndarray
    left: int = 0
    top: int = 0

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    @classmethod
    def of(cls, mask: np.ndarray) -> Patch:
        """Cut a mask (H, W) bool of the whole image to the pixels of its object, to save memory."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return cls(np.zeros((0, 0), dtype=bool))
        top, left = int(rows[0]), int(columns[0])
        return cls(mask[top : rows[-1] + 1, left : columns[-1] + 1].copy(), left, top)


@dataclass(frozen=True)
class DrawnObject:
    """An object to draw: its label, 255 to ignore its pixels, and whether it is a region with a crowd of objects."""

    label: int
    patch: Patch
    is_crowd: bool = False


def draw_objects(objects: Iterable[DrawnObject], size: tuple[int, int], background: int) -> np.ndarray:
    """Draw objects on a background and return labels (H, W) uint8; `size` is width and height."""
    labels = np.full(size[::-1], background, dtype=np.uint8)
    for each in sorted(objects, key=lambda each: (not each.is_crowd, -each.patch.area)):
        height, width = each.patch.mask.shape
        part = labels[each.patch.top : each.patch.top + height, each.patch.left : each.patch.left + width]
        part[each.patch.mask] = each.label
    return labels


def fill_polygons(polygons: Sequence[np.ndarray], size: tuple[int, int], *, centers: bool = False) -> Patch:
    """Fill the union of polygons, by the even-odd rule within each of them.

    Args:
        polygons (`Sequence[np.ndarray]`): Points (N, 2), x and y.
        size (`tuple[int, int]`): Width and height of the image, at which polygons are cut off.
        centers (`bool`): Whether whole numbers are the centers of pixels, so that the first pixel extends from -0.5 to
            0.5, and pixels on the outline belong to the polygon. By default they are the edges between pixels, and the
            first pixel extends from 0 to 1.
    """
    corners = np.concatenate(polygons)
    left, top = np.clip(np.floor(corners.min(axis=0)) - 1, 0, size).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)) + 2, (left, top), np.maximum(size, (left, top))).astype(int)
    box = (right - left, bottom - top)  # only these pixels are drawn, since most objects are small
    mask = np.zeros(box[::-1], dtype=bool)
    for points in polygons:
        shifted = points - (left, top)
        if not centers:
            mask |= _fill(shifted - 0.5, box)
            continue
        filled = np.zeros_like(mask)
        for nudge in _NUDGES:  # a center on the outline gets inside by one of them
            filled |= _fill(shifted + _NUDGE * np.array(nudge), box)
        mask |= filled if filled.any() else _draw_outline(shifted, box)  # nothing is inside a line
    return Patch(mask, int(left), int(top))


def pixels_of(points: np.ndarray) -> np.ndarray:
    """Return the pixels in which points lie, for tools whose own drawing drops the fractions of coordinates.

    Their editors show coordinates as edges between pixels, so that 10.7 lies in pixel 10, but they draw from center to
    center of such pixels, with the outline. Without this, an object would be half a pixel too far to the lower right.
    """
    return np.floor(points)


def cut_out(patch: Patch, hole: Patch, size: tuple[int, int]) -> Patch:
    """Take the pixels of a hole out of an object; `size` is width and height of the image."""
    mask = np.zeros(size[::-1], dtype=bool)
    for part, value in ((patch, True), (hole, False)):
        height, width = part.mask.shape
        mask[part.top : part.top + height, part.left : part.left + width][part.mask] = value
    return Patch.of(mask)


def _draw_outline(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw the edges of a polygon that is thinner than a pixel, in the coordinates of `_fill`."""
    mask = np.zeros(size[::-1], dtype=bool)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        steps = min(int(np.abs(end - start).max()), _MAX_STEPS)
        x, y = np.rint(np.linspace(start, end, steps + 1)).astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < size[0]) & (y < size[1])
        mask[y[inside], x[inside]] = True
    return mask


def _fill(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fill a polygon in coordinates in which the centers of pixels are whole numbers.

    Every edge toggles the pixels to the right of it in all rows that it crosses; those toggled an odd number of times
    are inside. The effort is that of the rows that the edges cross, however many edges there are.
    """
    width, height = size
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    first = np.clip(np.ceil(np.minimum(y0, y1)), 0, height).astype(int)
    after = np.clip(np.ceil(np.maximum(y0, y1)), 0, height).astype(int)
    counts = after - first
    edge = np.repeat(np.arange(len(points)), counts)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    x = x0[edge] + (row - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    toggles = np.zeros((height, width + 1), dtype=np.int32)
    np.add.at(toggles, (row, np.clip(np.ceil(x), 0, width).astype(int)), 1)
    return np.cumsum(toggles, axis=1)[:, :-1] % 2 == 1
