"""Controls change what the contrast says, and nothing else; a resumed placebo repeats its shuffles."""

import pytest
import torch

from experiments.evidence.controls import CONTROLS, main, placebo, same
from msctr_hf.models.contrastive_loss import MultiScaleContrastiveLoss
from msctr_hf.models.modeling_msctr import MsctrForSemanticSegmentation


@pytest.fixture
def maps():
    """Two stages whose channels say where a pixel is, with labels in blocks of three classes."""
    labels = torch.arange(3).repeat_interleave(8).repeat(2, 24, 1)
    features = []
    for side in (24, 12):
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        place = torch.stack([rows, columns, 1 + columns * 3 // side]).float()  # the last channel is the class, from 1
        features.append(place.repeat(2, 1, 1, 1))
    return features, labels


def drawn_rows(maps, seed=0):
    """Return the rows of the anchors of every stage as they reach the projection, in the order of their labels."""
    features, labels = maps
    rows = []
    torch.manual_seed(seed)
    keep = [lambda stage: rows.append(stage) or stage] * 2
    MultiScaleContrastiveLoss(3, stages=(1, 2))(features, labels, project=keep)
    return rows


def classes_of(rows):
    return (rows[:, -1] - 1).long()


def test_a_placebo_shuffles_the_classes_of_the_anchors_of_every_stage(maps):
    plain = drawn_rows(maps)
    with placebo():
        shuffled = drawn_rows(maps)
    confusions = []
    for stage, control in zip(plain, shuffled, strict=True):
        labels = classes_of(stage)  # the labels of the anchors, which a placebo does not change
        assert labels.tolist() == sorted(labels.tolist())
        assert sorted(stage.tolist()) == sorted(control.tolist())  # the same pixels are drawn
        # not a permutation of class ids: anchors of every label have pixels of several classes
        confusions.append(torch.bincount(3 * labels + classes_of(control), minlength=9).view(3, 3))
        assert (confusions[-1] > 0).sum() > 3
    assert not torch.equal(confusions[0] * len(plain[1]), confusions[1] * len(plain[0]))  # stages are independent


def test_a_placebo_draws_nothing_from_the_generator_of_torch_and_repeats_from_its_state(maps):
    drawn_rows(maps)
    after_plain = torch.get_rng_state()
    with placebo():
        first = drawn_rows(maps)
        assert torch.equal(torch.get_rng_state(), after_plain)
        again, other = drawn_rows(maps), drawn_rows(maps, seed=1)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_a_placebo_keeps_the_gradient_of_the_rows(maps):
    features, labels = maps
    leaves = [stage.clone().requires_grad_() for stage in features]
    with placebo():
        loss, _ = MultiScaleContrastiveLoss(3, stages=(1, 2))(leaves, labels)
    loss.backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_the_same_cross_entropy_differs_only_in_its_random_stream(tiny_config, tiny_batch):
    network = MsctrForSemanticSegmentation(tiny_config(contrastive_mode="ce")).train()
    torch.manual_seed(3)
    plain = network(**tiny_batch).loss
    state = torch.get_rng_state()
    with same():
        torch.manual_seed(3)
        control = network(**tiny_batch).loss
        assert torch.equal(plain, control)
        assert not torch.equal(torch.get_rng_state(), state)
        network.eval()
        state = torch.get_rng_state()
        network(**tiny_batch)
        assert torch.equal(torch.get_rng_state(), state)
    network.train()
    torch.manual_seed(3)
    network(**tiny_batch)
    torch.manual_seed(3)
    assert torch.equal(network(**tiny_batch).loss, plain)


def test_an_unknown_control_is_refused_with_the_choices(capsys):
    with pytest.raises(SystemExit):
        main(["nonsense", "--config", "quickstart"])
    error = capsys.readouterr().err
    assert all(name in error for name in (*CONTROLS, "'nonsense'"))
