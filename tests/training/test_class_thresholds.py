"""Thresholds by class are those of a loop over pixels, whatever the processes and interruptions between them."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from msctr_hf import MsctrForSemanticSegmentation
from msctr_hf.training import class_thresholds
from msctr_hf.training.class_thresholds import BINS, DECAY, ClassThresholds
from msctr_hf.training.mean_teacher import MeanTeacher

NUM_CLASSES, LARGEST, CPU = 5, 0.9, torch.device("cpu")


def batches(count=3):
    """Labels of a teacher that is the surer of a class the larger its number; it never finds class 0."""
    random = np.random.default_rng(0)
    for _ in range(count):
        classes = random.integers(1, NUM_CLASSES, (2, 7, 9))
        confidence = (random.random((2, 7, 9)) ** (1 / classes)).astype(np.float32)
        confidence[0, 0, :2] = 0, 1
        yield tuple(map(torch.from_numpy, (classes, confidence, random.random((2, 7, 9)) < 0.8)))


def by_loop(seen, share):
    """Compute the thresholds by sums in float64, over pixels and over all edges of bins."""
    thresholds = []
    for label in range(NUM_CLASSES):
        weights = [0.0] * BINS
        for number, batch in enumerate(seen):
            for found, confidence, valid in zip(*(tensor.flatten().tolist() for tensor in batch), strict=True):
                if valid and found == label:
                    weights[min(int(confidence * BINS), BINS - 1)] += DECAY ** (len(seen) - 1 - number)
        kept = [edge / BINS for edge in range(BINS) if sum(weights[edge:]) >= share * sum(weights)]
        thresholds.append(min(kept[-1], LARGEST) if sum(weights) else LARGEST)
    return torch.tensor(thresholds)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_thresholds_are_those_of_a_loop(share):
    thresholds, seen = ClassThresholds(NUM_CLASSES, share, LARGEST, CPU), []
    assert thresholds.by_class().tolist() == pytest.approx([LARGEST] * NUM_CLASSES)
    for batch in batches():
        thresholds.update(*batch)
        seen.append(batch)
        expected = by_loop(seen, share)
        assert torch.equal(thresholds.by_class(), expected)
        diagnostics = thresholds.diagnostics()
        assert diagnostics["pseudo_labels/lowest_threshold"] == expected.min()
        assert diagnostics["pseudo_labels/mean_threshold"] == expected.mean()
    assert len(set(expected.tolist())) >= 3  # some classes differ, and some have the common threshold
    assert expected.max() == torch.tensor(LARGEST)


def test_of_every_class_at_least_the_share_is_kept_and_what_reaches_the_common_threshold_too():
    thresholds = ClassThresholds(NUM_CLASSES, 0.6, LARGEST, CPU)
    ((classes, confidence, is_valid),) = batches(1)
    thresholds.update(classes, confidence, is_valid)
    kept = confidence >= thresholds.of_pixels(classes)
    assert kept[confidence >= LARGEST].all()
    for label in range(1, NUM_CLASSES):
        assert kept[is_valid & (classes == label)].float().mean() >= 0.6


def test_a_teacher_that_is_sure_of_every_class_leaves_the_common_threshold():
    thresholds = ClassThresholds(NUM_CLASSES, 0.99, LARGEST, CPU)
    for classes, confidence, is_valid in batches():
        thresholds.update(classes, 0.95 + 0.05 * confidence, is_valid)
    assert torch.equal(thresholds.by_class(), torch.full((NUM_CLASSES,), LARGEST))


def test_every_pixel_has_the_threshold_of_its_class():
    thresholds = ClassThresholds(NUM_CLASSES, 0.5, LARGEST, CPU)
    for batch in batches():
        thresholds.update(*batch)
    labels = torch.tensor([[[4, 1], [255, 2]]])
    of_pixels, by_class = thresholds.of_pixels(labels), thresholds.by_class()
    assert of_pixels[0, 0].tolist() == by_class[[4, 1]].tolist()
    assert of_pixels[0, 1, 1] == by_class[2]


def test_thresholds_continue_from_a_checkpoint_bit_for_bit():
    whole, resumed = (ClassThresholds(NUM_CLASSES, 0.5, LARGEST, CPU) for _ in range(2))
    first, *others = batches()
    whole.update(*first)
    resumed.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    for batch in others:
        whole.update(*batch)
        resumed.update(*batch)
    assert torch.equal(whole.counts, resumed.counts)


def test_pixels_whose_confidence_is_not_finite_are_not_counted():
    with_faults, without = (ClassThresholds(NUM_CLASSES, 0.5, LARGEST, CPU) for _ in range(2))
    ((classes, confidence, is_valid),) = batches(1)
    is_faulty = torch.rand(confidence.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    with_faults.update(classes, confidence.masked_fill(is_faulty, torch.nan), is_valid)
    without.update(classes, confidence, is_valid & ~is_faulty)
    assert without.counts.sum() < is_valid.sum()
    assert torch.equal(with_faults.counts, without.counts)
    with_faults.update(classes, torch.full_like(confidence, torch.nan), is_valid)
    torch.testing.assert_close(with_faults.by_class(), without.by_class())


def test_counts_are_those_of_all_processes(monkeypatch):
    one, two = (ClassThresholds(NUM_CLASSES, 0.5, LARGEST, CPU) for _ in range(2))
    (batch,) = batches(1)
    one.update(*batch)
    one.update(*batch)
    monkeypatch.setattr(class_thresholds, "sum_over_processes", lambda counts: 2 * counts)
    two.update(*batch)
    assert torch.equal(two.counts.bool(), one.counts.bool())
    assert two.counts.sum() == 2 * batch[2].sum()


def test_a_teacher_gives_mixed_pixels_the_thresholds_of_their_classes(tiny_config):
    random = torch.Generator().manual_seed(0)
    network = MsctrForSemanticSegmentation(tiny_config(num_labels=NUM_CLASSES)).eval()
    views = [torch.randn(2, 3, 24, 32, generator=random) for _ in range(2)]
    batch = {
        "weak_pixel_values": views[0], "strong_pixel_values": views[1],
        "is_valid": torch.ones(2, 24, 32, dtype=torch.bool), "mix_box": torch.tensor([[0, 0, 12, 32]] * 2),
        "image_id": torch.zeros(2, 96, dtype=torch.uint8),
    }  # fmt: skip

    def taught(thresholds):
        teacher = MeanTeacher(
            Accelerator(cpu=True), network, (each for each in [batch]), "cutmix", class_thresholds=thresholds
        )
        return teacher.next_batch()[0], teacher.diagnostics()

    plain, nothing = taught(None)
    thresholds = ClassThresholds(NUM_CLASSES, 0.5, LARGEST, CPU)
    found, logged = taught(thresholds)
    assert nothing == {}
    assert "pseudo_thresholds" not in plain.arguments()
    assert all(torch.equal(value, found.arguments()[name]) for name, value in plain.arguments().items())
    assert torch.equal(found.pseudo_thresholds, thresholds.by_class()[found.pseudo_labels])
    assert logged["pseudo_labels/lowest_threshold"] < LARGEST  # an untrained network is sure of nothing
    kept = found.pseudo_confidence >= found.pseudo_thresholds
    assert 0.5 <= kept.float().mean() < 1
