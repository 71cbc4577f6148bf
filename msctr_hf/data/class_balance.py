"""Numbers of pixels of the classes of a data set, and the class weights that follow from them."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from ..progress import progress
from .decoding import rows_of_labels
from .labels import IGNORE_INDEX

LARGEST_WEIGHT = 50.0


def pixels_of_classes(
    dataset: Dataset, num_classes: int, *, num_workers: int = 0, show_progress: bool = True
) -> np.ndarray:
    """Count the pixels of every class in every image, in one pass over all labels.

    Args:
        dataset (`datasets.Dataset`): Samples {image, label, image_id}; images are not read.
        num_classes (`int`): Number of classes.
        num_workers (`int`): Number of worker processes.
        show_progress (`bool`): Whether to show a progress bar.

    Returns:
        `np.ndarray` of shape `(len(dataset), num_classes)`, int64.

    Raises:
        UsageError: If labels cannot be read.
    """
    loader = DataLoader(
        rows_of_labels(dataset),
        batch_size=8,
        num_workers=num_workers,
        collate_fn=_histograms,
        generator=torch.Generator(),  # otherwise counting would consume a random number of the training
    )
    counted = []
    with progress(total=len(dataset), title="counting classes", unit="image", shown=show_progress) as bar:
        for histograms in loader:
            counted.append(histograms[:, :num_classes])
            bar.update(len(histograms))
    return np.concatenate(counted)


def median_frequency_weights(pixels: np.ndarray) -> list[float]:
    """Compute a weight for every class that balances their pixels: the median frequency over that of the class.

    The frequency of a class is its share of the labeled pixels of the images in which it occurs. The class with the
    median frequency has weight 1, so that the loss keeps its magnitude, and with it the learning rate and the weights
    of the other terms; 1 / ln(1.02 + share) of Paszke et al. (ENet, 2016), the other common formula, would multiply a
    cross entropy that is divided by the number of pixels. From there is the upper limit of 50, so that a few pixels
    of a class do not dominate a batch. A class without a pixel has weight 1, and does not count in the median.

    Args:
        pixels (`np.ndarray` of shape `(N, num_classes)`): Numbers of pixels of every class in every image.

    Returns:
        `list[float]`: A weight for every class, rounded to four digits.

    Source: Eigen and Fergus, ICCV 2015.
    """
    labeled = pixels.sum(axis=1)
    total = pixels.sum(axis=0)
    around = np.array([labeled[has_class].sum() for has_class in (pixels > 0).T])
    present = total > 0
    frequency = np.divide(total, around, out=np.ones(len(total)), where=present)
    weights = np.ones(len(total))
    if present.any():
        weights[present] = np.minimum(np.median(frequency[present]) / frequency[present], LARGEST_WEIGHT)
    return [float(f"{weight:.4g}") for weight in weights]


def _histograms(samples: list[dict]) -> np.ndarray:
    """Count the pixels of every train id, (batch, 255)."""
    return np.asarray([sample["label"].histogram()[:IGNORE_INDEX] for sample in samples])
