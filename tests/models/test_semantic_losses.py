"""Losses of the class scores, against plain loops in float64."""

import math

import pytest
import torch
from conftest import TIMM_TINY

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation
from msctr_hf.models.semantic_losses import (
    confident_pixel_cross_entropy,
    cross_entropy,
    dice_loss,
    hard_pixel_cross_entropy,
)

WEIGHTS = [0.5, 1.0, 2.0, 4.0]


def batch(seed, ignored=0.2, ignore_index=255, num_labels=4, absent=None, shape=(2, 5, 7)):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], num_labels, *shape[1:], generator=generator, dtype=torch.float64)
    labels = torch.randint(0, num_labels, shape, generator=generator)
    if absent is not None:
        labels[labels == absent] = 0
    labels[torch.rand(shape, generator=generator) < ignored] = ignore_index
    return logits, labels


def pixels(logits, labels, ignore_index=255):
    """List the label and the probabilities of every valid pixel."""
    found = []
    for image in range(labels.shape[0]):
        for row in range(labels.shape[1]):
            for column in range(labels.shape[2]):
                label = int(labels[image, row, column])
                if label != ignore_index:
                    powers = [math.exp(value) for value in logits[image, :, row, column].tolist()]
                    found.append((label, [power / sum(powers) for power in powers], (image, row, column)))
    return found


def test_cross_entropy_weights_classes_and_divides_by_the_number_of_valid_pixels():
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, 0] = 255
    weights = [0.5, 1.0, 2.0]
    total, valid = 0.0, 0
    for image in range(2):
        for row in range(4):
            for column in range(5):
                label = labels[image, row, column].item()
                if label != 255:
                    total -= weights[label] * logits[image, :, row, column].double().log_softmax(0)[label].item()
                    valid += 1
    assert cross_entropy(logits, labels, class_weights=weights).item() == pytest.approx(total / valid, rel=1e-5)


