"""Benchmarks of the contrastive objective.

Every function returns the rows of a table: time and memory of both implementations, their ratio and, for one CPU
thread, the target that the ratio should reach.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from msctr_hf.models.anchor_sampling import sample_anchors
from msctr_hf.models.contrastive_loss import MultiScaleContrastiveLoss
from msctr_hf.models.info_nce import info_nce_loss
from msctr_hf.models.info_nce_tiles import tile_rows
from msctr_hf.models.projection_head import StageProjection

from .measuring import Step, add_targets, compare, median_seconds, peak_megabytes, ratio
from .reference import dense_info_nce_loss, dense_multi_scale_loss, sample_pair_by_pair

CHANNELS = 256
STRIDES = (4, 8, 16, 32)
SCALE_WEIGHTS = (1.0, 0.7, 0.4, 0.1)
PAIRS = ((0, 3), (0, 2))
CROP = (512, 1024)
NUM_LABELS = 19
VIEWS = 5  # anchors per image and class; nearly always 5 in practice

OPTIONS: dict[str, dict] = {
    "default": {},
    "hard": {"anchor_selection": "hard"},
    "any": {"positives": "any"},
}
BUDGET = 2048  # anchors of a stage
LEAD_OF_LABELS = 4.0  # of logits of labels, in deviations of the others: 5 to 10 % of the pixels are misclassified

LOSS_TARGETS = {
    "within": {500: 0.85, 1000: 1.3, 2000: 1.8, 5000: 4.0, 10_000: 5.0},
    "across": {500: 0.9, 1000: 1.0, 2000: 1.2, 5000: 2.5, 10_000: 3.0},
}
MEMORY_TARGETS = {"within": {10_000: 12.0}, "across": {10_000: 20.0}}
SAMPLING_TARGETS = {4: 100.0, 8: 80.0, 16: 25.0, 32: 10.0}
TOGETHER_TARGETS = {2: 15.0, 6: 40.0}
PROJECTION_TARGETS = {(48, 4): 3.0, (96, 8): 2.0}


def loss(sizes: Sequence[int], num_labels: Sequence[int], repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare `info_nce_loss` with `dense_info_nce_loss` on the same anchors, forward and backward.

    `products / ours` is the share of the time that the matrix products of all tiles, each computed once, take alone,
    and `least / ours` that of all the work that no formula of the loss avoids, see `least_step`.
    """
    rows = []
    for term in ("within", "across"):
        for size in sizes:
            for classes in num_labels:
                ways = {way: (way, term, size, classes, device) for way in ("dense", "ours")}
                memory = {
                    way: peak_megabytes(loss_step, arguments, (way, term, 200, 5, device), device)
                    for way, arguments in ways.items()
                }
                steps = {way: loss_step(*arguments) for way, arguments in ways.items()}
                floors: dict[str, Step] = {
                    "products": products_step(term, size, device),
                    "least": least_step(term, size, device),
                }
                measured = median_seconds(steps | floors, repetitions or max(3, 20_000 // size), device)
                seconds = {way: measured[way] for way in steps}
                rows.append({"term": term, "anchors": size, "classes": classes} | compare(seconds, memory))
                for floor in floors:
                    share = ratio(1000 * measured[floor], rows[-1]["ours ms"], unit="ms")
                    rows[-1][f"{floor} / ours"] = share
                speed, memory_target = LOSS_TARGETS[term].get(size), MEMORY_TARGETS[term].get(size)
                add_targets(rows[-1], device, speed=speed, memory=memory_target)
    return rows


def loss_step(way: str | Callable, term: str, size: int, num_labels: int, device: torch.device) -> Step:
    """Build a forward and backward pass over random anchors, sorted by class as the sampler returns them."""
    functions: dict[str, Callable] = {
        "dense": dense_info_nce_loss,
        "ours": info_nce_loss,
        "any": functools.partial(info_nce_loss, positives="any"),
    }
    function = functions[way] if isinstance(way, str) else way
    generator = torch.Generator().manual_seed(0)
    sides: list[torch.Tensor] = []
    for _ in range(1 if term == "within" else 2):
        classes = torch.randint(0, num_labels, (-(-size // VIEWS),), generator=generator).sort().values
        features = torch.randn(size, CHANNELS, generator=generator)
        sides += [features.to(device).requires_grad_(), classes.repeat_interleave(VIEWS)[:size].to(device)]
    return lambda: _backward(function(*sides), sides[::2])


def products_step(term: str, size: int, device: torch.device) -> Step:
    """Build the matrix products that a term needs at least: logits and both gradients, tile by tile.

    Within a scale, logits are symmetric, and those above the diagonal are enough.
    """
    rows, columns = torch.randn(2, size, CHANNELS, device=device)
    return lambda: _multiply(rows, rows, columns, _tiles(term, size, device), lambda logits, tile: None)


def least_step(term: str, size: int, device: torch.device) -> Step:
    """Build the work of a term that no formula avoids; that of its positives is not counted.

    Besides the products an anchor needs the exponentials of its logits, their sum, and its row of them times the
    gradient of that sum, which across scales may be multiplied into rows of features instead; within a scale, a tile
    serves its columns as anchors too. Rows are normalized, and the gradient passes through that.
    """
    sides = [torch.randn(size, CHANNELS, device=device) for _ in range(1 if term == "within" else 2)]
    grads = [torch.randn(size, CHANNELS, device=device) for _ in sides]
    weights = torch.rand(size, device=device)  # gradients of the sums
    sums = torch.empty(2, size, device=device)

    def exponentials(logits: torch.Tensor, tile: tuple[slice, slice]) -> None:
        upper, lower = tile
        logits.exp2_()
        sums[0, upper] += logits.sum(1)
        if term == "within":
            sums[1, lower] += logits.sum(0)
            logits.mul_(weights[upper, None] + weights[None, lower])

    def step() -> None:
        sums.zero_()
        units = [side / torch.linalg.vector_norm(side, dim=1, keepdim=True) for side in sides]
        weighted = units[0] if term == "within" else units[0] * weights[:, None]
        products = _multiply(units[0], weighted, units[-1], _tiles(term, size, device), exponentials)
        if term == "across":
            products[0].mul_(weights[:, None])
        for unit, grad in zip(units, grads, strict=True):
            along = (grad * unit).sum(1, keepdim=True)
            (grad - unit * along).div_(along)

    return step


def _tiles(term: str, size: int, device: torch.device) -> list[tuple[slice, slice]]:
    height = tile_rows(device)
    return [
        (slice(top, top + height), slice(left, left + 2 * height))
        for top in range(0, size, height)
        for left in range(top if term == "within" else 0, size, 2 * height)
    ]


def _multiply(
    rows: torch.Tensor,
    weighted: torch.Tensor,
    columns: torch.Tensor,
    tiles: Sequence[tuple[slice, slice]],
    change: Callable[[torch.Tensor, tuple[slice, slice]], None],
) -> torch.Tensor:
    """Compute logits of every tile, let a function change them, and add up their products with both sides."""
    grads = rows.new_zeros(2, *rows.shape)
    buffer = rows.new_empty(max((u.stop - u.start) * (w.stop - w.start) for u, w in tiles))
    for upper, lower in tiles:
        height, width = len(rows[upper]), len(columns[lower])
        logits = buffer[: height * width].view(height, width)
        torch.mm(rows[upper], columns[lower].T, out=logits)
        change(logits, (upper, lower))
        grads[0, upper].addmm_(logits, columns[lower])
        grads[1, lower].addmm_(logits.T, weighted[upper])
    return grads


def sampling(batch_size: int, repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare `sample_anchors` with `sample_pair_by_pair`, including backward passes, stage by stage."""
    rows = []
    labels = blob_labels(batch_size, CROP, device)
    for stride in STRIDES:
        features = _map(batch_size, CHANNELS, stride, device)
        anchors = len(sample_anchors(features, labels, NUM_LABELS).labels)
        steps = {
            "pair by pair": lambda f=features: _backward(sample_pair_by_pair(f, labels, NUM_LABELS)[0].sum(), [f]),
            "ours": lambda f=features: _backward(sample_anchors(f, labels, NUM_LABELS).features.sum(), [f]),
        }
        seconds = median_seconds(steps, repetitions or stride // 4, device)
        rows.append({"stride": stride, "images": batch_size, "anchors": anchors} | compare(seconds))
        add_targets(rows[-1], device, speed=SAMPLING_TARGETS[stride])
    return rows


def together(batch_sizes: Sequence[int], repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare the whole objective: four terms within and two across scales, and the gradients of the maps."""
    objective = MultiScaleContrastiveLoss(NUM_LABELS, (1, 2, 3, 4), SCALE_WEIGHTS, PAIRS, (1.0, 1.0))
    rows = []
    for batch_size in batch_sizes:
        labels = blob_labels(batch_size, CROP, device)
        maps = [_map(batch_size, CHANNELS, stride, device) for stride in STRIDES]
        steps = {
            "straightforward": lambda m=maps, y=labels: _backward(
                dense_multi_scale_loss(m, y, NUM_LABELS, SCALE_WEIGHTS, PAIRS), m
            ),
            "ours": lambda m=maps, y=labels: _backward(objective(m, y)[0], m),
        }
        seconds = median_seconds(steps, repetitions or 3, device)
        rows.append({"images": batch_size, "crop": "x".join(map(str, CROP))} | compare(seconds))
        add_targets(rows[-1], device, speed=TOGETHER_TARGETS.get(batch_size))
    return rows


def options(
    batch_sizes: Sequence[int],
    sizes: Sequence[int],
    num_labels: Sequence[int],
    repetitions: int | None,
    device: torch.device,
) -> list[dict]:
    """Compare hard anchors and any positive with the defaults: the whole objective, then the loss alone.

    `hard share` is the share of the anchors of all stages that hard anchors take from misclassified pixels.
    """
    rows, arguments = [], dict[str, tuple]()
    for sampling, images, classes in itertools.product(("rarest", "budget"), batch_sizes, num_labels):
        arguments = {way: (way, images, classes, sampling, device) for way in OPTIONS}
        costs = _costs(objective_step, arguments, ("default", 1, 5, sampling, device), repetitions or 9)
        what = {"part": f"objective, {sampling}", "images": images, "anchors": None, "classes": classes}
        rows.append(what | costs | {"hard share": _hard_share(images, classes, sampling, device)})
    for term, size, classes in itertools.product(("within", "across"), sizes, num_labels):
        arguments = {"default": ("ours", term, size, classes, device), "any": ("any", term, size, classes, device)}
        costs = _costs(loss_step, arguments, ("any", term, 200, 5, device), repetitions or max(5, 20_000 // size))
        what = {"part": f"loss, {term}", "images": None, "anchors": size, "classes": classes}
        rows.append(what | costs | {"hard share": None})
    return rows


def _costs(build: Callable[..., Step], arguments: dict[str, tuple], warm_up: tuple, repetitions: int) -> dict:
    """Measure the options that `arguments` lists, and make the columns of all: time, memory, and ratio of times."""
    device = warm_up[-1]
    memory = {way: peak_megabytes(build, of_way, warm_up, device) for way, of_way in arguments.items()}
    seconds = median_seconds({way: build(*of_way) for way, of_way in arguments.items()}, repetitions, device)
    columns: dict = {}
    for way in OPTIONS:
        measured = way in seconds
        columns[f"{way} ms"] = 1000 * seconds[way] if measured else None
        columns[f"{way} MB"] = memory.get(way)
        if way != "default":
            times = 1000 * seconds.get(way, 0), 1000 * seconds["default"]
            columns[f"{way} / default"] = ratio(*times, unit="ms") if measured else None
    return columns


def objective_step(way: str, images: int, num_labels: int, sampling: str, device: torch.device) -> Step:
    """Build a forward and backward pass of the whole objective with an option, with logits that are mostly right."""
    objective, maps, labels, logits = _objective(way, images, num_labels, sampling, device)
    return lambda: _backward(objective(maps, labels, logits=logits)[0], maps)


def _objective(way: str, images: int, num_labels: int, sampling: str, device: torch.device) -> tuple:
    limits: dict = {} if sampling == "rarest" else {"max_anchors": BUDGET}
    objective = MultiScaleContrastiveLoss(
        num_labels, (1, 2, 3, 4), SCALE_WEIGHTS, PAIRS, (1.0, 1.0), sampling=sampling, **limits, **OPTIONS[way]
    )
    labels = blob_labels(images, CROP, device, num_labels)
    maps = [_map(images, CHANNELS, stride, device) for stride in STRIDES]
    coarse = labels[:, :: STRIDES[0], :: STRIDES[0]]
    logits = torch.randn(len(coarse), num_labels, *coarse.shape[1:], device=device)
    logits.scatter_add_(1, coarse[:, None], torch.full_like(logits[:, :1], LEAD_OF_LABELS))
    return objective, maps, labels, logits


def _hard_share(images: int, num_labels: int, sampling: str, device: torch.device) -> float:
    objective, maps, labels, logits = _objective("hard", images, num_labels, sampling, device)
    facts = objective.contrast(maps, labels, logits=logits).facts
    names = [f"contrastive/stage_{stage}" for stage in objective.stages]
    stages = [name for name in names if facts[f"{name}/anchors"]]  # without anchors, the share is NaN
    hard = sum(facts[f"{stage}/anchors"] * facts[f"{stage}/hard_share"] for stage in stages)
    return hard / sum(facts[f"{stage}/anchors"] for stage in stages)


def projection(batch_size: int, repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare applying the last convolution of the projection head to sampled pixels and to whole maps."""
    rows = []
    labels = blob_labels(batch_size, CROP, device)
    for channels, stride in ((48, 4), (96, 8), (192, 16), (384, 32), (512, 4)):
        head = StageProjection(channels, CHANNELS).to(device)
        features = _map(batch_size, channels, stride, device)
        sides = [features, *head.parameters()]
        steps = {
            "whole map": lambda f=features, h=head, s=sides: _backward(
                sample_anchors(h(f), labels, NUM_LABELS).features.sum(), s
            ),
            "ours": lambda f=features, h=head, s=sides: _backward(
                h.project_rows(sample_anchors(h.hidden(f), labels, NUM_LABELS).features).sum(), s
            ),
        }
        seconds = median_seconds(steps, repetitions or 3, device)
        rows.append({"channels": channels, "stride": stride, "images": batch_size} | compare(seconds))
        add_targets(rows[-1], device, speed=PROJECTION_TARGETS.get((channels, stride)))
    return rows


def blob_labels(
    batch_size: int, size: Sequence[int], device: torch.device, num_labels: int = NUM_LABELS
) -> torch.Tensor:
    """Make labels (B, H, W) of smooth regions of frequent and rare classes; about two thirds of 19 are in an image."""
    generator = torch.Generator().manual_seed(0)
    cells = [max(2, side // 64) for side in size]
    scores = torch.randn(batch_size, num_labels, *cells, generator=generator)
    scores += torch.linspace(1.5, -1.8, num_labels)[:, None, None]
    quarter = F.interpolate(scores, size=[-(-side // 4) for side in size], mode="bicubic").argmax(1)
    labels = quarter.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : size[0], : size[1]]
    return labels.contiguous().to(device)


def _map(batch_size: int, channels: int, stride: int, device: torch.device) -> torch.Tensor:
    size = [side // stride for side in CROP]
    return torch.randn(batch_size, channels, *size, device=device, requires_grad=True)


def _backward(value: torch.Tensor, sides: Sequence[torch.Tensor]) -> None:
    """Compute gradients without storing them, so that repeated steps do not accumulate them."""
    torch.autograd.grad(value, sides)
