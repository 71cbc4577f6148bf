"""Two processes with half a batch each give the loss and gradients of one process with all of it, in float64."""

import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from msctr_hf import MultiScaleContrastiveLoss
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
    "any positive at low temperature": ([[0, 1], [1, 2, 3]], {"positives": "any", "temperature": 0.01}),
    "hard anchors": ([[0, 1, 2], [1, 2, 3]], {"anchor_selection": "hard"}),
    "pseudo-labels": ([[0, 1, 2], [1, 2, 3]], {"pseudo_share": 0.9}),
    "pseudo-labels of one process": ([[0, 1, 2], [0, 1]], {"pseudo_share": 0.9, "pseudo_threshold": 1.0}),
    "no gradient into the contrast side": ([[0, 1, 2], [1, 2, 3]], {"detach_coarse": True}),
    "stages of different widths": ([[0, 1, 2], [1, 2, 3]], {"pairs": (), "pair_weights": ()}),
}


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
    maps, labels, weights, logits = batch(name)
    pseudo = unlabeled_images(images) if "pseudo_share" in CASES[name][1] else None
    maps = [stage[images].requires_grad_() for stage in maps]
    weights = [weight.requires_grad_() for weight in weights]
    settings = {"pairs": ((0, 2), (0, 1)), "pair_weights": (1.0, 0.5), **CASES[name][1]}
    loss_function = MultiScaleContrastiveLoss(
        4, (1, 2, 4), (1.0, 0.7, 0.4), sampling="budget", min_anchors_per_class=1, gather_anchors=gather, **settings
    )
    project = [lambda rows, weight=weight: rows @ weight for weight in weights]
    result = loss_function.contrast(maps, labels[images], project, logits=logits[images], pseudo=pseudo)
    result.loss.backward()
    if pseudo is not None:
        expected = [(pseudo.confidence >= loss_function.pseudo_threshold)[:, :: 24 // h, :: 32 // w] for h, w in SIZES]
        counts = [result.facts[f"contrastive/stage_{stage}/pseudo_anchors"] for stage in (1, 2, 4)]
        assert counts == [each.sum().item() for each in expected]  # no limit was reached
        maps += pseudo.features
    values = torch.stack([result.loss.detach(), *result.terms.values()])
    return values, [stage.grad for stage in maps], [w.grad for w in weights]


def one_of_two(rank, folder):
    """Run every case on the images of this process and save the means that data parallel training would take."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(minutes=5)
    )
    results = {}
    for name in CASES:
        values, map_grads, weight_grads = contrast(name, slice(2 * rank, 2 * rank + 2), gather=True)
        for mean in (values, *weight_grads):
            dist.all_reduce(mean)
            mean /= 2
        results[name] = values, [grad / 2 for grad in map_grads], weight_grads
    results["gathered"] = gathered_rows(rank)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


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


@pytest.mark.parametrize("name", CASES)
def test_loss_terms_and_gradients_equal_those_of_one_process(two_processes, name):
    values, map_grads, weight_grads = contrast(name, slice(0, 4), gather=False)
    for rank, results in enumerate(two_processes):
        of_two, map_grads_of_two, weight_grads_of_two = results[name]
        torch.testing.assert_close(of_two, values, rtol=1e-12, atol=1e-14)
        for actual, expected in zip(weight_grads_of_two, weight_grads, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)
        for actual, expected in zip(map_grads_of_two, map_grads, strict=True):
            torch.testing.assert_close(actual, expected[2 * rank : 2 * rank + 2], rtol=1e-10, atol=1e-14)
    assert (values[0] > 0) == any(CASES[name][0])


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
