from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from msctr_hf.data.loaders import ShuffledSampler
from msctr_hf.data.repeat_factors import repeat_factors


def test_factors_are_those_of_the_rarest_class_of_an_image():
    present = np.zeros((100, 3), dtype=bool)
    present[:, 0] = True
    present[:4, 1] = True  # in 4 % of the images
    present[2:3, 2] = True  # in 1 %
    factors = repeat_factors(present, threshold=0.16)
    assert factors[0] == pytest.approx(2.0)  # sqrt(0.16 / 0.04)
    assert factors[2] == pytest.approx(4.0)
    assert factors[50] == 1.0
    assert repeat_factors(np.zeros((3, 2), bool), 0.15).tolist() == [1, 1, 1]


@pytest.mark.parametrize("threshold", [0, -1, 1.5])
def test_thresholds_outside_0_to_1_are_refused(threshold):
    with pytest.raises(ValueError, match="repeat_factor_threshold"):
        repeat_factors(np.ones((2, 2), bool), threshold)


def test_images_are_drawn_as_often_as_their_factors_say():
    factors = np.array([1.0, 1.5, 2.25, 1.0])
    counts = Counter()
    for epoch in range(400):
        sampler = ShuffledSampler(4, seed=0, repeats=factors)
        sampler.set_epoch(epoch)
        keys = list(sampler)
        # a repeated image has another key, so that it is augmented differently
        assert len(keys) == len(sampler) == len(set(keys))
        of_epoch = Counter(index for _, index, _ in keys)
        assert all(np.floor(factors[i]) <= of_epoch[i] <= np.ceil(factors[i]) for i in range(4))
        counts += of_epoch
    assert np.abs(np.array([counts[i] for i in range(4)]) / 400 - factors).max() < 0.08


def test_every_process_draws_the_same_epoch():
    orders = []
    for _ in range(2):
        sampler = ShuffledSampler(50, seed=3, repeats=np.linspace(1, 3, 50))
        sampler.set_epoch(5)
        orders.append(list(sampler))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_an_epoch_without_overlap(processes):
    """This divides batches as Accelerate does, over epochs of different lengths."""
    for epoch in range(5):
        seen = []
        for process in range(processes):
            sampler = ShuffledSampler(40, seed=1, repeats=np.linspace(1, 2.5, 40))
            sampler.set_epoch(epoch)
            batches = BatchSampler(sampler, batch_size=4, drop_last=True)
            seen.append([key for batch in BatchSamplerShard(batches, processes, process) for key in batch])
        assert len({len(keys) for keys in seen}) == 1
        together = [key for keys in seen for key in keys]
        assert len(together) == len(set(together)) > 40 - 4 * processes
