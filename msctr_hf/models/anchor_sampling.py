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
"""Sampling of pixels from stage maps, balanced over classes.

B = images, K = classes, C = channels, N = sampled anchors; a *pair* is one class of one image. Pixels are drawn from
*groups*: the pixels of a pair or, where misclassified pixels are told apart, 2 * pair for those that are classified
right and 2 * pair + 1 for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from numbers import Integral
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .transfers import repeat_on_host, to_device

_RANDOM_BITS = 31
_USUAL_STRIDES = (1, 2, 4, 8, 14, 16, 32, 64)


class Anchors(NamedTuple):
    """Sampled pixels of one stage, with rows sorted by label.

    Args:
        features (`torch.Tensor` of shape `(N, C)`): Features, not normalized; N may be 0.
        labels (`torch.Tensor` of shape `(N,)`, int64): Class of every row.
        class_sizes (`dict[int, int]`): Number of rows of every class that is present, classes ascending; on the host.
    """

    features: torch.Tensor
    labels: torch.Tensor
    class_sizes: dict[int, int]


class SamplingPlan(NamedTuple):
    """Number of pixels to draw from every group of a qualifying pair.

    Args:
        groups (`list[int]`): Groups in the order of (class, image), so that rows sort by class.
        labels (`list[int]`): Class of each group.
        available (`list[int]`): Pixels that each group has.
        draws (`list[int]`): Pixels to draw from each group.
        misclassified (`int`): How many draws are from misclassified pixels, where these are told apart.
        largest (`int`): Draws from the pair that has most of them.
    """

    groups: list[int]
    labels: list[int]
    available: list[int]
    draws: list[int]
    misclassified: int = 0
    largest: int = 0


def sample_anchors(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_labels: int,
    *,
    sampling: str = "rarest",
    min_anchors_per_class: int = 5,
    max_anchors_per_class: int = 2500,
    max_anchors: int = 10_000,
    misclassified: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Anchors:
    """Draw pixels of every (image, class) pair that has enough of them, uniformly and without replacement.

    Balanced draws keep frequent classes (road, sky) from dominating the contrastive terms.

    Args:
        features (`torch.Tensor` of shape `(B, C, h, w)`): Feature map of one stage.
        labels (`torch.Tensor` of shape `(B, H, W)`, int64):
            Classes at any size, resized here to (h, w); values outside `[0, num_labels)` are never sampled.
        num_labels (`int`): Number of classes K.
        sampling (`str`): `"rarest"`, the published rule: as many pixels of every pair as the rarest qualifying one
            has; `"budget"`: up to an equal share of `max_anchors` from every pair.
        min_anchors_per_class (`int`): Number of pixels that a pair needs to qualify.
        max_anchors_per_class (`int`): Largest number of pixels of one pair.
        max_anchors (`int`): Largest number of pixels of the batch.
        misclassified (`torch.Tensor` of shape `(B, h, w)`, bool, *optional*): Pixels of which half of the draws of
            every pair are taken, as far as there are enough of them and of the others.
        generator (`torch.Generator`, *optional*):
            Source of randomness, on the device of `features`. One seed draws different pixels on different kinds of
            devices.

    Returns:
        `Anchors`: `N = 0` if no pair qualifies; `features` is connected to the graph even then.

    Raises:
        ValueError: If shapes do not match, `sampling` is unknown or a limit is not positive.
        TypeError: If `features` is not a floating-point tensor, or labels are not integers.

    Source: https://arxiv.org/abs/2203.13409, section 3. Unlike in the released code, the last class is sampled too,
    and a stage without a qualifying pair yields no anchors instead of an exception.
    """
    check_limits(sampling, min_anchors_per_class, max_anchors_per_class, max_anchors)
    check_map("features", features, labels)
    check_channel_order("features", [features], labels)
    groups = pair_of_every_pixel(labels.long(), features, num_labels)
    per_image = num_labels
    if misclassified is not None:
        groups, per_image = tell_apart(groups, misclassified, len(features) * num_labels), 2 * num_labels
    plan = plan_draws(
        count_pairs(groups, len(features), per_image).tolist(),
        sampling=sampling,
        min_anchors_per_class=min_anchors_per_class,
        max_anchors_per_class=max_anchors_per_class,
        max_anchors=max_anchors,
        misclassified_apart=misclassified is not None,
    )
    return draw_anchors(features, groups, len(features) * per_image, plan, generator)


def check_is_tensor(name: str, labels: torch.Tensor) -> None:
    """Raise unless labels are a tensor."""
    if not isinstance(labels, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor of integers, the classes, got {type(labels).__name__}.")


def check_integer(name: str, number: int) -> None:
    """Raise unless a setting is an integer."""
    if not isinstance(number, Integral):
        raise TypeError(f"`{name}` must be an integer, got {number!r}.")


def check_classes(name: str, labels: torch.Tensor) -> None:
    """Raise unless labels are integers or booleans."""
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(
            f"`{name}` must be integers, the classes, got {labels.dtype}: convert them by `{name}.long()`."
        )


def check_map(name: str, features: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise unless features are a map (B, C, h, w), and labels integers (B, H, W) of the same images."""
    if not isinstance(features, torch.Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, torch.Tensor) else type(features).__name__
        raise TypeError(f"`{name}` must be a floating-point tensor (B, C, h, w), got {kind}.")
    check_is_tensor("labels", labels)
    shape, size = tuple(features.shape), tuple(labels.shape)
    if features.ndim != 4:
        raise ValueError(
            f"`{name}` must be a map (B, C, h, w), got {shape}: patch tokens (B, N, C) become one by "
            "`tokens[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))`."
        )
    if labels.ndim != 3 or size[0] != shape[0]:
        hint = ""
        if labels.ndim == 4 and size[0] == shape[0]:
            hint = ": use `labels.squeeze(1)`" if size[1] == 1 else ": use `labels.argmax(1)` if they are one-hot"
        raise ValueError(f"`labels` must be (B, H, W) with the B of `{name}` {shape}, got {size}{hint}.")
    check_classes("labels", labels)
    if labels.device != features.device:
        raise ValueError(f"`labels` are on {labels.device}, but `{name}` on {features.device}: move them there.")


