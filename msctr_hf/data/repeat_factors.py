"""Repeat factors: images with rare classes are drawn several times in an epoch."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader

from ..errors import UsageError
from ..progress import progress
from .decoding import rows_of_labels
from .labels import IGNORE_INDEX


def classes_present(
    dataset: Dataset, num_classes: int, *, num_workers: int = 0, show_progress: bool = True
) -> np.ndarray:
    """Find the classes that occur in every image, in one pass over all labels.

    Args:
        dataset (`datasets.Dataset`): Samples {image, label, image_id}; images are not read.
        num_classes (`int`): Number of classes.
        num_workers (`int`): Number of worker processes.
        show_progress (`bool`): Whether to show a progress bar.

    Returns:
        `np.ndarray` of shape `(len(dataset), num_classes)`, bool.
    """
    loader = DataLoader(rows_of_labels(dataset), batch_size=8, num_workers=num_workers, collate_fn=_histograms)
    present = []
    with progress(total=len(dataset), title="counting classes", unit="image", shown=show_progress) as bar:
        for histograms in loader:
            present.append(histograms[:, :num_classes] > 0)
            bar.update(len(histograms))
    return np.concatenate(present)


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


def _histograms(samples: list[dict]) -> np.ndarray:
    """Count the pixels of every train id, (batch, 255)."""
    return np.asarray([sample["label"].histogram()[:IGNORE_INDEX] for sample in samples])
