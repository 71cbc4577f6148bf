"""From a data set to batches: augmented for training, untouched for evaluation.

The randomness of a sample follows from (seed, epoch, index) alone, so that the number of workers does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler, Subset
from torch.utils.data import Dataset as TorchDataset

from .augmentation import TrainingAugmentation


class ShuffledSampler(Sampler):
    """All samples in an order that follows from (seed, epoch); yields (epoch, index)."""

    def __init__(self, samples: Sized, seed: int):
        self.num_samples = len(samples)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples)
        return ((self.epoch, int(index)) for index in order)


class AugmentedDataset(TorchDataset):
    """Training samples, augmented; indexed by (epoch, index)."""

    def __init__(self, dataset: Dataset, augmentation: TrainingAugmentation, seed: int):
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        sample = self.dataset[index]
        random = np.random.default_rng((self.seed, epoch, index, 1))  # another stream than the sampler's
        pixel_values, labels = self.augmentation(sample["image"], sample["label"], random)
        return {"pixel_values": pixel_values, "labels": labels}


def training_loader(
    dataset: Dataset, augmentation: TrainingAugmentation, *, batch_size: int, seed: int, num_workers: int
) -> DataLoader:
    """Batches {pixel_values (B, 3, h, w) float32, labels (B, h, w) int64}; incomplete ones are dropped."""
    return DataLoader(
        AugmentedDataset(dataset, augmentation, seed),
        batch_size=batch_size,
        sampler=ShuffledSampler(dataset, seed),
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # starting an epoch must not draw from the numbers that training draws from
        pin_memory=torch.cuda.is_available(),
    )


def evaluation_loader(
    dataset: Dataset, *, batch_size: int, num_workers: int, process_index: int = 0, num_processes: int = 1
) -> DataLoader:
    """Lists of raw samples {image, label, image_id}; every process gets its own share, none gets one twice."""
    share = range(process_index, len(dataset), num_processes)
    return DataLoader(
        Subset(dataset, share),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_keep_as_list,
        generator=torch.Generator(),  # validating must not change the numbers that training draws
    )


def _keep_as_list(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return samples
