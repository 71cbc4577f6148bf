# Copyright 2026 the authors of msctr_hf
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Contrastive terms computed in tiles: exact values and gradients, with memory linear in the number of rows.

Rows have unit length and are sorted by class, and the host knows how many rows every class has, so that it can plan
the tiles without waiting for the device. Logits are in base 2, because `exp2` costs less than `exp`. The gradient is
computed together with the value, so that the backward pass needs no tiles.

N = anchors, M = rows of the contrast set, D = channels; l_i, L_i and a_ij as in info_nce.py, t = temperature.

The gradient, and why it takes a second pass: with the sum S_i = sum_n exp(a_in) over the negatives n of an anchor, and
the gaps h_ip = L_i - a_ip = log S_i - a_ip to its positives p,

    l_i = mean over p of softplus(h_ip)
    dl_i/dh_ip = sigmoid(h_ip) / |P(i)|                                   `gap_grads`; |P(i)| is the number of p
    dl_i/dS_i = sum_p dl_i/dh_ip * dh_ip/dS_i = sum_p dl_i/dh_ip / S_i    `sum_grads`
    dl_i/da_ip = -dl_i/dh_ip                      for a positive p
    dl_i/da_in = dl_i/dS_i * exp(a_in)            for a negative n

The last line needs the complete sum S_i, and a tile contains only some of its terms: a first pass over the tiles sums
S_i, and a second pass multiplies the same exponentials by dl_i/dS_i. From a_ij = f_i . g_j / t it follows that

    dl/df_i = 1 / (N t) * sum_j dl_i/da_ij * g_j,        dl/dg_j = 1 / (N t) * sum_i dl_i/da_ij * f_i

for the loss l = sum_i l_i / N. With `positives="any"` an anchor has a single gap h_i = log S_i - log P_i, where P_i is
the mean over p of exp(a_ip); the positives share dl_i/dh_i = sigmoid(h_i) in proportion to exp(a_ip). All else stays
as it is, since all positives of an anchor are in one tile.

Where rows are contrasted with each other (g = f), two rows of different classes meet
twice: as anchor i with negative j, and as anchor j with negative i. Since a_ij = a_ji, the coefficient of f_j in
dl/df_i is also that of f_i in dl/df_j, up to 1 / (N t):

    dl_i/da_ij + dl_j/da_ji = (dl_i/dS_i + dl_j/dS_j) * exp(a_ij)
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F

CPU_TILE_ROWS = 256  # a tile of 256 x 512 float32 stays in the cache of a core; fastest of 128 to 512 rows
DEVICE_TILE_ROWS = 2048  # of a device without a known cache; fastest of 1,024 to 8,192 rows on an H100
MIN_DEVICE_TILE_ROWS = 512  # launches cost an accelerator more than arithmetic
# Tiles kept between the two passes instead of being computed again: a multiple of the memory of the rows. On a CPU all
# of 8,000 rows with 256 channels are kept, and of more rows as many as fit into the limit.
KEPT_TILES = 20
MAX_KEPT_BYTES = 160 * 2**20
DEVICE_KEPT_TILES = 4

# Up to this magnitude of logits, float32 can sum exponentials without subtracting a maximum: ratios are at most e^60.
MAX_UNSHIFTED_LOGIT = 30.0

_LOG2_E = math.log2(math.e)
_MASKING_OFFSET = 2.0**100  # subtracted from a logit to mask it: exp2 of the difference is 0
_LINEAR_SOFTPLUS_THRESHOLD = 50.0  # with torch's default of 20, float64 would lose digits


class UnitRows(NamedTuple):
    """Features of unit length, with rows sorted by class: one side of a contrastive term.

    Args:
        features (`torch.Tensor` of shape `(N, D)`, float32 or float64): Rows of length 1; N may be 0.
        labels (`torch.Tensor` of shape `(N,)`, int64): Class of every row.
        class_sizes (`dict[int, int]`): Number of rows of every class that is present, classes ascending; on the host.
    """

    features: torch.Tensor
    labels: torch.Tensor
    class_sizes: dict[int, int]


# (logits (T, P), mask of positives (T, P), log2 of S_i (T, 1)) -> sum of l_i, and -dl_i/da_ip of shape (T, P)
PositiveTerms = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Block(NamedTuple):
    """Position of a tile in the matrix of logits: rows are anchors, columns are rows of the contrast set."""

    rows: slice
    columns: slice


