"""Anchors from unlabeled images: which are drawn, with which random numbers, and the loss with them against loops."""

import copy
import pickle
import random

import pytest
import torch
from reference import info_nce_by_loops

from msctr_hf import MultiScaleContrastiveLoss
from msctr_hf.models.anchor_sampling import SamplingPlan
from msctr_hf.models.pseudo_anchors import PseudoDraws, PseudoLabeled, plan_pseudo_draws

SIZES = [(16, 24), (8, 12), (4, 6)]
UNLABELED_SIZES = [(12, 16), (6, 8), (3, 4)]
THRESHOLD = 0.7


def build(**settings):
    defaults = {"stages": (1, 2, 4), "scale_weights": (1.0, 0.7, 0.4), "pairs": ((0, 2), (0, 1))}
    return MultiScaleContrastiveLoss(5, **{**defaults, "pseudo_threshold": THRESHOLD, **settings})


def maps(images, sizes, dtype=torch.float64):
    return [torch.randn(images, 6, *size, dtype=dtype, requires_grad=True) for size in sizes]


def blocks(images, rows, columns):
    return torch.randint(0, 5, (images, rows, columns)).repeat_interleave(16, 1).repeat_interleave(16, 2)


@pytest.fixture
def labels():
    labels = blocks(2, 4, 6)
    labels[:, :5] = 255
    return labels


@pytest.fixture
def pseudo():
    """Maps of three unlabeled images of another size, with padding and a confidence of any value."""
    pseudo_labels = blocks(3, 3, 4)
    pseudo_labels[:, :, :9] = 255
    return PseudoLabeled(maps(3, UNLABELED_SIZES), pseudo_labels, torch.rand(3, 48, 64))


def drawn(loss_function, features, labels, pseudo=None, **arguments):
    """Contrast, and return the rows that are projected, (N, C) for every stage, with the result."""
    rows = []
    project = [lambda each: rows.append(each.detach()) or each] * len(features)
    torch.manual_seed(4)
    return rows, loss_function.contrast(features, labels, project, pseudo=pseudo, **arguments)


def found_in(row, features):
    """Find the image, row and column of a pixel among maps (B, C, h, w)."""
    places = (features.detach() == row[:, None, None]).all(1).nonzero().tolist()
    return places[0] if places else None


def confident_pixels(pseudo, size, min_anchors):
    """List the confident pixels of every pair with enough of them, by plain loops."""
    pairs = {}
    height, width = size
    for image in range(len(pseudo.labels)):
        for row in range(height):
            for column in range(width):
                y, x = row * pseudo.labels.shape[1] // height, column * pseudo.labels.shape[2] // width
                label = int(pseudo.labels[image, y, x])
                if label != 255 and pseudo.confidence[image, y, x].item() >= THRESHOLD:
                    pairs.setdefault((image, label), []).append([image, row, column])
    return {pair: places for pair, places in pairs.items() if len(places) >= min_anchors}


@pytest.mark.parametrize("settings", [{}, {"sampling": "budget", "max_anchors": 300}, {"anchor_selection": "hard"}])
def test_labeled_anchors_are_drawn_as_without_and_confident_pixels_are_added(labels, pseudo, settings):
    features, logits = maps(2, SIZES), torch.randn(2, 5, 16, 24)
    loss_function = build(**settings)
    plain, _ = drawn(loss_function, features, labels, logits=logits)
    mixed, result = drawn(loss_function, features, labels, pseudo, logits=logits)
    for stage, name in enumerate(("stage_1", "stage_2", "stage_4")):
        origins = [found_in(row, features[stage]) for row in mixed[stage]]
        labeled = [row for row, origin in zip(mixed[stage], origins, strict=True) if origin is not None]
        assert torch.equal(torch.stack(labeled), plain[stage])
        per_pair = {}
        for _, row, column in filter(None, origins):
            stride = 4 * 2**stage
            label = int(labels[_, row * stride, column * stride])
            per_pair[_, label] = per_pair.get((_, label), 0) + 1
        places = [
            found_in(row, pseudo.features[stage])
            for row, origin in zip(mixed[stage], origins, strict=True)
            if origin is None
        ]
        candidates = confident_pixels(pseudo, UNLABELED_SIZES[stage], 5)
        counts = {pair: sum(place in inside for place in places) for pair, inside in candidates.items()}
        assert len(places) == len({tuple(place) for place in places}) == sum(counts.values())
        for pair, count in counts.items():
            assert count in (0, min(len(candidates[pair]), max(per_pair.values())))
        assert len(places) <= len(labeled)
        assert len(places) + len(labeled) <= settings.get("max_anchors", 10_000)
        assert result.facts[f"contrastive/{name}/pseudo_anchors"] == len(places)
        assert result.facts[f"contrastive/{name}/anchors"] == len(mixed[stage])
    assert result.facts["contrastive/stage_1/pseudo_anchors"] > 0


