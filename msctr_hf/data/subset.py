"""Random part of a data set, as if only its images were labeled."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from ..errors import UsageError

_PURPOSE = 1  # part of the seed, so that the draw is independent of the order of the training images


def draw_images(
    dataset: Dataset | IterableDataset, count: int, seed: int
) -> tuple[Dataset | IterableDataset, dict[str, Any]]:
    """Draw images of a data set, uniformly and without replacement; they keep their order.

    With one seed, the images of a smaller count are among those of a larger one.

    Args:
        dataset (`datasets.Dataset`): Samples {image, label, image_id}.
        count (`int`): Number of images to draw.
        seed (`int`): Seed of the draw.

    Returns:
        `tuple`: the images, and their description: `images`, `of`, `subset_seed` and the list of `image_ids`.

    Raises:
        UsageError: If there are fewer images, or the data set is a stream.
    """
    if isinstance(dataset, IterableDataset):
        raise UsageError(
            f"`train_images={count}` draws from all images, and a stream does not tell how many there are; leave "
            "`streaming` out."
        )
    if count > len(dataset):
        raise UsageError(f"`train_images` must be at most {len(dataset)}, the number of training images, got {count}.")
    drawn = dataset.select(np.sort(_in_random_order(dataset, seed)[:count]))
    image_ids = [str(image_id) for image_id in drawn.with_format(None)["image_id"][:]]
    return drawn, {"images": count, "of": len(dataset), "subset_seed": seed, "image_ids": image_ids}


def images_left_out(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Return the images that `draw_images` does not draw, in their order."""
    return dataset.select(np.sort(_in_random_order(dataset, seed)[count:]))


def _in_random_order(dataset: Dataset, seed: int) -> np.ndarray:
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PURPOSE,)))
    return random.permutation(len(dataset))
