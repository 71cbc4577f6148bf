"""Batches continue at the image after the last one that was seen, however the images are split into batches."""

import itertools
import os
import zlib

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset as Rows
from datasets import config
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from msctr_hf.data.loaders import ShuffledSampler, training_loader
from msctr_hf.data.settings import DataSettings
from msctr_hf.errors import UsageError
from msctr_hf.training.checkpointing import Progress
from msctr_hf.training.training_data import UnlabeledPosition, endless_batches

NUM_IMAGES = 11


class Keys(Dataset):
    """Samples that are their keys: (epoch, index, repeat)."""

    def __len__(self):
        return NUM_IMAGES

    def __getitem__(self, key):
        return torch.tensor(key)


def batches_from(epoch, images, batch_size, repeats, count):
    """Read a number of batches from a position in the data; return their keys and the position after them."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True)
    sampler = ShuffledSampler(NUM_IMAGES, 7, repeats)
    loader = accelerator.prepare(DataLoader(Keys(), batch_size=batch_size, sampler=sampler, drop_last=True))
    progress = Progress(epoch=epoch, images_in_epoch=images)
    batches = endless_batches(accelerator, loader, progress, batch_size, sampler)
    keys = [list(map(tuple, batch.tolist())) for batch in itertools.islice(batches, count)]
    return keys, (progress.epoch, progress.images_in_epoch)


@pytest.mark.parametrize("repeats", [None, np.linspace(1, 2.5, NUM_IMAGES)], ids=["plain", "repeats"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 11])
@pytest.mark.parametrize("images", [0, 5, 6, 10, 11])
def test_batches_continue_at_any_image_of_an_epoch(images, batch_size, repeats):
    orders = []
    for epoch in range(2, 40):
        sampler = ShuffledSampler(NUM_IMAGES, 7, repeats)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    orders[0] = orders[0][images:]
    expected, ends = [], []
    for epoch, order in enumerate(orders, start=2):
        for start in range(0, len(order) - batch_size + 1, batch_size):
            expected.append(order[start : start + batch_size])
            ends.append((epoch, start + batch_size + (images if epoch == 2 else 0)))
    keys, position = batches_from(2, images, batch_size, repeats, 30)
    assert keys == expected[:30]
    assert position == ends[29]
    assert batches_from(*position, batch_size, repeats, 3)[0] == expected[30:33]


class Draws:
    """Augmentation that returns the number of a sample, a random number, and the process that drew it."""

    def tensors(self, sample, random):
        drawn = {
            "number": int(sample["image_id"]),
            "random": np.float64(random.random()),
            "process": os.getpid(),
            "wait": getattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0),  # after every epoch of parquet files
        }
        return {name: torch.tensor(value) for name, value in drawn.items()}


def batches_of_a_stream(num_images, batch_size, num_workers, position=(0, 0), num_shards=1):
    """Return the batches of a stream from a position in it, without end."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True)
    rows = Rows.from_dict({"image_id": [str(number) for number in range(num_images)]})
    loader = training_loader(
        rows.to_iterable_dataset(num_shards), Draws(), batch_size=batch_size, seed=7, num_workers=num_workers
    )
    prepared = accelerator.prepare(loader)
    return endless_batches(
        accelerator, prepared, UnlabeledPosition(*position), batch_size, None, "unlabeled_batch_size"
    )


def drawn(batches, count):
    taken = list(itertools.islice(batches, count))
    return [(batch["number"].tolist(), batch["random"].tolist()) for batch in taken], taken


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_keeps_its_workers_which_draw_by_seed_epoch_and_image(num_workers):
    found, batches = drawn(batches_of_a_stream(5, 2, num_workers), 8)
    processes = {process for batch in batches for process in batch["process"].tolist()}
    assert len(processes) == 1
    assert (os.getpid() in processes) == (num_workers == 0)
    assert all((batch["wait"] > 0).all() == (num_workers == 0) for batch in batches)
    for epoch in range(4):
        of_epoch = [
            pair for batch in found[2 * epoch : 2 * epoch + 2] for pair in zip(*batch, strict=True)
        ]  # two batches of two, and an image that is left over
        assert len({number for number, _ in of_epoch}) == 4
        for number, value in of_epoch:
            assert value == np.random.default_rng((7, epoch, zlib.crc32(str(number).encode()), 1)).random()
    orders = [[number for numbers, _ in found[2 * epoch : 2 * epoch + 2] for number in numbers] for epoch in range(4)]
    assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize("position", [(0, 2), (1, 0), (1, 2), (1, 4)])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_of_a_stream_continue_where_they_ended(num_workers, position):
    whole, _ = drawn(batches_of_a_stream(5, 2, num_workers), 9)
    seen = position[0] * 2 + position[1] // 2  # batches
    assert drawn(batches_of_a_stream(5, 2, num_workers, position), 9 - seen)[0] == whole[seen:]


class DrawsOfImages:
    """Augmentation that returns the value of the pixels and a random number."""

    def tensors(self, sample, random):
        pixel = int(np.asarray(sample["image"])[0, 0, 0])
        return {"number": torch.tensor(pixel), "random": torch.tensor(random.random(), dtype=torch.float64)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_of_a_stream_of_shards_without_ids_draw_the_same_after_resuming(tmp_path, num_workers):
    images = [Image.fromarray(np.full((4, 5, 3), number, np.uint8)) for number in range(12)]
    rows = Rows.from_dict({"image": images, "label": [image.convert("L") for image in images]})
    for shard in range(4):
        rows.shard(4, shard).to_parquet(tmp_path / f"test-{shard}.parquet")
    arguments = DataSettings(
        dataset="camvid", data_dir=str(tmp_path), streaming=True, unlabeled="test", num_workers=num_workers
    )

    def batches(position=(0, 0)):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        accelerator = Accelerator(cpu=True)
        unlabeled = arguments.load_unlabeled(seed=7)
        loader = training_loader(unlabeled, DrawsOfImages(), batch_size=2, seed=7, num_workers=num_workers)
        prepared = accelerator.prepare(loader)
        return endless_batches(accelerator, prepared, UnlabeledPosition(*position), 2, None)

    whole, _ = drawn(batches(), 12)
    for epoch in range(2):
        numbers, values = (sum(column, []) for column in zip(*whole[6 * epoch : 6 * epoch + 6], strict=True))
        assert sorted(numbers) == list(range(12))
        assert len(set(values)) == 12
    assert drawn(batches((0, 4)), 10)[0] == whole[2:]
    assert drawn(batches((1, 2)), 5)[0] == whole[7:]


@pytest.mark.parametrize(("num_images", "num_workers"), [(3, 0), (3, 1), (6, 2)])
def test_a_stream_that_does_not_fill_a_batch_is_refused(num_images, num_workers):
    batches = batches_of_a_stream(num_images, 4, num_workers, num_shards=max(1, num_workers))
    with pytest.raises(UsageError, match=r"fewer than the 4 images .*; lower `unlabeled_batch_size` or `num_workers`"):
        next(batches)