@pytest.mark.parametrize("positives", ["each", "any"])
def test_loss_and_gradients_equal_plain_loops_over_the_same_anchors(labels, pseudo, positives):
    features = maps(2, SIZES)
    settings = {"min_anchors_per_class": 1, "max_anchors_per_class": 2, "positives": positives, "pseudo_share": 0.4}
    rows, result = drawn(build(**settings), features, labels, pseudo)
    grads = torch.autograd.grad(result.loss, [*features, *pseudo.features])
    copies = [[each.detach().requires_grad_() for each in some] for some in (features, pseudo.features)]
    sets = []
    for stage, of_stage in enumerate(rows):
        picked, classes = [], []
        for row in of_stage:
            place, source = found_in(row, features[stage]), 0
            if place is None:
                place, source = found_in(row, pseudo.features[stage]), 1
            image, y, x = place
            whole = (labels, pseudo.labels)[source]
            stride = 4 * 2**stage
            classes.append(int(whole[image, y * stride, x * stride]))
            picked.append(copies[source][stage][image, :, y, x])
        sets.append((torch.stack(picked), torch.tensor(classes)))
        assert classes == sorted(classes)
    assert all(result.facts[f"contrastive/stage_{stage}/pseudo_anchors"] for stage in (1, 2, 4))
    expected = sum(
        weight * info_nce_by_loops(*each, positives=positives)
        for weight, each in zip((1.0, 0.7, 0.4), sets, strict=True)
    )
    for coarse in (2, 1):
        expected = expected + info_nce_by_loops(*sets[0], *sets[coarse], positives=positives)
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-12)
    of_loops = torch.autograd.grad(expected, [*copies[0], *copies[1]])
    for grad, expected_grad in zip(grads, of_loops, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-10)


def test_plans_respect_every_limit_and_drop_whole_pairs_at_random():
    generator = random.Random(0)
    dropped_once = set()
    for trial in range(300):
        counts = [[generator.choice([0, 3, 9, 40]) for _ in range(4)] for _ in range(3)]
        draws = [generator.randint(1, 12)] * generator.randint(1, 8)
        labeled = SamplingPlan(draws, draws, draws, draws, largest=draws[0])
        share, max_anchors = generator.choice([0.0, 0.2, 0.5, 0.6, 0.9]), sum(draws) + generator.choice([0, 20, 500])
        limits = {"share": share, "min_anchors_per_class": 5, "max_anchors": max_anchors}
        plan = plan_pseudo_draws(counts, labeled, random.Random(trial), **limits)
        assert plan == plan_pseudo_draws(counts, labeled, random.Random(trial), **limits)
        pairs = {image * 4 + label: count for image, row in enumerate(counts) for label, count in enumerate(row)}
        wanted = {pair: min(count, draws[0]) for pair, count in pairs.items() if count >= 5}
        kept = dict(zip(plan.groups, plan.draws, strict=True))
        assert kept == {pair: wanted[pair] for pair in kept}
        assert plan.labels == sorted(plan.labels) == [pair % 4 for pair in plan.groups]
        assert plan.available == [pairs[pair] for pair in plan.groups]
        total = sum(plan.draws)
        assert total * (1 - share) <= share * sum(draws) + 1e-9
        assert total + sum(draws) <= max_anchors
        dropped = [count for pair, count in wanted.items() if pair not in kept]
        if dropped:
            next_total = total + max(dropped)
            assert next_total * (1 - share) > share * sum(draws) + 1e-9 or next_total + sum(draws) > max_anchors
            dropped_once |= wanted.keys() - kept.keys()
    assert dropped_once == set(range(12))


def test_three_fifths_of_the_anchors_are_not_rounded_down():
    labeled = SamplingPlan([0], [0], [2], [2], largest=2)
    plan = plan_pseudo_draws([[1, 2]], labeled, random.Random(0), share=0.6, min_anchors_per_class=1, max_anchors=100)
    assert sum(plan.draws) == 3


def test_a_stage_without_labeled_anchors_has_no_others_and_a_share_of_zero_means_none(labels, pseudo):
    features = maps(2, SIZES)
    nothing = torch.full_like(labels, 255)
    result = build().contrast(features, nothing, pseudo=pseudo)
    assert result.loss == 0
    result.loss.backward()
    facts = [build().contrast(features, nothing, pseudo=pseudo).facts]
    facts.append(build(pseudo_share=0.0).contrast(features, labels, pseudo=pseudo).facts)
    for each in facts:
        assert [each[f"contrastive/stage_{stage}/pseudo_anchors"] for stage in (1, 2, 4)] == [0, 0, 0]


def test_draws_leave_the_default_generator_alone_and_continue_after_a_checkpoint(labels, pseudo):
    features = maps(2, SIZES)
    loss_function = build()

    def pseudo_rows():
        rows, _ = drawn(loss_function, features, labels, pseudo)
        return [row.tolist() for row in rows[0] if found_in(row, features[0]) is None]

    plain, _ = drawn(loss_function, features, labels)
    expected = torch.get_rng_state()
    first = pseudo_rows()
    assert torch.equal(torch.get_rng_state(), expected)
    state = copy.deepcopy(loss_function.pseudo_draws.state_dict())
    second, third = pseudo_rows(), pseudo_rows()
    assert len({str(each) for each in (first, second, third)}) == 3
    loss_function = pickle.loads(pickle.dumps(build()))
    loss_function.pseudo_draws.load_state_dict(state)
    assert [pseudo_rows(), pseudo_rows()] == [second, third]


def test_the_seed_is_that_of_the_default_generator():
    def numbers(seed):
        torch.manual_seed(seed)
        draws = PseudoDraws()
        return [draws.next().random() for _ in range(3)]

    assert numbers(1) == numbers(1)
    assert len({*numbers(1), *numbers(2)}) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pseudo_share": 1.0}, r"`pseudo_share` must be in \[0, 1\), got 1.0"),
        ({"pseudo_share": float("nan")}, "`pseudo_share` must be .* got nan"),
        ({"pseudo_threshold": 1.1}, r"`pseudo_threshold` must be a probability in \[0, 1\], got 1.1"),
    ],
)
def test_settings_out_of_range_are_named_in_the_error(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)
