"""The straightforward implementations in the benchmarks compute the same values as this package."""

import pytest
import torch
from reference import info_nce_by_loops

from experiments.benchmark.reference import (
    StraightforwardContrast,
    dense_info_nce_loss,
    dense_multi_scale_loss,
    sample_pair_by_pair,
)
from msctr_hf import MsctrForSemanticSegmentation, MultiScaleContrastiveLoss, sample_anchors


def test_the_dense_loss_equals_plain_loops():
    sides = [torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 4, (20,))]
    sides += [torch.randn(15, 4, dtype=torch.float64), torch.randint(0, 4, (15,))]
    for given in (sides[:2], sides):
        torch.testing.assert_close(dense_info_nce_loss(*given), info_nce_by_loops(*given))


def test_the_pair_by_pair_sampler_draws_as_many_pixels_of_every_class_as_sample_anchors():
    labels = torch.randint(0, 4, (2, 6, 8)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    features = torch.randn(2, 3, 12, 16)
    rows, row_labels = sample_pair_by_pair(features, labels, 4)
    ours = sample_anchors(features, labels, 4)
    assert torch.equal(row_labels, ours.labels)
    assert rows.shape == ours.features.shape


def test_the_dense_objective_equals_multi_scale_contrastive_loss_where_all_pixels_are_drawn():
    labels = torch.arange(4).view(1, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2).repeat(2, 1, 1)
    # 16 pixels of every class in every image
    features = [torch.randn(2, 6, side, side, dtype=torch.float64) for side in (8, 8)]
    ours, _ = MultiScaleContrastiveLoss(4, (1, 2), (1.0, 0.7), ((0, 1),), (1.0,))(features, labels)
    dense = dense_multi_scale_loss(features, labels, 4, (1.0, 0.7), ((0, 1),))
    assert ours.item() == pytest.approx(dense.item(), rel=1e-12)


def test_a_network_with_the_dense_objective_has_the_same_loss_where_all_pixels_are_drawn(tiny_config):
    network = MsctrForSemanticSegmentation(tiny_config(num_labels=4, dropout=0.0)).train()
    labels = torch.arange(4).view(1, 2, 2).repeat_interleave(96, 1).repeat_interleave(96, 2).repeat(2, 1, 1)
    batch = {"pixel_values": torch.randn(2, 3, 192, 192), "labels": labels}
    ours = network(**batch)
    assert network.contrastive_facts["contrastive/stage_4/anchors"] == 2 * 6 * 6
    network.contrastive_loss = StraightforwardContrast(network.contrastive_loss, network.projection_head)
    dense = network(**batch)
    assert dense.loss.item() == pytest.approx(ours.loss.item(), rel=1e-5)
    assert ours.loss.item() > ours.loss_terms["cross_entropy"].item() + 0.5


def test_a_stage_that_is_too_coarse_for_anchors_has_no_terms_in_either_objective():
    labels = torch.arange(4).view(1, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2).repeat(2, 1, 1)
    features = [torch.randn(2, 6, side, side, dtype=torch.float64, requires_grad=True) for side in (8, 2)]
    ours, _ = MultiScaleContrastiveLoss(4, (1, 2), (1.0, 0.7), ((0, 1),), (1.0,))(features, labels)
    dense = dense_multi_scale_loss(features, labels, 4, (1.0, 0.7), ((0, 1),))
    assert ours.item() == pytest.approx(dense.item(), rel=1e-12)
    dense.backward()
    assert features[1].grad.abs().max() == 0
