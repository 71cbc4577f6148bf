"""Anchors of all stages: those of one stage after the other, in one transfer, and batches that do not fit."""

import pytest
import torch
from stage_maps import block_labels, maps

from msctr_hf import sample_anchors
from msctr_hf.models.misclassified_pixels import misclassified_pixels
from msctr_hf.models.pseudo_anchors import PseudoDraws, PseudoLabeled
from msctr_hf.models.stage_anchors import StageSampler

LIMITS = {"min_anchors_per_class": 1, "max_anchors_per_class": 30, "max_anchors": 100}


def draw(features, labels, generator=None, logits=None, pseudo=None, **settings):
    defaults = {
        "num_labels": 5, "stages": (1, 2, 4), "ignore_index": 255, "anchor_selection": "random",
        "align_corners": False, "sampling": "rarest", "min_anchors_per_class": 5, "max_anchors_per_class": 2500,
        "max_anchors": 10_000, "pseudo_threshold": 0.5, "pseudo_share": 0.5, "pseudo_draws": PseudoDraws(),
    }  # fmt: skip
    return StageSampler(**{**defaults, **settings}).draw(features, labels, generator, logits, pseudo)


def seeded():
    return torch.Generator().manual_seed(1)


def pseudo_labeled(**replaced):
    """Maps of three unlabeled images of 48 x 64 pixels, of which a teacher is sure."""
    features = [torch.randn(3, 8, *size) for size in ((12, 16), (6, 8), (3, 4))]
    pseudo = PseudoLabeled(features, torch.randint(0, 5, (3, 48, 64)), torch.ones(3, 48, 64))
    return pseudo._replace(**replaced)


def assert_equal(actual, expected):
    assert torch.equal(actual.features, expected.features)
    assert torch.equal(actual.labels, expected.labels)
    assert actual.class_sizes == expected.class_sizes


@pytest.mark.parametrize("sampling", ["rarest", "budget"])
@pytest.mark.parametrize("anchor_selection", ["random", "hard"])
def test_stages_are_drawn_one_after_the_other_as_sample_anchors_draws_them(sampling, anchor_selection):
    features, labels, logits = maps(), block_labels(), torch.randn(2, 5, 8, 12)
    labels[:, :9] = 255
    settings = {"sampling": sampling, **LIMITS}
    drawn = draw(features, labels, seeded(), logits, anchor_selection=anchor_selection, **settings)
    wrong = [None] * 3 if anchor_selection == "random" else misclassified_pixels(logits, labels, features)
    generator = seeded()
    for actual, plan, stage, of_stage in zip(drawn.anchors, drawn.plans, features, wrong, strict=True):
        expected = sample_anchors(stage, labels, 5, misclassified=of_stage, generator=generator, **settings)
        assert_equal(actual, expected)
        assert sum(plan.draws) == len(expected.labels) > 8
    assert drawn.pseudo_plans == []


def test_pseudo_labeled_pixels_are_added_to_the_labeled_ones_of_their_stage():
    features, labels = maps(), block_labels()
    plain = draw(features, labels, seeded())
    both = draw(features, labels, seeded(), pseudo=pseudo_labeled())
    assert both.plans == plain.plans
    for alone, joined, plan in zip(plain.anchors, both.anchors, both.pseudo_plans, strict=True):
        assert sum(plan.draws) == len(joined.labels) - len(alone.labels)
        assert torch.equal(joined.labels, joined.labels.sort().values)
        rows = set(map(tuple, joined.features.tolist()))
        assert rows >= set(map(tuple, alone.features.tolist()))
    assert sum(both.pseudo_plans[0].draws) > 0


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (None, "`anchor_selection='hard'` needs the class scores of the network"),
        (torch.zeros(2, 4, 8, 12), r"`logits` must be .* with \(2, 5\) on cpu.* got \(2, 4, 8, 12\)"),
        (torch.zeros(2, 5, 96), r"`logits` must be .* got \(2, 5, 96\)"),
        (torch.zeros(2, 5, 8, 12, device="meta"), "got .* on meta"),
    ],
)
def test_logits_that_do_not_fit_are_named_in_the_error(logits, message):
    with pytest.raises(ValueError, match=message):
        draw(maps(), block_labels(), logits=logits, anchor_selection="hard")


