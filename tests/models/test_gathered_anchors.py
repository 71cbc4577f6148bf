"""Two processes with half a batch each give the loss and gradients of one process with all of it, in float64."""

import datetime
import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from reference import info_nce_by_loops

from msctr_hf import MultiScaleContrastiveLoss, sample_anchors
from msctr_hf.models.gathered_anchors import gather_rows
from msctr_hf.models.info_nce import unit_rows
from msctr_hf.models.pseudo_anchors import PseudoLabeled

SIZES = [(12, 16), (6, 8), (3, 4)]
CASES = {
    "both have anchors": ([[0, 1, 2], [1, 2, 3]], {}),
    "as many on both": ([[0, 1, 2], [0, 1, 2]], {}),
    "no class in common": ([[0, 1], [2, 3]], {}),
    "one has no anchors": ([[], [0, 1, 3]], {}),
    "none has anchors": ([[], []], {}),
    "low temperature": ([[0, 1, 2], [1, 2, 3]], {"temperature": 0.02}),
    "any positive": ([[0, 1, 2], [1, 2, 3]], {"positives": "any"}),
    "any positive at high temperature": ([[0, 1, 2], [1, 2, 3]], {"positives": "any", "temperature": 1.0}),
    "any positive at low temperature": ([[0, 1], [1, 2, 3]], {"positives": "any", "temperature": 0.01}),
    "pseudo-labels": ([[0, 1, 2], [1, 2, 3]], {"pseudo_share": 0.9}),
    "pseudo-labels of one process": ([[0, 1, 2], [0, 1]], {"pseudo_share": 0.9, "pseudo_threshold": 1.0}),
    "no gradient into the contrast side": ([[0, 1, 2], [1, 2, 3]], {"detach_coarse": True}),
    "stages of different widths": ([[0, 1, 2], [1, 2, 3]], {"pairs": (), "pair_weights": ()}),
}
HARD = list(itertools.product(["each", "any"], [0.01, 0.1, 1.0]))  # positives, temperature
HARD_LIMITS = {"sampling": "budget", "min_anchors_per_class": 1, "max_anchors": 18}  # of 24 pixels of the coarsest map
SCALE_WEIGHTS, PAIRS, PAIR_WEIGHTS = (1.0, 0.7, 0.4), ((0, 2), (0, 1)), (1.0, 0.5)


