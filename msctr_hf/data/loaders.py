"""Batches of a data set: augmented for training, unchanged for evaluation.

The augmentation of a sample depends only on (seed, epoch, index, repeat), so that any number of workers or processes,
and a resumed run, see the same images.
"""

from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset, IterableDataset, config
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, Sampler, Subset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset

from .decoding import rows_for_crops
from .worker_signals import ignore_signals

ID_BYTES = 96
SHUFFLE_BUFFER = 64  # decoded samples of a stream that every worker holds to shuffle them
Key = tuple[int, int, int]  # epoch, index, number of earlier occurrences of the index in this epoch


class Augmentation(Protocol):
    """Random change of a sample, as tensors that can be stacked to a batch."""

    def tensors(self, sample: dict[str, Any], random: np.random.Generator) -> dict[str, torch.Tensor]:
        """Augment a sample {image, label}."""


class ShuffledSampler(Sampler):
    """Sampler whose order depends only on (seed, epoch); it yields (epoch, index, repeat).

    Args:
        num_samples (`int`): Number of samples in the data set.
        seed (`int`): Seed of the order of every epoch.
        repeats (`np.ndarray` of shape `(num_samples,)`, *optional*):
            How often a sample is drawn in an epoch, on average; fractions are rounded up or down at random in every
            epoch. Every sample is drawn once by default.
    """

    def __init__(self, num_samples: int, seed: int, repeats: np.ndarray | None = None):
        self.num_samples = num_samples
        self.seed = seed
        self.repeats = repeats
        self.epoch = 0
        self.start = 0  # position in the epoch at which an iteration begins, after an interruption within the epoch

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch for the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Count the samples of the whole epoch."""
        return len(self._indices(np.random.default_rng((self.seed, self.epoch))))

    def __iter__(self) -> Iterator[Key]:
        epoch, start, random = self.epoch, self.start, np.random.default_rng((self.seed, self.epoch))
        indices = random.permutation(self._indices(random))
        occurred = np.zeros(self.num_samples, dtype=int)
        for position, index in enumerate(indices.tolist()):
            if position >= start:
                yield epoch, index, int(occurred[index])
            occurred[index] += 1

    def _indices(self, random: np.random.Generator) -> np.ndarray:
        if self.repeats is None:
            return np.arange(self.num_samples)
        whole = np.floor(self.repeats)
        counts = whole + (random.random(self.num_samples) < self.repeats - whole)
        return np.repeat(np.arange(self.num_samples), counts.astype(int))


class AugmentedDataset(TorchDataset):
    """Augmented training samples, indexed by (epoch, index, repeat)."""

    def __init__(self, dataset: Dataset, augmentation: Augmentation, seed: int):
        self.dataset = rows_for_crops(dataset)
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        epoch, index, repeat = key
        sample = self.dataset[index]
        # 1 + repeat, since numpy ignores zeros at the end of a seed: (seed, epoch, 0, 0) is the seed of the sampler
        random = np.random.default_rng((self.seed, epoch, index, 1 + repeat))
        return _augmented(sample, self.augmentation, random)


class AugmentedStream(TorchIterableDataset):
    """Augmented training samples from a shuffled stream, of which every worker reads its own shards."""

    def __init__(self, stream: IterableDataset, augmentation: Augmentation, seed: int):
        self.stream = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = torch.tensor(0).share_memory_()  # as that of the stream, so that running workers see the next one

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch for the next iteration."""
        self.epoch.fill_(epoch)
        self.stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        epoch = int(self.epoch)
        for sample in self.stream:
            identity = zlib.crc32(sample["image_id"].encode())  # samples of a stream have no index
            random = np.random.default_rng((self.seed, epoch, identity, 1))
            yield _augmented(sample, self.augmentation, random)


def _augmented(
    sample: dict[str, Any], augmentation: Augmentation, random: np.random.Generator
) -> dict[str, torch.Tensor]:
    return {**augmentation.tensors(sample, random), "image_id": _encode(sample["image_id"])}


def _encode(image_id: str) -> torch.Tensor:
    """Encode the end of an id as bytes, since a batch that is sent to other processes may contain only tensors."""
    data = image_id.encode()[-ID_BYTES:].ljust(ID_BYTES, b"\0")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def image_ids(encoded: torch.Tensor) -> list[str]:
    """Decode the image ids of a training batch, (B, 96) uint8."""
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in encoded.cpu().numpy()]


def training_loader(
    dataset: Dataset | IterableDataset,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    num_workers: int,
    repeats: np.ndarray | None = None,
) -> DataLoader:
    """Load training batches: the tensors of the augmentation and `image_id`.

    Those of `TrainingAugmentation` are {pixel_values (B, 3, h, w) float32, labels (B, h, w) int64}. Incomplete batches
    are dropped. `image_ids` decodes `image_id`, which is stored as bytes. `repeats` are the average numbers of times
    that samples are drawn in an epoch, as in `ShuffledSampler`.
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
        persistent_workers=num_workers > 0,  # a few images are soon read, and new workers would take longer than that
        generator=torch.Generator(),  # otherwise the start of an epoch would consume random numbers of the training
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals if sampler is not None else _start_worker_of_a_stream,
    )


def _start_worker_of_a_stream(worker_id: int) -> None:
    """Prepare a worker that reads a shuffled stream over and over.

    datasets waits five seconds after every reading of parquet files, for threads of pyarrow that might crash Python
    while it exits. A worker ends without that (by `os._exit`), unless it was spawned.
    """
    ignore_signals(worker_id)
    if multiprocessing.get_start_method() != "spawn":
        config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0


def evaluation_loader(
    dataset: Dataset | IterableDataset,
    *,
    batch_size: int,
    num_workers: int,
    process_index: int = 0,
    num_processes: int = 1,
) -> DataLoader:
    """Load lists of unchanged samples {image, label, image_id}, divided among processes without duplicates."""
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
        generator=torch.Generator(),  # otherwise validation would consume random numbers of the training
        worker_init_fn=ignore_signals,
    )


def _keep_as_list(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return samples
