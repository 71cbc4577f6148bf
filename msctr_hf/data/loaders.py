"""From a data set to batches: augmented for training, untouched for evaluation.

The randomness of a sample follows from (seed, epoch, index) alone, so that workers, processes and resumed runs see the
same images.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, Sampler, Subset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset

from .augmentation import TrainingAugmentation
from .decoding import rows_for_crops
from .worker_signals import ignore_signals

ID_BYTES = 96
SHUFFLE_BUFFER = 64  # samples of a stream that every worker holds, decoded, to be mixed
Key = tuple[int, int, int]  # epoch, index, how often the index came before in this epoch


class ShuffledSampler(Sampler):
    """Samples in an order that follows from (seed, epoch), some of them several times; yields (epoch, index, repeat).

    Args:
        num_samples (`int`): Samples of the data set.
        seed (`int`): Seed of the orders.
        repeats (`np.ndarray` of shape `(num_samples,)`, *optional*):
            How often a sample comes in an epoch, on average; fractions are rounded up or down at random in every
            epoch. Once each by default.
    """

    def __init__(self, num_samples: int, seed: int, repeats: np.ndarray | None = None):
        self.num_samples = num_samples
        self.seed = seed
        self.repeats = repeats
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._indices(np.random.default_rng((self.seed, self.epoch))))

    def __iter__(self) -> Iterator[Key]:
        epoch, random = self.epoch, np.random.default_rng((self.seed, self.epoch))
        indices = random.permutation(self._indices(random))
        came = np.zeros(self.num_samples, dtype=int)
        for index in indices.tolist():
            yield epoch, index, int(came[index])
            came[index] += 1

    def _indices(self, random: np.random.Generator) -> np.ndarray:
        if self.repeats is None:
            return np.arange(self.num_samples)
        whole = np.floor(self.repeats)
        counts = whole + (random.random(self.num_samples) < self.repeats - whole)
        return np.repeat(np.arange(self.num_samples), counts.astype(int))


class AugmentedDataset(TorchDataset):
    """Training samples, augmented; indexed by (epoch, index, repeat)."""

    def __init__(self, dataset: Dataset, augmentation: TrainingAugmentation, seed: int):
        self.dataset = rows_for_crops(dataset)
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        epoch, index, repeat = key
        sample = self.dataset[index]
        random = np.random.default_rng((self.seed, epoch, index, 1 + repeat))  # another stream than the sampler's
        return _augmented(sample, self.augmentation, random)


class AugmentedStream(TorchIterableDataset):
    """Training samples from a stream, mixed and augmented; every worker reads shards of its own."""

    def __init__(self, stream: IterableDataset, augmentation: TrainingAugmentation, seed: int):
        self.stream = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch
        self.stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for sample in self.stream:
            identity = zlib.crc32(sample["image_id"].encode())  # a stream has no index
            random = np.random.default_rng((self.seed, self.epoch, identity, 1))
            yield _augmented(sample, self.augmentation, random)


def _augmented(
    sample: dict[str, Any], augmentation: TrainingAugmentation, random: np.random.Generator
) -> dict[str, torch.Tensor]:
    pixel_values, labels = augmentation(sample["image"], sample["label"], random)
    return {"pixel_values": pixel_values, "labels": labels, "image_id": _encode(sample["image_id"])}


def _encode(image_id: str) -> torch.Tensor:
    """The end of an id as bytes: strings cannot be sent from process to process with a batch."""
    data = image_id.encode()[-ID_BYTES:].ljust(ID_BYTES, b"\0")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def image_ids(encoded: torch.Tensor) -> list[str]:
    """Ids of a training batch: (B, 96) uint8 -> names."""
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in encoded.cpu().numpy()]


def training_loader(
    dataset: Dataset | IterableDataset,
    augmentation: TrainingAugmentation,
    *,
    batch_size: int,
    seed: int,
    num_workers: int,
    repeats: np.ndarray | None = None,
) -> DataLoader:
    """Batches {pixel_values (B, 3, h, w) float32, labels (B, h, w) int64, image_id}; incomplete ones are dropped.

    `image_ids` reads `image_id`, which travels as bytes.
    `repeats` says how often every sample comes in an epoch, see `ShuffledSampler`.
    """
    samples: AugmentedStream | AugmentedDataset
    if isinstance(dataset, IterableDataset):
        samples, sampler = AugmentedStream(dataset, augmentation, seed), None
        num_workers = min(num_workers, dataset.num_shards)
    else:
        samples = AugmentedDataset(dataset, augmentation, seed)
        sampler = ShuffledSampler(len(dataset), seed, repeats)
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0 and sampler is not None,  # a stream is told its epoch when workers start
        generator=torch.Generator(),  # starting an epoch must not draw from the numbers that training draws from
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
    )


def evaluation_loader(
    dataset: Dataset | IterableDataset,
    *,
    batch_size: int,
    num_workers: int,
    process_index: int = 0,
    num_processes: int = 1,
) -> DataLoader:
    """Lists of raw samples {image, label, image_id}; every process gets its own share, none gets one twice."""
    if isinstance(dataset, IterableDataset):
        share = split_dataset_by_node(dataset, rank=process_index, world_size=num_processes)
        num_workers = min(num_workers, dataset.num_shards)
    else:
        share = Subset(dataset, range(process_index, len(dataset), num_processes))
    return DataLoader(
        share,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_keep_as_list,
        generator=torch.Generator(),  # validating must not change the numbers that training draws
        worker_init_fn=ignore_signals,
    )


def _keep_as_list(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return samples