def batch(name):
    """Make maps of four images, two per process, with labels and logits, and one projection per stage."""
    classes, settings = CASES[name]
    generator = torch.Generator().manual_seed(3)
    maps = [torch.randn(4, 5, *size, dtype=torch.float64, generator=generator) for size in SIZES]
    labels = torch.full((4, 24, 32), 255)
    for image in range(4):
        present = classes[image // 2]
        if present:
            drawn = torch.randint(0, len(present), (3, 4), generator=generator)
            labels[image] = torch.tensor(present)[drawn].repeat_interleave(8, 0).repeat_interleave(8, 1)
    widths = (4, 4, 4) if settings.get("pairs", True) else (4, 3, 2)
    weights = [torch.randn(5, width, dtype=torch.float64, generator=generator) for width in widths]
    logits = torch.randn(4, 4, 6, 8, dtype=torch.float64, generator=generator)
    return maps, labels, weights, logits


def unlabeled_images(images):
    """Make four images, two per process, with one to four confident pixels of a class and a stage, and surer ones."""
    generator = torch.Generator().manual_seed(5)
    maps = [torch.randn(4, 5, *size, dtype=torch.float64, generator=generator)[images] for size in SIZES]
    labels = torch.arange(4).repeat_interleave(8).expand(4, 24, 32)
    confidence = torch.full((4, 24, 32), 0.5)
    confidence[:2, :8, :8] = 0.98
    confidence[2:, :8] = 1.0
    return PseudoLabeled([stage.requires_grad_() for stage in maps], labels[images], confidence[images])


def contrast(name, images, gather):
    """Compute loss, terms, and gradients of maps and projections; all pixels of every class are anchors."""
    maps, labels, weights, _ = batch(name)
    pseudo = unlabeled_images(images) if "pseudo_share" in CASES[name][1] else None
    maps = [stage[images].requires_grad_() for stage in maps]
    weights = [weight.requires_grad_() for weight in weights]
    settings = {"pairs": PAIRS, "pair_weights": PAIR_WEIGHTS, **CASES[name][1]}
    loss_function = MultiScaleContrastiveLoss(
        4, (1, 2, 4), SCALE_WEIGHTS, sampling="budget", min_anchors_per_class=1, gather_anchors=gather, **settings
    )
    project = [lambda rows, weight=weight: rows @ weight for weight in weights]
    result = loss_function.contrast(maps, labels[images], project, pseudo=pseudo)
    result.loss.backward()
    if pseudo is not None:
        expected = [(pseudo.confidence >= loss_function.pseudo_threshold)[:, :: 24 // h, :: 32 // w] for h, w in SIZES]
        counts = [result.facts[f"contrastive/stage_{stage}/pseudo_anchors"] for stage in (1, 2, 4)]
        assert counts == [each.sum().item() for each in expected]  # no limit was reached
        maps += pseudo.features
    values = torch.stack([result.loss.detach(), *result.terms.values()])
    return values, [stage.grad for stage in maps], [w.grad for w in weights]


def contrast_hard_anchors(rank, positives, temperature):
    """Compute the loss of a process that draws a part of its pixels, and gradients of maps and projections."""
    maps, labels, weights, logits = batch("both have anchors")
    images = slice(2 * rank, 2 * rank + 2)
    maps = [stage[images].requires_grad_() for stage in maps]
    weights = [weight.requires_grad_() for weight in weights]
    loss_function = MultiScaleContrastiveLoss(
        4, (1, 2, 4), SCALE_WEIGHTS, PAIRS, PAIR_WEIGHTS, temperature, positives=positives, anchor_selection="hard",
        gather_anchors=True, **HARD_LIMITS,
    )  # fmt: skip
    project = [lambda rows, weight=weight: rows @ weight for weight in weights]
    generator = torch.Generator().manual_seed(rank)
    loss, _ = loss_function(maps, labels[images], project, generator, logits=logits[images])
    loss.backward()
    return loss.detach(), [stage.grad for stage in maps], [weight.grad for weight in weights]


def hard_anchors_by_loops(positives, temperature):
    """Compute the same over the draws of both processes together by plain loops."""
    maps, labels, weights, logits = batch("both have anchors")
    sides = [side.requires_grad_() for side in (*maps, *weights)]
    predicted = F.interpolate(logits, labels.shape[1:], mode="bilinear").argmax(1)
    drawn = [[], [], []]
    for rank in range(2):
        images, generator = slice(2 * rank, 2 * rank + 2), torch.Generator().manual_seed(rank)
        for stage, map_ in enumerate(maps):
            stride = 24 // map_.shape[2]
            wrong = (predicted != labels)[images, ::stride, ::stride]
            assert 0 < wrong.sum() < wrong.numel()
            anchors = sample_anchors(
                map_[images], labels[images], 4, misclassified=wrong, generator=generator, **HARD_LIMITS
            )
            assert 0 < len(anchors.labels) < wrong.numel()
            drawn[stage].append((anchors.features @ weights[stage], anchors.labels))
    sets = [[torch.cat(parts) for parts in zip(*stage, strict=True)] for stage in drawn]
    settings = {"temperature": temperature, "positives": positives}
    loss = sum(weight * info_nce_by_loops(*each, **settings) for weight, each in zip(SCALE_WEIGHTS, sets, strict=True))
    for (fine, coarse), weight in zip(PAIRS, PAIR_WEIGHTS, strict=True):
        loss = loss + weight * info_nce_by_loops(*sets[fine], *sets[coarse], **settings)
    grads = torch.autograd.grad(loss, sides)
    return loss.detach(), grads[:3], grads[3:]


def one_of_two(rank, folder):
    """Run every case on the images of this process and save its results."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(minutes=5)
    )
    results = {}
    for name in CASES:
        results[name] = means(*contrast(name, slice(2 * rank, 2 * rank + 2), gather=True))
    for case in HARD:
        results[case] = means(*contrast_hard_anchors(rank, *case))
    results["gathered"] = gathered_rows(rank)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def means(values, map_grads, weight_grads):
    """Compute the means over processes that data parallel training would take."""
    for mean in (values, *weight_grads):
        dist.all_reduce(mean)
        mean /= 2
    return values, [grad / 2 for grad in map_grads], weight_grads


def gathered_rows(rank):
    """Gather rows (rank, position), of classes 0, 2, 2 on the first process and 1, 2 on the second."""
    labels = torch.tensor([[0, 2, 2], [1, 2]][rank])
    features = torch.tensor([[rank, position] for position in range(len(labels))], dtype=torch.float64)
    sizes = [{0: 1, 2: 2}, {1: 1, 2: 1}][rank]
    rows = unit_rows(features, labels, sizes)._replace(features=features)
    (gathered,) = gather_rows([rows], 3)
    return gathered


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(one_of_two, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def assert_equal(results, expected):
    values, map_grads, weight_grads = expected
    for rank, (of_two, map_grads_of_two, weight_grads_of_two) in enumerate(results):
        torch.testing.assert_close(of_two, values, rtol=1e-12, atol=1e-14)
        for actual, expected in zip(weight_grads_of_two, weight_grads, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)
        for actual, expected in zip(map_grads_of_two, map_grads, strict=True):
            torch.testing.assert_close(actual, expected[2 * rank : 2 * rank + 2], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_loss_terms_and_gradients_equal_those_of_one_process(two_processes, name):
    expected = contrast(name, slice(0, 4), gather=False)
    assert_equal([results[name] for results in two_processes], expected)
    assert (expected[0][0] > 0) == any(CASES[name][0])


@pytest.mark.parametrize(("positives", "temperature"), HARD)
def test_hard_anchors_equal_plain_loops_over_the_draws_of_both_processes(two_processes, positives, temperature):
    of_two = [results[positives, temperature] for results in two_processes]
    assert_equal(of_two, hard_anchors_by_loops(positives, temperature))


def test_gathered_rows_are_sorted_by_class_and_every_process_finds_its_own(two_processes):
    first, second = (results["gathered"] for results in two_processes)
    for gathered in (first, second):
        assert gathered.rows.features.tolist() == [[0, 0], [1, 0], [0, 1], [0, 2], [1, 1]]
        assert gathered.rows.labels.tolist() == [0, 1, 2, 2, 2]
        assert gathered.rows.class_sizes == {0: 1, 1: 1, 2: 3}
    assert first.own_columns.tolist() == [0, 2, 3]
    assert second.own_columns.tolist() == [1, 4]
    assert (first.share, second.share) == (2 * 3 / 5, 2 * 2 / 5)


def test_gathering_changes_nothing_on_one_process():
    one, gathered = (contrast("both have anchors", slice(0, 4), gather) for gather in (False, True))
    torch.testing.assert_close(gathered[0], one[0], rtol=1e-12, atol=0)
