"""Batches continue at the image after the last one that was seen, however the images are split into batches."""

import itertools

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import DataLoader, Dataset

from msctr_hf.data.loaders import ShuffledSampler
from msctr_hf.training.checkpointing import Progress
from msctr_hf.training.training_data import endless_batches

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