def within_scale(
    rows: UnitRows, temperature: float, wants_grad: bool, positives: str = "each"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Contrast rows with each other; requires `temperature * MAX_UNSHIFTED_LOGIT >= 1`.

    Rows are divided into groups of whole classes. A tile between two groups contains only negatives: it needs no mask,
    and by symmetry it serves the anchors of both groups. All positives are inside a group, on the diagonal. The first
    pass sums S_i, the second adds up the gradient; the docstring of this module derives both.

    Args:
        rows (`UnitRows`): N rows.
        temperature (`float`): Temperature of the logits.
        wants_grad (`bool`): Whether to compute the gradient.
        positives (`str`): `"each"` or `"any"`, as in `info_nce_loss`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: mean of l_i, and its gradient (N, D) or `None`.
    """
    features = rows.features
    groups = class_groups(list(rows.class_sizes.values()), tile_rows(features.device))
    off_diagonal = _OffDiagonalTiles(features, groups, temperature)
    negative_sums = features.new_zeros(len(features))  # S_i
    for (upper, lower), exponentials in off_diagonal:
        negative_sums[upper] += exponentials.sum(1)
        negative_sums[lower] += exponentials.sum(0)

    grad = torch.zeros_like(features) if wants_grad else None
    loss, sum_grads = _diagonal(rows, groups, temperature, negative_sums, grad, _POSITIVE_TERMS[positives])
    if wants_grad:
        storage = torch.empty_like(off_diagonal.buffer)
        for (upper, lower), exponentials in off_diagonal:  # the second pass: S_i is complete
            factors = storage[: exponentials.numel()].view_as(exponentials)
            torch.add(sum_grads[upper, None], sum_grads[None, lower], out=factors)  # dl_i/dS_i + dl_j/dS_j
            exponentials *= factors  # dl_i/da_ij + dl_j/da_ji
            grad[upper].addmm_(exponentials, features[lower])
            grad[lower].addmm_(exponentials.T, features[upper])
        grad *= 1 / (max(len(features), 1) * temperature)
    return loss / max(len(features), 1), grad


def _diagonal(
    rows: UnitRows,
    groups: list[slice],
    temperature: float,
    negative_sums: torch.Tensor,
    grad: torch.Tensor | None,
    positive_terms: PositiveTerms,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Complete S with the negatives inside groups, then compute the terms of all positives and add to `grad`.

    A strip contains all positives of its anchors, and all negatives that are not in a tile between groups: S_i is
    complete as soon as these are added, so the gradient inside a group needs no second pass.

    Args:
        rows (`UnitRows`): N rows.
        groups (`list[slice]`): Ranges of rows, each of whole classes.
        temperature (`float`): Temperature of the logits.
        negative_sums (`torch.Tensor` of shape `(N,)`): S_i over the negatives in other groups; completed in place.
        grad (`torch.Tensor` of shape `(N, D)`, *optional*): Sum of the gradients of l_i, times the temperature;
            the part of the pairs inside groups is added in place.
        positive_terms (`PositiveTerms`): Function of the terms of a strip.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: sum of l_i, and dl_i/dS_i of shape (N,).
    """
    features, (labels,) = rows.features, _comparable_labels(rows)
    sum_grads = torch.empty_like(negative_sums)
    loss = features.new_zeros(())
    for group in groups:
        for strip in strips(group.start, group.stop, tile_rows(features.device)):
            logits = (features[strip] @ features[group].T).mul_(_LOG2_E / temperature)  # (T, G)
            positives = _same_class(labels[strip], labels[group])
            exponentials = logits.exp2().mul_(1 - positives)
            negative_sums[strip] += exponentials.sum(1)
            positives.diagonal(strip.start - group.start).zero_()  # an anchor is not its own positive
            strip_loss, gap_grads = positive_terms(logits, positives, negative_sums[strip, None].log2())
            loss += strip_loss
            sum_grads[strip] = _quotient(gap_grads.sum(1), negative_sums[strip])
            if grad is None:
                continue
            logits_grad = exponentials.mul_(sum_grads[strip, None]).sub_(gap_grads)  # dl_i/da_ij
            if strip == group:  # one product, and launch, for rows as anchors and as contrast set
                grad[group].addmm_(logits_grad + logits_grad.T, features[group])
            else:
                grad[strip].addmm_(logits_grad, features[group])
                grad[group].addmm_(logits_grad.T, features[strip])
    return loss, sum_grads


class _OffDiagonalTiles:
    """Iterable over the exponentials of all logits above the diagonal groups, tile by tile; it can be repeated.

    As many tiles as `_room` allows are kept for the next iteration; the others share one buffer and are computed
    again, so that memory stays linear in the number of rows. Only the last iteration may overwrite a tile.
    """

    def __init__(self, features: torch.Tensor, groups: list[slice], temperature: float):
        self.features = features
        self.scaled = features * (_LOG2_E / temperature)
        self.blocks = list(_off_diagonal_blocks(groups, len(features), tile_rows(features.device)))
        self.kept: list[torch.Tensor] = []
        self.room = _room(features)
        self.buffer = features.new_empty(max((_area(block) for block in self.blocks), default=0))

    def __iter__(self) -> Iterator[tuple[Block, torch.Tensor]]:
        for position, block in enumerate(self.blocks):
            if position < len(self.kept):
                yield block, self.kept[position]
            else:
                yield block, self._exponentials(block, keep=position == len(self.kept))

    def _exponentials(self, block: Block, keep: bool) -> torch.Tensor:
        area = _area(block)
        keep = keep and area <= self.room
        storage = torch.empty_like(self.buffer[:area]) if keep else self.buffer[:area]
        tile = storage.view(_length(block.rows), _length(block.columns))
        torch.mm(self.scaled[block.rows], self.features[block.columns].T, out=tile).exp2_()
        if keep:
            self.room -= area
            self.kept.append(tile)
        return tile


def across_sets(
    anchors: UnitRows,
    contrast: UnitRows,
    own_columns: torch.Tensor | None,
    temperature: float,
    wants_grad: tuple[bool, bool],
    positives: str = "each",
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Contrast rows with another set, which may contain them; numerically stable at any temperature.

    A strip of anchors meets the whole contrast set at once, so that S_i is complete and one pass is enough. Since both
    sides are sorted by class, the positives of a strip are in one range of columns.

    Args:
        anchors (`UnitRows`): N rows.
        contrast (`UnitRows`): M rows.
        own_columns (`torch.Tensor` of shape `(N,)`, int64, *optional*):
            Columns of the contrast set that are the anchors themselves, each excluded from its own positives.
        temperature (`float`): Temperature of the logits.
        wants_grad (`tuple[bool, bool]`): Whether to compute the gradients of the anchors and of the contrast set.
        positives (`str`): `"each"` or `"any"`, as in `info_nce_loss`.

    Returns:
        `tuple[torch.Tensor, ...]`: mean of l_i, and its gradients (N, D) and (M, D) or `None`.
    """
    loss = anchors.features.new_zeros(())
    anchor_labels, contrast_labels = _comparable_labels(anchors, contrast)
    anchor_grad = torch.zeros_like(anchors.features) if wants_grad[0] else None
    contrast_grad = torch.zeros_like(contrast.features) if wants_grad[1] else None
    num_rows, num_columns = len(anchors.features), len(contrast.features)
    all_strips = list(strips(0, num_rows, tile_rows(loss.device))) if num_columns else []
    buffer = loss.new_empty(max(map(_length, all_strips), default=0) * num_columns)
    for strip in all_strips:
        logits = buffer[: _length(strip) * num_columns].view(-1, num_columns)  # (T, M)
        torch.mm(anchors.features[strip] * (_LOG2_E / temperature), contrast.features.T, out=logits)
        columns = _columns_of_classes(anchors.class_sizes, strip, contrast.class_sizes)
        same_class = _same_class(anchor_labels[strip], contrast_labels[columns])
        own = None if own_columns is None else own_columns[strip, None] - columns.start
        strip_loss, logits_grad = _strip(logits, same_class, columns, own, _POSITIVE_TERMS[positives])
        loss += strip_loss
        if anchor_grad is not None:
            torch.mm(logits_grad, contrast.features, out=anchor_grad[strip])
        if contrast_grad is not None:
            contrast_grad.addmm_(logits_grad.T, anchors.features[strip])
    for grad in (anchor_grad, contrast_grad):
        if grad is not None:
            grad *= 1 / (max(num_rows, 1) * temperature)
    return loss / max(num_rows, 1), anchor_grad, contrast_grad


def _strip(
    logits: torch.Tensor,
    positives: torch.Tensor,
    columns: slice,
    own: torch.Tensor | None,
    positive_terms: PositiveTerms,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the sum of l_i over a strip of logits (T, M), and overwrite them by dl_i/da_ij.

    Args:
        logits (`torch.Tensor` of shape `(T, M)`): In base 2; overwritten.
        positives (`torch.Tensor` of shape `(T, P)`): 1 at columns of the same class, 0 elsewhere; overwritten.
        columns (`slice`): The P columns of `logits` that `positives` describes.
        own (`torch.Tensor` of shape `(T, 1)`, *optional*): Columns of `positives` that are the anchors themselves.
        positive_terms (`PositiveTerms`): Function of the terms of the strip.
    """
    positive_logits = logits[:, columns].clone()
    logits[:, columns].sub_(positives, alpha=_MASKING_OFFSET)
    # At low temperatures the exponentials would overflow without subtracting the largest negative logit, which cancels
    # in dl_i/dS_i * exp(a_in). An anchor without negatives has only masked logits: subtracting their own maximum would
    # unmask them, so the shift is bounded.
    shift = logits.amax(dim=1, keepdim=True).clamp_min_(-_MASKING_OFFSET / 2)
    exponentials = logits.sub_(shift).exp2_()
    negative_sums = exponentials.sum(1)
    if own is not None:
        positives.scatter_(1, own, 0.0)
    loss, gap_grads = positive_terms(positive_logits, positives, negative_sums[:, None].log2() + shift)
    logits_grad = exponentials.mul_(_quotient(gap_grads.sum(1), negative_sums)[:, None])
    logits_grad[:, columns] -= gap_grads
    return loss, logits_grad


def _terms_of_each(
    logits: torch.Tensor, positives: torch.Tensor, log2_negatives: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the sum of l_i over a strip, and dl_i/dh_ip = sigmoid(h_ip) / |P(i)| of shape (T, P).

    Args:
        logits (`torch.Tensor` of shape `(T, P)`): In base 2.
        positives (`torch.Tensor` of shape `(T, P)`): 1 at positives, 0 elsewhere; overwritten.
        log2_negatives (`torch.Tensor` of shape `(T, 1)`): L_i in base 2; -inf where an anchor has no negatives.
    """
    positives /= positives.sum(dim=1, keepdim=True).clamp_min(1)
    gaps = (log2_negatives - logits).mul_(1 / _LOG2_E)  # h_ip, in base e
    loss = _softplus(gaps).mul_(positives).sum()
    return loss, gaps.sigmoid_().mul_(positives)


def _terms_of_any(
    logits: torch.Tensor, positives: torch.Tensor, log2_negatives: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the sum of l_i over a strip, and -dl_i/da_ip = sigmoid(h_i) * exp(a_ip) / sum_p exp(a_ip), (T, P).

    The arguments are those of `_terms_of_each`.
    """
    if logits.shape[1] == 0:  # no row of the contrast set has a class of these anchors
        return logits.new_zeros(()), positives
    counts = positives.sum(dim=1, keepdim=True)
    masked = torch.add(logits, positives.sub_(1), alpha=_MASKING_OFFSET)
    shift = masked.amax(dim=1, keepdim=True).clamp_min_(-_MASKING_OFFSET / 2)  # bounded as in `_strip`
    exponentials = masked.sub_(shift).exp2_()
    sums = exponentials.sum(dim=1, keepdim=True)
    log2_positives = (sums / counts.clamp_min(1)).log2_() + shift  # log P_i in base 2
    gaps = (log2_negatives - log2_positives).mul_(1 / _LOG2_E)  # h_i, in base e
    gaps = gaps.where(counts > 0, -math.inf)  # an anchor without positives contributes 0
    return _softplus(gaps).sum(), exponentials.mul_(_quotient(gaps.sigmoid(), sums))


_POSITIVE_TERMS: dict[str, PositiveTerms] = {"each": _terms_of_each, "any": _terms_of_any}


def _softplus(gaps: torch.Tensor) -> torch.Tensor:
    """Compute log(1 + exp(gap)), with full precision even where it is tiny."""
    if gaps.device.type != "cpu":
        return F.softplus(gaps, threshold=_LINEAR_SOFTPLUS_THRESHOLD)
    # On a CPU log1p is up to ten times slower than log; what rounding 1 + u loses is added back to first order.
    u = gaps.abs().mul_(-_LOG2_E).exp2_()
    rounded = u + 1
    u.sub_(rounded - 1).div_(rounded)
    return rounded.log_().add_(u).add_(gaps.clamp_min(0))


def _comparable_labels(*sides: UnitRows) -> list[torch.Tensor]:
    """Convert the labels of all sides to floats that are equal exactly where the labels are.

    Where a float cannot represent every integer up to the largest label, as from 2^24 on, labels become their ranks.
    """
    dtype = sides[0].features.dtype
    classes = sorted(set().union(*(rows.class_sizes for rows in sides)))
    if not classes or max(-classes[0], classes[-1]) <= 2 / torch.finfo(dtype).eps:
        return [rows.labels.to(dtype) for rows in sides]
    ordered = torch.tensor(classes).to(sides[0].labels.device, non_blocking=True)
    return [torch.searchsorted(ordered, rows.labels).to(dtype) for rows in sides]


def _same_class(row_labels: torch.Tensor, column_labels: torch.Tensor) -> torch.Tensor:
    """Compare classes: 1 where they are equal and 0 elsewhere, of shape (T, P).

    Labels are floats, because writing the result as floats is ten times faster than converting a boolean mask.
    """
    same = row_labels.new_empty(len(row_labels), len(column_labels))
    return torch.eq(row_labels[:, None], column_labels[None], out=same)


def tile_rows(device: torch.device) -> int:
    """Return the number of anchors per tile for a device, from its figures: a resumed run then rounds alike.

    On a GPU, a tile of T x 2 T float32 stays in its L2 cache, and T is a power of two: 2,048 for the 40 to 72 MB of
    recent ones.
    """
    if device.type == "cpu":
        return CPU_TILE_ROWS
    cache = _cache_bytes(device) if device.type == "cuda" else 0
    return max(MIN_DEVICE_TILE_ROWS, _power_of_two(math.isqrt(cache // 8))) if cache else DEVICE_TILE_ROWS


def _room(features: torch.Tensor) -> int:
    """Return how many elements the tiles that are kept may have."""
    if features.device.type != "cpu":
        return DEVICE_KEPT_TILES * features.numel()
    return min(KEPT_TILES * features.numel(), MAX_KEPT_BYTES // features.element_size())


@functools.cache
def _cache_bytes(device: torch.device) -> int:
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)


def _power_of_two(limit: int) -> int:
    return 2 ** max(0, limit.bit_length() - 1)


def class_groups(sizes: list[int], target: int) -> list[slice]:
    """Merge consecutive classes until a group holds at least `target` rows."""
    groups, start = [], 0
    for stop in accumulate(sizes):
        if stop - start >= target:
            groups.append(slice(start, stop))
            start = stop
    if start < sum(sizes):
        groups.append(slice(start, sum(sizes)))
    return groups


def strips(start: int, stop: int, target: int) -> Iterator[slice]:
    """Divide a range into parts of about equal length near `target`, so that the last one is not a sliver."""
    parts = max(1, round((stop - start) / target))
    step = max(1, math.ceil((stop - start) / parts))
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _off_diagonal_blocks(groups: list[slice], num_rows: int, target: int) -> Iterator[Block]:
    for group in groups:
        for rows in strips(group.start, group.stop, target):
            for columns in strips(group.stop, num_rows, 2 * target):
                yield Block(rows, columns)


def _columns_of_classes(anchor_sizes: dict[int, int], rows: slice, contrast_sizes: dict[int, int]) -> slice:
    """Find the columns of the contrast set that may contain positives of some anchors, by first and last class."""
    anchor_classes, ends = list(anchor_sizes), list(accumulate(anchor_sizes.values()))
    contrast_classes, offsets = list(contrast_sizes), [0, *accumulate(contrast_sizes.values())]
    first = anchor_classes[bisect_right(ends, rows.start)]
    last = anchor_classes[bisect_right(ends, rows.stop - 1)]
    return slice(offsets[bisect_left(contrast_classes, first)], offsets[bisect_right(contrast_classes, last)])


def _quotient(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Divide, with 0 / 0 = 0: an anchor without negatives has S_i = 0 and no gradient."""
    return numerator / denominator.clamp_min(torch.finfo(denominator.dtype).tiny)


def _length(part: slice) -> int:
    return part.stop - part.start


def _area(block: Block) -> int:
    return _length(block.rows) * _length(block.columns)
