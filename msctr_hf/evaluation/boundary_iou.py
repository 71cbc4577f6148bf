"""Boundary IoU: how well outlines are met, whatever the size of what they enclose."""

from __future__ import annotations

from typing import Any

import numpy as np

DISTANCE = 0.02  # of the image's diagonal


class BoundaryIoU:
    """IoU of the pixels near outlines, per class, over a data set.

    A pixel of a class is near its outline if a pixel of another class, or the outside of the image, lies within the
    distance along rows and columns. What is ignored in the reference does not count, though it makes outlines.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`): Reference value that does not count.
        distance (`float`): As a share of the image's diagonal.

    Source: Cheng et al., CVPR 2021, Boundary IoU (https://arxiv.org/abs/2103.16562), Eq. 3, for label maps.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, distance: float = DISTANCE):
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.distance = distance
        self.counts = np.zeros((3, num_labels), dtype=np.int64)  # both, reference, prediction

    def update(self, prediction: Any, reference: Any) -> None:
        """Count one pair of label maps (H, W) of equal shape, uint8."""
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
        """Boundary IoU of every class, NaN where it has no outline in either."""
        both, reference, prediction = self.counts
        with np.errstate(invalid="ignore"):
            return both / (reference + prediction - both)


def near_outline(labels: np.ndarray, distance: int) -> np.ndarray:
    """Pixels (H, W) with another label, or the outside, within `distance` rows and columns.

    The least and the largest label of the square around a pixel differ there: two filters serve all classes.
    """
    near = _spread(labels, distance, np.maximum) != _spread(labels, distance, np.minimum)
    near[:distance] = near[-distance:] = True
    near[:, :distance] = near[:, -distance:] = True
    return near


def _spread(labels: np.ndarray, distance: int, choose: np.ufunc) -> np.ndarray:
    """Largest, or least, label of the square of 2 `distance` + 1 pixels around every pixel inside the image."""
    for axis in (0, 1):
        padded = np.pad(labels, [(distance, distance) if side == axis else (0, 0) for side in (0, 1)], mode="edge")
        labels = _running(padded, 2 * distance + 1, axis, choose)
    return labels


def _running(values: np.ndarray, width: int, axis: int, choose: np.ufunc) -> np.ndarray:
    """Choose among every `width` neighbors along an axis, by doubling: log2(width) passes."""
    values = np.moveaxis(values, axis, 0)
    covered = 1
    while covered < width:
        step = min(covered, width - covered)
        values = choose(values[:-step], values[step:])
        covered += step
    return np.moveaxis(values, 0, axis)