def nhwc():
    return [map_.permute(0, 2, 3, 1) for map_ in maps()]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": torch.full((2, 64, 96), 5)}, ValueError, "neither classes, 0 to 4, nor `ignore_index`, 255: 5"),
        ({"labels": torch.full((2, 64, 96), -100)}, ValueError, "neither .*: -100"),
        ({"labels": torch.arange(2 * 64 * 96).view(2, 64, 96)}, ValueError, "neither .*: 5, 6, 7, 8, 9, ..."),
        ({"labels": torch.zeros(2, 64, 96).numpy()}, TypeError, "`labels` must be a tensor of integers.*got ndarray"),
        ({"labels": None}, TypeError, "`labels` must be a tensor of integers.*got NoneType"),
        ({"features": iter(maps())}, TypeError, r"`features` must be a list .*: pass `list\(features\)`"),
        ({"labels": torch.zeros(2, 64, 96)}, TypeError, "`labels` must be integers.*got torch.float32"),
        ({"labels": torch.zeros(2, 1, 64, 96, dtype=torch.int64)}, ValueError, r"labels.squeeze\(1\)"),
        ({"labels": torch.zeros(2, 5, 64, 96, dtype=torch.int64)}, ValueError, r"labels.argmax\(1\)"),
        ({"labels": torch.zeros(1, 64, 96, dtype=torch.int64)}, ValueError, r"`labels` must be \(B, H, W\)"),
        ({"labels": torch.zeros(2, 64, 96, dtype=torch.int64, device="meta")}, ValueError, "are on meta"),
        ({"features": nhwc()}, ValueError, r"looks like \(B, h, w, C\): use `.permute\(0, 3, 1, 2\)`"),
        ({"features": [torch.randn(2, 384, 8)] * 3}, ValueError, "patch tokens"),
        ({"features": maps()[:2]}, ValueError, r"one map for each of the `stages` \[1, 2, 4\], got 2"),
        ({"features": torch.randn(3, 8, 16, 24)}, TypeError, r"pass `\[features\]`"),
        ({"features": dict(enumerate(maps()))}, TypeError, r"pass `list\(features.values\(\)\)`"),
        ({"features": [map_.long() for map_ in maps()]}, TypeError, r"`features\[0\]` must be a floating-point"),
    ],
)
def test_batches_that_do_not_fit_are_named_in_the_error(arguments, error, message):
    with pytest.raises(error, match=message):
        draw(**{"features": maps(), "labels": block_labels(), **arguments})


def test_maps_of_padded_images_are_not_taken_for_maps_with_channels_last():
    labels = torch.randint(0, 5, (2, 4, 5)).repeat_interleave(16, 1).repeat_interleave(16, 2)  # 64 x 80
    features = [torch.randn(2, 12 * 2**stage, 16 // 2**stage, 24 // 2**stage) for stage in range(4)]
    drawn = draw(features, labels, stages=(1, 2, 3, 4))
    assert [stage.features.shape[1] for stage in drawn.anchors] == [12, 24, 48, 96]
    assert len(drawn.anchors[0].labels) > 0


def test_a_label_that_is_lost_in_resizing_is_refused_too():
    labels = block_labels()
    labels[0, 1, 1] = 7  # a single pixel, which no map samples
    with pytest.raises(ValueError, match="neither classes.*: 7"):
        draw(maps(), labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_give_the_same_anchors(dtype):
    features, labels = maps(), block_labels()
    labels[:, :8] = 255
    anchors = [draw(features, each, seeded()).anchors for each in (labels, labels.to(dtype))]
    for expected, actual in zip(*anchors, strict=True):
        assert_equal(actual, expected)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"features": pseudo_labeled().features[:2]}, r"`pseudo.features` must have one map .* \[1, 2, 4\], got 2"),
        ({"features": maps()}, r"`pseudo.features\[0\]`"),
        ({"features": [each[:, :4] for each in pseudo_labeled().features]}, r"the 8 channels of .* got 4"),
        ({"confidence": torch.rand(3, 48, 60)}, r"`pseudo.confidence` must have the shape .* got \(3, 48, 60\)"),
        ({"labels": torch.full((3, 48, 64), 7)}, "`pseudo.labels` has values that are neither classes.*: 7"),
    ],
)
def test_unlabeled_images_that_do_not_fit_are_named_in_the_error(replaced, message):
    with pytest.raises(ValueError, match=message):
        draw(maps(), block_labels(), pseudo=pseudo_labeled(**replaced))
