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
"""The contrastive terms over tiles: exact values and gradients, memory linear in the number of rows.

Rows have unit length and are sorted by class, and how many rows every class has is known without the device, so that
tiles can be laid out without waiting for it. Logits are kept in base 2, because `exp2` costs less than `exp`. The
gradient is formed together with the value: only it is kept for the backward pass, no tile is.

N = anchors, M = rows of the contrast set, D = channels; l_i, L_i, a_ij as in info_nce.py, S_i = exp(L_i).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F

CPU_TILE_ROWS = 256  # a tile of 256 x 512 float32 stays in a core's cache: the fastest of 128 to 512 rows
DEVICE_TILE_ROWS = 2048  # an accelerator waits for launches rather than for arithmetic: all usual N in one tile
KEPT_TILES = 4  # memory for tiles kept between the two passes, in multiples of the rows' own

# exp(1 / temperature) can be summed without subtracting a maximum in float32: all quotients below e^60
MAX_UNSHIFTED_LOGIT = 30.0

_LOG2_E = math.log2(math.e)
_FAR_BELOW = 2.0**100  # subtracted from a logit: exp2 of the rest is 0
_SOFTPLUS_IS_LINEAR_FROM = 50.0  # torch's 20 would cost digits in float64


class UnitRows(NamedTuple):
    """Features of unit length, rows sorted by class: one side of a term.

    Args:
        features (`torch.Tensor` of shape `(N, D)`, float32 or float64): Rows of length 1; N may be 0.
        labels (`torch.Tensor` of shape `(N,)`, int64): Class of every row.
        class_sizes (`dict[int, int]`): Rows of every class that is present, ascending, known without the device.
    """

    features: torch.Tensor
    labels: torch.Tensor
    class_sizes: dict[int, int]


class Block(NamedTuple):
    """A tile: anchor rows by columns of the contrast set."""

    rows: slice
    columns: slice


def within_scale(rows: UnitRows, temperature: float, wants_grad: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Contrast rows with each other; needs `temperature * MAX_UNSHIFTED_LOGIT >= 1`.

    Rows are cut into groups of whole classes. A tile between two groups holds negatives only, serves both of them by
    symmetry and needs no mask; positives lie on the diagonal. The first pass gives S, the second the gradient.

    Args:
        rows (`UnitRows`): N rows.
        temperature (`float`): Temperature.
        wants_grad (`bool`): Whether to form the gradient.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: mean of l_i, and its gradient (N, D) or `None`.
    """
    features = rows.features
    groups = class_groups(list(rows.class_sizes.values()), tile_rows(features.device))
    beside_diagonal = _BesideDiagonal(features, groups, temperature)
    negatives = features.new_zeros(len(features))  # S_i
    for (upper, lower), exponentials in beside_diagonal:
        negatives[upper] += exponentials.sum(1)
        negatives[lower] += exponentials.sum(0)

    grad = torch.zeros_like(features) if wants_grad else None
    loss, pushes = _diagonal(rows, groups, temperature, negatives, grad)
    if wants_grad:
        for (upper, lower), exponentials in beside_diagonal:
            exponentials *= pushes[upper, None] + pushes[None, lower]
            grad[upper].addmm_(exponentials, features[lower])
            grad[lower].addmm_(exponentials.T, features[upper])
        grad *= 1 / (max(len(features), 1) * temperature)
    return loss / max(len(features), 1), grad