def check_channel_order(name: str, maps: Sequence[torch.Tensor], labels: torch.Tensor) -> None:
    """Raise if maps look like (B, h, w, C): so read, all have usual strides; else, not all have the right aspect."""
    height, width = labels.shape[1:]

    def is_strided(shape: torch.Size) -> bool:
        return any(
            height // stride <= shape[1] <= -(-height // stride) and width // stride <= shape[2] <= -(-width // stride)
            for stride in _USUAL_STRIDES
        )

    def has_aspect(shape: torch.Size) -> bool:  # of the labels, with sides that are rounded by at most a pixel
        return abs(shape[2] * width - shape[3] * height) <= height + width

    if all(is_strided(each.shape) for each in maps) and not all(has_aspect(each.shape) for each in maps):
        raise ValueError(
            f"`{name}` must be (B, C, h, w), got {tuple(maps[0].shape)}, which for labels {tuple(labels.shape)} looks "
            f"like (B, h, w, C): use `.permute(0, 3, 1, 2)`."
        )


def check_limits(sampling: str, min_anchors_per_class: int, max_anchors_per_class: int, max_anchors: int) -> None:
    """Raise unless the rule of sampling is known and the numbers of anchors are positive."""
    if sampling not in ("rarest", "budget"):
        raise ValueError(f"`sampling` must be 'rarest' or 'budget', got {sampling!r}.")
    limits = {
        "min_anchors_per_class": min_anchors_per_class,
        "max_anchors_per_class": max_anchors_per_class,
        "max_anchors": max_anchors,
    }
    for name, limit in limits.items():
        check_integer(name, limit)
        if limit < 1:
            raise ValueError(f"`{name}` must be at least 1, got {limit}.")