@pytest.mark.parametrize("ignore_index", [255, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
def test_confident_pixels_have_a_cross_entropy_that_is_divided_by_all_pixels_but_padding(threshold, ignore_index):
    logits, labels = batch(1, ignore_index=ignore_index)
    confidence = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    confidence[0, 0, :3] = threshold  # just enough
    found = pixels(logits, labels, ignore_index)
    confident = [each for each in found if confidence[each[2]].item() >= threshold]
    expected = sum(-math.log(probabilities[label]) for label, probabilities, _ in confident) / len(found)
    logits.requires_grad_()
    loss, share = confident_pixel_cross_entropy(logits, labels, confidence, threshold, ignore_index=ignore_index)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert share.item() == pytest.approx(len(confident) / len(found))
    places = {(image, row, column) for image, row, column in logits.grad.abs().sum(1).nonzero().tolist()}
    assert places == {place for _, _, place in confident}


def hard_by_loops(logits, labels, threshold, weights, ignore_index=255):
    """Compute the loss, and the positions of the hard pixels."""
    found = pixels(logits, labels, ignore_index)
    smallest = sorted(probabilities[label] for label, probabilities, _ in found)[: math.ceil(len(found) / 16)]
    kept = [each for each in found if each[1][each[0]] < threshold or each[1][each[0]] in smallest]
    total = sum(-weights[label] * math.log(probabilities[label]) for label, probabilities, _ in kept)
    return total / max(1, len(kept)), {position for _, _, position in kept}, len(found)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("ignore_index", [255, -100, 0])
@pytest.mark.parametrize("threshold", [0.001, 0.2, 0.7, 1.0])
def test_hard_pixels_are_those_below_the_threshold_and_at_least_a_sixteenth(threshold, ignore_index, weights):
    for seed, ignored in ((0, 0.0), (1, 0.2), (2, 0.9)):
        logits, labels = batch(seed, ignored, ignore_index)
        logits.requires_grad_()
        loss, share = hard_pixel_cross_entropy(
            logits, labels, threshold, ignore_index=ignore_index, class_weights=weights
        )
        expected, positions, count = hard_by_loops(
            logits.detach(), labels, threshold, weights or [1] * 4, ignore_index
        )
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        assert share.item() == pytest.approx(len(positions) / count)
        loss.backward()
        with_gradient = {tuple(each) for each in logits.grad.abs().sum(dim=1).nonzero().tolist()}
        assert with_gradient == positions


def test_a_threshold_of_one_trains_on_all_pixels_as_the_cross_entropy_does():
    logits, labels = batch(3)
    for weights in (None, WEIGHTS):
        loss, share = hard_pixel_cross_entropy(logits, labels, 1.0, class_weights=weights)
        assert loss.item() == pytest.approx(cross_entropy(logits, labels, class_weights=weights).item(), rel=1e-12)
        assert share == 1


def dice_by_loops(logits, labels, ignore_index=255):
    common, predicted, labeled = ([0.0] * logits.shape[1] for _ in range(3))
    for label, probabilities, _ in pixels(logits, labels, ignore_index):
        labeled[label] += 1
        common[label] += probabilities[label]
        for number, probability in enumerate(probabilities):
            predicted[number] += probability
    losses = [1 - 2 * common[c] / (predicted[c] + labeled[c]) for c in range(logits.shape[1]) if labeled[c]]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("ignore_index", [255, -100, 0])
@pytest.mark.parametrize("absent", [None, 2])
def test_dice_is_that_of_plain_loops(absent, ignore_index):
    for seed, ignored in ((0, 0.0), (1, 0.2), (2, 0.9)):
        logits, labels = batch(seed, ignored, ignore_index, absent=absent)
        expected = dice_by_loops(logits, labels, ignore_index)
        assert dice_loss(logits, labels, ignore_index=ignore_index).item() == pytest.approx(expected, rel=1e-12)


def test_gradients_are_those_of_finite_differences():
    logits, labels = batch(4, absent=1, shape=(1, 3, 4))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: dice_loss(values, labels), (logits,))
    assert torch.autograd.gradcheck(lambda values: hard_pixel_cross_entropy(values, labels, 0.3)[0], (logits,))


@pytest.mark.parametrize(
    "loss_of", [dice_loss, lambda *batch: hard_pixel_cross_entropy(*batch, 0.7, class_weights=WEIGHTS)[0]]
)
def test_a_batch_without_labels_has_loss_zero_and_scores_that_are_not_finite_are_noticed(loss_of):
    logits, labels = batch(5, ignored=1.1)
    logits.requires_grad_()
    loss = loss_of(logits, labels)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()
    logits, labels = batch(6)
    logits[0, 1, 2, 3] = math.nan
    labels[0, 2, 3] = 1
    assert loss_of(logits, labels).isnan()


RESNET18 = {**TIMM_TINY, "backbone": "resnet18"}  # the probability 0.195 is amid those of its pixels


def networks(tiny_config, **settings):
    """Build a network without and with some settings, and with the same weights."""
    built = []
    for given in ({}, settings):
        torch.manual_seed(0)
        config = tiny_config(backbone=RESNET18, dropout=0.0, contrastive_mode="ce", **given)
        built.append(MsctrForSemanticSegmentation(config))
    return built


def test_both_are_added_in_training_and_left_out_in_evaluation(tiny_config, tiny_batch):
    plain, network = networks(tiny_config, dice_loss_weight=0.5, ohem_threshold=0.195, class_weights=[1, 2, 3, 4, 5])
    plain.config.class_weights = [1, 2, 3, 4, 5]
    assert torch.equal(plain.eval()(**tiny_batch).loss, network.eval()(**tiny_batch).loss)
    assert list(network(**tiny_batch).loss_terms) == ["cross_entropy"]
    output = network.train()(**tiny_batch)
    terms = {name: term.item() for name, term in output.loss_terms.items()}
    assert list(terms) == ["cross_entropy", "dice", "auxiliary"]
    expected = terms["cross_entropy"] + 0.5 * terms["dice"] + 0.4 * terms["auxiliary"]
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    for name, logits in (("cross_entropy", output.logits), ("auxiliary", output.auxiliary_logits)):
        scores = torch.nn.functional.interpolate(
            logits.detach().double(), (64, 96), mode="bilinear", align_corners=network.config.align_corners
        )
        loss, positions, count = hard_by_loops(scores, tiny_batch["labels"], 0.195, [1, 2, 3, 4, 5])
        assert 0.1 < len(positions) / count < 0.9
        assert terms[name] == pytest.approx(loss, rel=1e-3)
        assert output.diagnostics[f"{name}/hard_pixels"].item() == pytest.approx(len(positions) / count, abs=0.01)
        if name == "cross_entropy":
            assert terms["dice"] == pytest.approx(dice_by_loops(scores, tiny_batch["labels"]), rel=1e-5)


def test_in_half_precision_they_are_computed_in_single_precision(tiny_config, tiny_batch):
    network = networks(tiny_config, dice_loss_weight=1, ohem_threshold=0.5)[1].train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(**tiny_batch)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    scores = torch.nn.functional.interpolate(
        output.logits.detach().double(), (64, 96), mode="bilinear", align_corners=network.config.align_corners
    )
    assert {term.dtype for term in output.loss_terms.values()} == {torch.float32}
    assert output.loss_terms["dice"].item() == pytest.approx(dice_by_loops(scores, tiny_batch["labels"]), rel=1e-5)
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dice_loss_weight": -0.5}, "`dice_loss_weight` must be at least 0 and finite, got -0.5."),
        ({"dice_loss_weight": math.inf}, "`dice_loss_weight` must be at least 0 and finite, got inf."),
        ({"dice_loss_weight": math.nan}, "`dice_loss_weight` must be at least 0 and finite, got nan."),
        ({"ohem_threshold": 0}, r"`ohem_threshold` must be a probability in \(0, 1\], got 0."),
        ({"ohem_threshold": 1.5}, r"`ohem_threshold` must be a probability in \(0, 1\], got 1.5."),
        ({"ohem_threshold": math.nan}, r"`ohem_threshold` must be a probability in \(0, 1\], got nan."),
    ],
)
def test_values_out_of_range_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        MsctrConfig(**settings)