def _diagonal(
    rows: UnitRows,
    groups: list[slice],
    temperature: float,
    negatives: torch.Tensor,
    grad: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the negatives inside groups to S, then form all positive terms; adds to `grad`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: sum of l_i, and its derivatives (N,) with respect to S.
    """
    features, labels = rows.features, rows.labels.to(rows.features.dtype)
    pushes = torch.empty_like(negatives)
    loss = features.new_zeros(())
    for group in groups:
        for strip in strips(group.start, group.stop, tile_rows(features.device)):
            logits = features[strip] @ features[group].T * (_LOG2_E / temperature)  # (T, G)
            positives = _same_class(labels[strip], labels[group])
            exponentials = logits.exp2() * (1 - positives)
            negatives[strip] += exponentials.sum(1)
            positives.diagonal(strip.start - group.start).zero_()
            strip_loss, pulls = _positive_terms(logits, positives, negatives[strip, None].log2())
            loss += strip_loss
            pushes[strip] = _quotient(pulls.sum(1), negatives[strip])
            if grad is None:
                continue
            logits_grad = exponentials.mul_(pushes[strip, None]).sub_(pulls)
            if strip == group:  # both sides of the square at once
                grad[group].addmm_(logits_grad + logits_grad.T, features[group])
            else:
                grad[strip].addmm_(logits_grad, features[group])
                grad[group].addmm_(logits_grad.T, features[strip])
    return loss, pushes


class _BesideDiagonal:
    """Iterates over the exponentials of all logits above the diagonal groups, tile by tile, any number of times.

    As many tiles as `KEPT_TILES` allows are kept for the next iteration, the others share one buffer: a tile may be
    overwritten by whoever iterates last.
    """

    def __init__(self, features: torch.Tensor, groups: list[slice], temperature: float):
        self.features = features
        self.scaled = features * (_LOG2_E / temperature)
        self.blocks = list(_blocks_beside_diagonal(groups, len(features), tile_rows(features.device)))
        self.kept: list[torch.Tensor] = []
        self.room = KEPT_TILES * features.numel()
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
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Contrast rows with another set, or with one that holds them; stable at any temperature.

    One strip of anchors meets the whole contrast set at a time. Its positives lie in one range of columns.

    Args:
        anchors (`UnitRows`): N rows.
        contrast (`UnitRows`): M rows.
        own_columns (`torch.Tensor` of shape `(N,)`, int64, *optional*):
            Where the anchors themselves lie in the contrast set; they are no positives of their own.
        temperature (`float`): Temperature.
        wants_grad (`tuple[bool, bool]`): Whether to form the gradients of anchors and contrast set.

    Returns:
        `tuple[torch.Tensor, ...]`: mean of l_i, and its gradients (N, D) and (M, D) or `None`.
    """
    loss = anchors.features.new_zeros(())
    anchor_labels, contrast_labels = anchors.labels.to(loss.dtype), contrast.labels.to(loss.dtype)
    anchor_grad = torch.zeros_like(anchors.features) if wants_grad[0] else None
    contrast_grad = torch.zeros_like(contrast.features) if wants_grad[1] else None
    num_rows, num_columns = len(anchors.features), len(contrast.features)
    all_strips = list(strips(0, num_rows, tile_rows(loss.device))) if num_columns else []
    buffer = loss.new_empty(max(map(_length, all_strips), default=0) * num_columns)
    for strip in all_strips:
        logits = buffer[: _length(strip) * num_columns].view(-1, num_columns)  # (T, M)
        torch.mm(anchors.features[strip] * (_LOG2_E / temperature), contrast.features.T, out=logits)
        columns = _columns_of_classes(anchors.class_sizes, strip, contrast.class_sizes)
        positives = _same_class(anchor_labels[strip], contrast_labels[columns])
        own = None if own_columns is None else own_columns[strip, None] - columns.start
        strip_loss, logits_grad = _strip(logits, positives, columns, own)
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
    logits: torch.Tensor, positives: torch.Tensor, columns: slice, own: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of l_i over a strip of logits (T, M), overwritten by its gradient with respect to them."""
    positive_logits = logits[:, columns].clone()
    logits[:, columns].sub_(positives, alpha=_FAR_BELOW)  # leaves the negatives
    shift = logits.amax(dim=1, keepdim=True).clamp_min_(-_FAR_BELOW / 2)  # so that nothing is left without negatives
    exponentials = logits.sub_(shift).exp2_()
    negatives = exponentials.sum(1)
    if own is not None:
        positives.scatter_(1, own, 0.0)
    loss, pulls = _positive_terms(positive_logits, positives, negatives[:, None].log2() + shift)
    logits_grad = exponentials.mul_(_quotient(pulls.sum(1), negatives)[:, None])
    logits_grad[:, columns] -= pulls
    return loss, logits_grad


def _positive_terms(
    logits: torch.Tensor, positives: torch.Tensor, log2_negatives: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of l_i over a strip, and d l_i / d L_i split over the positives: sigmoid(L_i - a_ip) / |P(i)|.

    Args:
        logits (`torch.Tensor` of shape `(T, P)`): In base 2.
        positives (`torch.Tensor` of shape `(T, P)`): 1 at positives, 0 elsewhere; overwritten.
        log2_negatives (`torch.Tensor` of shape `(T, 1)`): L_i in base 2; -inf without negatives.
    """
    positives /= positives.sum(dim=1, keepdim=True).clamp_min(1)
    gaps = (log2_negatives - logits).mul_(1 / _LOG2_E)
    loss = _softplus(gaps).mul_(positives).sum()
    return loss, gaps.sigmoid_().mul_(positives)


def _softplus(gaps: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(gap)), to full precision where it is tiny."""
    if gaps.device.type != "cpu":
        return F.softplus(gaps, threshold=_SOFTPLUS_IS_LINEAR_FROM)
    # without log1p, at times ten times slower than log: what rounding 1 + u loses is added to first order
    u = gaps.abs().mul_(-_LOG2_E).exp2_()
    rounded = u + 1
    u.sub_(rounded - 1).div_(rounded)
    return rounded.log_().add_(u).add_(gaps.clamp_min(0))


def _same_class(row_labels: torch.Tensor, column_labels: torch.Tensor) -> torch.Tensor:
    """1 where the class is the same, else 0, (T, P); labels in floats: ten times faster than converting a mask."""
    same = row_labels.new_empty(len(row_labels), len(column_labels))
    return torch.eq(row_labels[:, None], column_labels[None], out=same)


def tile_rows(device: torch.device) -> int:
    """Rows of a tile that suit the device."""
    return CPU_TILE_ROWS if device.type == "cpu" else DEVICE_TILE_ROWS


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
    """Cut a range into equal parts of about `target`: no sliver is left at the end."""
    parts = max(1, round((stop - start) / target))
    step = max(1, math.ceil((stop - start) / parts))
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _blocks_beside_diagonal(groups: list[slice], num_rows: int, target: int) -> Iterator[Block]:
    for group in groups:
        for rows in strips(group.start, group.stop, target):
            for columns in strips(group.stop, num_rows, 2 * target):
                yield Block(rows, columns)


def _columns_of_classes(anchor_sizes: dict[int, int], rows: slice, contrast_sizes: dict[int, int]) -> slice:
    """Columns of the contrast set with the classes from that of the first to that of the last of some rows."""
    anchor_classes, ends = list(anchor_sizes), list(accumulate(anchor_sizes.values()))
    contrast_classes, offsets = list(contrast_sizes), [0, *accumulate(contrast_sizes.values())]
    first = anchor_classes[bisect_right(ends, rows.start)]
    last = anchor_classes[bisect_right(ends, rows.stop - 1)]
    return slice(offsets[bisect_left(contrast_classes, first)], offsets[bisect_right(contrast_classes, last)])


def _quotient(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """0 / 0 is 0."""
    return numerator / denominator.clamp_min(torch.finfo(denominator.dtype).tiny)


def _length(part: slice) -> int:
    return part.stop - part.start


def _area(block: Block) -> int:
    return _length(block.rows) * _length(block.columns)