def resize_labels(labels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Resize labels to the size of `features` (B, C, h, w) by nearest neighbors: (B, H, W) -> (B, h, w)."""
    if labels.shape[-2:] == features.shape[-2:]:
        return labels
    rows, columns = (
        nearest_positions(source, target, labels.device)
        for source, target in zip(labels.shape[-2:], features.shape[-2:], strict=True)
    )
    return labels[:, rows[:, None], columns]


def nearest_positions(source: int, target: int, device: torch.device) -> torch.Tensor:
    """Return the positions that `F.interpolate` selects when it resizes a side of length `source` to `target`."""
    positions = torch.arange(source, dtype=torch.float32, device=device)  # exact up to 2^24
    return F.interpolate(positions[None, None], size=target, mode="nearest")[0, 0].long()


def pair_of_every_pixel(
    labels: torch.Tensor, features: torch.Tensor, num_labels: int, ignore_index: int = -1
) -> torch.Tensor:
    """Compute the index of the pair of every pixel, (B * h * w,): image * K + class, or B * K if never sampled."""
    stage_labels = resize_labels(labels, features)
    first = torch.arange(len(features), device=labels.device).view(-1, 1, 1) * num_labels
    sampled = (stage_labels >= 0) & (stage_labels < num_labels) & (stage_labels != ignore_index)
    return torch.where(sampled, first + stage_labels, len(features) * num_labels).flatten()


def tell_apart(pairs: torch.Tensor, misclassified: torch.Tensor, num_pairs: int) -> torch.Tensor:
    """Compute the group of every pixel, (B * h * w,), from its pair; 2 * B * K if it is never sampled."""
    return 2 * pairs + (misclassified.flatten() & (pairs < num_pairs))


def count_pairs(pairs: torch.Tensor, num_images: int, num_labels: int) -> torch.Tensor:
    """Count the pixels of every (image, class) pair, (B, K) int64, from the result of `pair_of_every_pixel`.

    With the result of `tell_apart` and 2 * K, the pixels of every group are counted: (B, 2 * K).
    """
    counts = torch.zeros(num_images * num_labels + 1, dtype=torch.int64, device=pairs.device)
    counts.scatter_add_(0, pairs, torch.ones_like(pairs))
    return counts[:-1].view(num_images, num_labels)


def plan_draws(
    counts: Sequence[Sequence[int]],
    *,
    sampling: str,
    min_anchors_per_class: int,
    max_anchors_per_class: int,
    max_anchors: int,
    misclassified_apart: bool = False,
) -> SamplingPlan:
    """Decide on the host how many pixels to draw from each group.

    Args:
        counts (`Sequence[Sequence[int]]`): Pixels of every pair, by image and class. With `misclassified_apart`, those
            of every group: `counts[image][2 * label]` are classified right, `counts[image][2 * label + 1]` are not.
        sampling, min_anchors_per_class, max_anchors_per_class, max_anchors: As in `sample_anchors`.
        misclassified_apart (`bool`): Whether misclassified pixels are told apart, which does not change how many
            pixels are drawn from a pair.
    """
    per_pair = counts
    if misclassified_apart:
        per_pair = [[sum(both) for both in zip(row[::2], row[1::2], strict=True)] for row in counts]
    qualifying = qualifying_pairs(per_pair, min_anchors_per_class)
    available = [count for _, _, count in qualifying]
    share = min(max_anchors // max(len(qualifying), 1), max_anchors_per_class)
    if share == 0 or not qualifying:
        return plan_of_pairs([], 0, 0)
    if sampling == "rarest":
        share = min(share, min(available))
    plan = plan_of_pairs(qualifying, share, len(per_pair[0]))
    if not misclassified_apart:
        return plan
    return _divide(plan, [counts[image][2 * label + 1] for label, image, _ in qualifying])


def qualifying_pairs(counts: Sequence[Sequence[int]], min_anchors_per_class: int) -> list[tuple[int, int, int]]:
    """List (class, image, pixels) of every pair that has enough pixels, sorted."""
    return sorted(
        (label, image, count)
        for image, per_class in enumerate(counts)
        for label, count in enumerate(per_class)
        if count >= min_anchors_per_class
    )


def plan_of_pairs(pairs: Sequence[tuple[int, int, int]], share: int, num_labels: int) -> SamplingPlan:
    """Plan to draw `share` pixels, or all if there are fewer, from each of the sorted pairs (class, image, pixels)."""
    draws = [min(share, count) for _, _, count in pairs]
    return SamplingPlan(
        groups=[image * num_labels + label for label, image, _ in pairs],
        labels=[label for label, _, _ in pairs],
        available=[count for _, _, count in pairs],
        draws=draws,
        largest=max(draws, default=0),
    )


def _divide(plan: SamplingPlan, misclassified: Sequence[int]) -> SamplingPlan:
    """Draw half of the pixels of every pair from its misclassified ones, as far as there are enough of either kind."""
    parts, hard_draws = [], 0
    for pair, label, available, draws, wrong in zip(*plan[:4], misclassified, strict=True):
        hard = min(wrong, max(draws // 2, draws - (available - wrong)))
        parts += [(2 * pair, label, available - wrong, draws - hard), (2 * pair + 1, label, wrong, hard)]
        hard_draws += hard
    groups, labels, counts, drawn = map(list, zip(*parts, strict=True))
    return SamplingPlan(groups, labels, counts, drawn, hard_draws, plan.largest)


def draw_anchors(
    features: torch.Tensor,
    groups: torch.Tensor,
    num_groups: int,
    plan: SamplingPlan,
    generator: torch.Generator | None = None,
) -> Anchors:
    """Draw the pixels of a plan from `groups` (B * h * w,), without waiting for the device.

    Every pixel gets the key (position of its group in the plan, random bits). One sort then brings the pixels of a
    group together in random order, and the first of them are its sample: uniform, and without replacement.
    """
    device = features.device
    ranks = torch.full((num_groups + 1,), len(plan.groups), dtype=torch.int64)
    ranks[plan.groups] = torch.arange(len(plan.groups))
    pixel_ranks = to_device(ranks, device)[groups]
    random_bits = torch.randint(1 << _RANDOM_BITS, pixel_ranks.shape, generator=generator, device=device)
    order = ((pixel_ranks << _RANDOM_BITS) | random_bits).argsort()

    positions, labels = to_device(_positions_and_labels(plan), device)
    class_sizes: dict[int, int] = {}
    for label, drawn in zip(plan.labels, plan.draws, strict=True):
        class_sizes[label] = class_sizes.get(label, 0) + drawn
    return Anchors(_GatherPixels.apply(features, order[positions]), labels, class_sizes)


def _positions_and_labels(plan: SamplingPlan) -> torch.Tensor:
    """Return, as (2, N) on the host, the positions of the sample among all pixels sorted by group, and its labels."""
    left_out = [count - drawn for count, drawn in zip(plan.available, plan.draws, strict=True)]
    skipped = list(accumulate(left_out, initial=0))[:-1]  # pixels of earlier groups that are left out
    positions = torch.arange(sum(plan.draws)) + repeat_on_host(skipped, plan.draws)
    return torch.stack([positions, repeat_on_host(plan.labels, plan.draws)])


class _GatherPixels(torch.autograd.Function):
    """Differentiable gather of rows of a map (B, C, h, w) at flat pixel indices (N,) over (B, h, w): (N, C).

    Indices are distinct, so the backward pass writes every row once: no atomic additions, hence deterministic on GPUs.
    """

    @staticmethod
    def forward(features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        images, pixels = _images_and_pixels(features.shape, pixels)
        return features.flatten(2)[images, :, pixels]

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        features, pixels = inputs
        ctx.shape = features.shape
        ctx.memory_format = (
            torch.channels_last
            if features.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
        )
        ctx.save_for_backward(pixels)

    @staticmethod
    def backward(ctx, rows_grad: torch.Tensor):
        return _ScatterPixels.apply(rows_grad, *ctx.saved_tensors, ctx.shape, ctx.memory_format), None


class _ScatterPixels(torch.autograd.Function):
    """Derivative of `_GatherPixels`: a map of zeros with the rows (N, C) at the pixels, itself differentiable."""

    @staticmethod
    def forward(
        rows: torch.Tensor, pixels: torch.Tensor, shape: torch.Size, memory_format: torch.memory_format
    ) -> torch.Tensor:
        images, pixels = _images_and_pixels(shape, pixels)
        scattered = torch.empty(  # torch.zeros has no `memory_format`
            shape, dtype=rows.dtype, device=rows.device, memory_format=memory_format
        ).zero_()
        scattered.flatten(2)[images, :, pixels] = rows  # `flatten` returns a view in either memory format
        return scattered

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, map_grad: torch.Tensor):
        return _GatherPixels.apply(map_grad, *ctx.saved_tensors), None, None, None


def _images_and_pixels(shape: torch.Size, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split flat indices over (B, h, w) into those of images and those of the pixels of an image."""
    area = shape[2] * shape[3]
    return pixels // area, pixels % area
