"""A number of epochs is converted to steps, and validations are due at sensible intervals by default."""

import numpy as np
import pytest

from msctr_hf.data.loaders import ShuffledSampler
from msctr_hf.errors import UsageError
from msctr_hf.training.duration import Duration, Epochs, plan_duration
from msctr_hf.training.settings import TrainingSettings


def epochs(num_images=10, batch_size=2, gradient_accumulation_steps=1, num_processes=1, repeats=None):
    sampler = ShuffledSampler(num_images, 0, repeats)
    return Epochs(sampler, batch_size, gradient_accumulation_steps, num_processes)


def plan(of=None, **settings):
    return plan_duration(TrainingSettings(**settings), of)


@pytest.mark.parametrize("repeats", [None, np.linspace(1, 3, 11)], ids=["plain", "repeats"])
@pytest.mark.parametrize("accumulated", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_epochs", [0.1, 1, 1.5, 3, 6])
def test_all_steps_have_the_same_number_of_batches(accumulated, repeats, num_epochs):
    epoch_of_batches = []  # in the order in which they are read
    for epoch in range(30):
        sampler = ShuffledSampler(11, 0, repeats)
        sampler.set_epoch(epoch)
        epoch_of_batches += [epoch] * (len(list(sampler)) // 2)
    whole, part = int(num_epochs), num_epochs % 1
    wanted = sum(epoch < whole for epoch in epoch_of_batches) + part * epoch_of_batches.count(whole)
    steps, batches = 0, 0
    while batches < wanted:
        steps, batches = steps + 1, batches + accumulated
    of_each = epochs(11, 2, accumulated, repeats=repeats)
    assert of_each.steps_until(num_epochs) == steps
    last = epoch_of_batches[batches - 1]  # the epoch in which the last step ends
    seen = epoch_of_batches[:batches].count(last) / epoch_of_batches.count(last)
    assert of_each.epochs_until(steps) == pytest.approx(last + seen, rel=1e-12)


def test_five_batches_four_of_which_are_a_step_are_one_and_a_quarter_steps():
    duration = plan(epochs(11, 2, 4), num_train_epochs=3)
    assert duration == Duration(max_steps=4, validation_steps=2, batches_per_epoch=5)
    assert duration.num_epochs == 3.2
    assert plan(epochs(11, 2, 4), max_steps=40).num_epochs == 32


@pytest.mark.parametrize(
    ("num_epochs", "steps"), [(1, 10), (2, 20), (0.5, 5), (1.1, 11), (2.3, 23), (1.25, 13), (0.001, 1)]
)
def test_a_part_of_an_epoch_is_rounded_up_to_a_step(num_epochs, steps):
    assert epochs(num_images=20).steps_until(num_epochs) == steps


def test_epochs_of_one_length_are_not_drawn_one_by_one(monkeypatch):
    drawn = []
    monkeypatch.setattr(ShuffledSampler, "set_epoch", lambda sampler, epoch: drawn.append(epoch))
    assert epochs(num_images=20).steps_until(1000) == 10_000
    assert len(drawn) < 5


def test_the_batches_of_an_epoch_are_divided_among_processes():
    assert epochs(num_images=17, batch_size=2, num_processes=3).batches(0) == 2  # of 8


def test_epochs_with_repeat_factors_differ_in_their_number_of_steps():
    repeats = np.linspace(1, 3, 40)
    of_each = epochs(40, 2, repeats=repeats)
    lengths = []
    for epoch in range(4):
        sampler = ShuffledSampler(40, 0, repeats)
        sampler.set_epoch(epoch)
        lengths.append(len(list(sampler)) // 2)
    assert len(set(lengths)) > 1
    assert [of_each.batches(epoch) for epoch in range(4)] == lengths
    assert of_each.steps_until(4) == sum(lengths)
    assert of_each.sampler.epoch == 0
    assert plan(of_each, num_train_epochs=3).num_epochs == 3  # not by the length of the first epoch
    half = lengths[2] // 2
    assert plan(of_each, max_steps=sum(lengths[:2]) + half).num_epochs == 2 + half / lengths[2]


def test_the_number_of_epochs_gives_the_number_of_steps():
    duration = plan(epochs(num_images=100, batch_size=4), num_train_epochs=3.0)
    assert (duration.max_steps, duration.batches_per_epoch, duration.num_epochs) == (75, 25, 3.0)
    assert plan(epochs(num_images=100, batch_size=4), max_steps=50).num_epochs == 2.0
    assert plan(max_steps=50).num_epochs is None
    assert plan().max_steps == 40_000


def test_a_number_of_epochs_is_refused_for_a_stream():
    with pytest.raises(UsageError, match=r"`num_train_epochs=2.0` counts passes .* use `max_steps`"):
        plan(num_train_epochs=2.0)


@pytest.mark.parametrize(
    ("batches_per_epoch", "max_steps", "validation_steps"),
    [
        (10, 100, 10),  # every epoch
        (10, 1000, 50),  # 20 times in the run
        (10, 200_000, 5_000),
        (9_000, 18_000, 5_000),
        (None, 1000, 50),
        (None, 10, 1),
        (None, 200_000, 5_000),
    ],
)
def test_the_default_validation_interval_is_an_epoch_within_two_limits(batches_per_epoch, max_steps, validation_steps):
    of = None if batches_per_epoch is None else epochs(num_images=2 * batches_per_epoch)
    assert plan(of, max_steps=max_steps) == Duration(max_steps, validation_steps, batches_per_epoch)
    assert plan(of, max_steps=max_steps, validation_steps=7).validation_steps == 7
