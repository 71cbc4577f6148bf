"""Repeat factors: images with rare classes are drawn several times in an epoch."""

from __future__ import annotations

import numpy as np

from ..errors import UsageError


def repeat_factors(present: np.ndarray, threshold: float) -> np.ndarray:
    """Compute the average number of times that every image is drawn in an epoch.

    With the share f(c) of images in which class c occurs, r(c) = max(1, sqrt(threshold / f(c))); the factor of an
    image is the largest r(c) of its classes.

    Args:
        present (`np.ndarray` of shape `(N, num_classes)`, bool): Classes of every image.
        threshold (`float`): Images with classes that occur in a smaller share of the images are repeated.

    Returns:
        `np.ndarray` of shape `(N,)`: factors of at least 1.

    Source: Pissas et al., ECCV 2022, CaDIS recipe (threshold 0.15).
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"`repeat_factor_threshold` must be in (0, 1], got {threshold}.")
    share = present.mean(axis=0)
    with np.errstate(divide="ignore"):
        class_factors = np.where(share > 0, np.maximum(1.0, np.sqrt(threshold / share)), 1.0)
    return np.where(present, class_factors, 1.0).max(axis=1)
