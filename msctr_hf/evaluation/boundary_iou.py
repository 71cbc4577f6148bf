"""Boundary IoU, which measures how well predicted outlines match, whatever the size of the objects."""

from __future__ import annotations

from typing import Any

import numpy as np

DISTANCE = 0.02  # share of the diagonal of the image


class BoundaryIoU:
    """IoU of the pixels near outlines, per class, accumulated over a data set.

    A pixel is near the outline of its class if a pixel of another class, or the border of the image, is within the
    distance along rows and columns. Ignored pixels are not counted, but they do form outlines.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`): Reference value that is not counted.
        distance (`float`): Width of the zone near an outline, as a share of the diagonal of the image.

    Source: Cheng et al., CVPR 2021, Boundary IoU (https://arxiv.org/abs/2103.16562), Eq. 3, for label maps.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, distance: float = DISTANCE):
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.distance = distance
        self.counts = np.zeros((3, num_labels), dtype=np.int64)  # rows: both, reference, prediction

    def update(self, prediction: Any, reference: Any) -> None:
        """Add one pair of label maps (H, W) of equal shape, uint8."""
        prediction, reference = np.asarray(prediction, dtype=np.uint8), np.asarray(reference, dtype=np.uint8)
        pixels = max(1, round(self.distance * float(np.hypot(*reference.shape))))
        valid = reference != self.ignore_index
        near_reference = near_outline(reference, pixels) & valid
        near_prediction = near_outline(prediction, pixels) & valid
        both = near_reference & near_prediction & (prediction == reference)
        for row, (labels, near) in enumerate(
            ((reference, both), (reference, near_reference), (prediction, near_prediction))
        ):
            self.counts[row] += np.bincount(labels[near], minlength=self.num_labels)[: self.num_labels]

    def scores(self) -> np.ndarray:
        """Return the boundary IoU of every class; NaN for classes that are absent from both."""
        both, reference, prediction = self.counts
        with np.errstate(invalid="ignore"):
            return both / (reference + prediction - both)


def near_outline(labels: np.ndarray, distance: int) -> np.ndarray:
    """Mark the pixels (H, W) that have a different label, or the border, within `distance` rows and columns.

    These are the pixels where the smallest and the largest label of the surrounding square differ, so that two filters
    are enough for all classes.
    """
    near = _spread(labels, distance, np.maximum) != _spread(labels, distance, np.minimum)
    near[:distance] = near[-distance:] = True
    near[:, :distance] = near[:, -distance:] = True
    return near


def _spread(labels: np.ndarray, distance: int, choose: np.ufunc) -> np.ndarray:
    """Take the largest (or smallest) label in the square of 2 `distance` + 1 pixels around every pixel."""
    for axis in (0, 1):
        padded = np.pad(labels, [(distance, distance) if side == axis else (0, 0) for side in (0, 1)], mode="edge")
        labels = _running(padded, 2 * distance + 1, axis, choose)
    return labels


def _running(values: np.ndarray, width: int, axis: int, choose: np.ufunc) -> np.ndarray:
    """Take the largest (or smallest) of every `width` neighbors along an axis, in log2(width) passes."""
    values = np.moveaxis(values, axis, 0)
    covered = 1
    while covered < width:
        step = min(covered, width - covered)
        values = choose(values[:-step], values[step:])
        covered += step
    return np.moveaxis(values, 0, axis)
