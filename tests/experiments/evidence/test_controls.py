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


def sample(maps, seed=0):
    features, labels = maps
    torch.manual_seed(seed)
    return MultiScaleContrastiveLoss(3, stages=(1, 2))._sample(features, labels, None)


def test_a_placebo_shuffles_the_classes_of_the_anchors_of_every_stage(maps):
    plain = sample(maps)
    with placebo():
        shuffled = sample(maps)
    for stage, control in zip(plain, shuffled, strict=True):
        assert torch.equal(stage.labels, control.labels)
        assert stage.class_sizes == control.class_sizes
        assert torch.equal(stage.features[:, -1].long() - 1, stage.labels)
        assert not torch.equal(control.features[:, -1].long() - 1, control.labels)
        # the same pixels are drawn: rows as multisets are equal
        assert sorted(stage.features.tolist()) == sorted(control.features.tolist())
    # not one permutation of class ids: every class has rows of several classes, and the stages differ
    mixed = [{(int(a), int(b)) for a, b in zip(s.labels, s.features[:, -1], strict=True)} for s in shuffled]
    assert all(len(pairs) > 3 for pairs in mixed)
    counts = [torch.bincount(3 * s.labels + s.features[:, -1].long() - 1, minlength=9).tolist() for s in shuffled]
    assert counts[0] != counts[1]


def test_a_placebo_draws_nothing_from_the_generator_of_torch_and_repeats_from_its_state(maps):
    sample(maps)
    after_plain = torch.get_rng_state()
    with placebo():
        first = sample(maps)
        assert torch.equal(torch.get_rng_state(), after_plain)
        again, other = sample(maps), sample(maps, seed=1)
    assert torch.equal(first[0].features, again[0].features)
    assert not torch.equal(first[0].features, other[0].features)


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
