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
"""Losses of the class scores: cross entropy of all, of the hard or of the confident pixels, and soft Dice.

All are means over the batch of one process, except that confident pixels are counted over all processes, and 0 with a
gradient path if all pixels of the batch are ignored.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .process_group import num_processes, sum_over_processes

SMALLEST_SHARE = 16  # at least a sixteenth of the valid pixels is hard


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = 255,
    class_weights: list[float] | None = None,
) -> torch.Tensor:
    """Compute the mean cross entropy over valid pixels; 0, with a gradient path, if all pixels are ignored.

    The sum of the weighted cross entropies is divided by the number of valid pixels, not by the sum of their weights.

    Args:
        logits (`torch.Tensor` of shape `(B, num_labels, H, W)`): Class scores at the size of the labels.
        labels (`torch.Tensor` of shape `(B, H, W)`, int64): Classes or `ignore_index`.
        ignore_index (`int`): Label that is ignored.
        class_weights (`list[float]`, *optional*): Weight of every class; 1 by default.
    """
    weight = None if class_weights is None else _on_device_of(logits, class_weights)
    total = F.cross_entropy(logits, labels, weight=weight, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp_min(1)


def hard_pixel_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    threshold: float,
    *,
    ignore_index: int = 255,
    class_weights: list[float] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the mean cross entropy over hard pixels; the others have no gradient (OHEM).

    A valid pixel is hard if the probability of its label is below the threshold, or among the smallest sixteenth of
    the probabilities of all valid pixels, rounded up. Weights of classes do not change which pixels are hard; the sum
    of the weighted cross entropies is divided by the number of hard pixels.

    Args:
        logits, labels, ignore_index, class_weights: As in `cross_entropy`.
        threshold (`float`): Probability in (0, 1].

    Returns:
        `tuple`: the loss, and the share of the valid pixels that are hard, NaN if all pixels are ignored.

    Source: Shrivastava et al., CVPR 2016, which selects a fixed number of regions; a threshold with a smallest number
    is the usual form for pixels.
    """
    valid = labels != ignore_index
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    with torch.no_grad():
        count = valid.sum()
        # The number of valid pixels stays on the device: the largest possible number of losses is sorted there.
        largest = losses.where(valid, -math.inf).flatten().topk(-(-losses.numel() // SMALLEST_SHARE)).values
        limit = largest.gather(0, (-(-count // SMALLEST_SHARE) - 1).clamp_min(0)[None])  # an index would wait for it
        # written so that NaN is hard, and is noticed
        hard = valid & ~((losses <= -math.log(threshold)) & (losses < limit))
    if class_weights is not None:
        losses = losses * _on_device_of(logits, class_weights)[labels.where(valid, 0)]
    return losses.where(hard, 0).sum() / hard.sum().clamp_min(1), hard.sum() / count


def confident_pixel_cross_entropy(
    logits: torch.Tensor,
    pseudo_labels: torch.Tensor,
    confidence: torch.Tensor,
    threshold: float | torch.Tensor,
    *,
    ignore_index: int = 255,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the cross entropy of confident pixels over the number of all pixels but padding.

    Few confident pixels have a small loss, since the sum is not divided by their number. With several processes, the
    pixels but padding are counted in all of them: the loss of a process is its sum divided by their mean, so that the
    mean over the processes, whose gradient data parallel training takes, is the sum over all processes divided by the
    number of all pixels. All processes must then call this function.

    Args:
        logits (`torch.Tensor` of shape `(U, num_labels, H, W)`): Class scores at the size of the pseudo-labels.
        pseudo_labels (`torch.Tensor` of shape `(U, H, W)`, int64): Classes, or `ignore_index` where there is padding.
        confidence (`torch.Tensor` of shape `(U, H, W)`): Probability of the pseudo-label according to its teacher.
        threshold (`float`, or `torch.Tensor` of shape `(U, H, W)`): Smallest confidence of a confident pixel.
        ignore_index (`int`): Label of padding.

    Returns:
        `tuple`: the loss, and the share of the pixels of this process, padding left out, that are confident; NaN if
        there is nothing but padding.

    Source: https://arxiv.org/abs/2001.07685, equation 4, for the pixels of a batch; without padding among them as in
    the authors' code of https://arxiv.org/abs/2208.09910.
    """
    valid = pseudo_labels != ignore_index
    confident = valid & (confidence >= threshold)
    total = F.cross_entropy(
        logits, pseudo_labels.where(confident, ignore_index), ignore_index=ignore_index, reduction="sum"
    )
    mean_count = sum_over_processes(valid.sum()).clamp_min(1) / num_processes()
    return total / mean_count, confident.sum() / valid.sum()


def dice_loss(logits: torch.Tensor, labels: torch.Tensor, *, ignore_index: int = 255) -> torch.Tensor:
    """Compute 1 minus the mean soft Dice score of the classes that occur in the batch.

    With the probabilities p of a class and its labels g (0 or 1), its score is 2 sum(p g) / (sum(p) + sum(g)), with
    sums over all valid pixels of the batch. Classes without a labeled pixel are left out of the mean, so nothing has
    to be added to the denominator of the others.

    Args:
        logits, labels, ignore_index: As in `cross_entropy`.

    Source: Milletari et al., 3DV 2016 (V-Net), which squares the terms of the denominator; without squares and for
    several classes as in Sudre et al., DLMIA 2017.
    """
    valid = labels != ignore_index
    classes = torch.arange(logits.shape[1], device=logits.device)
    is_label = (labels[:, None] == classes[:, None, None]) & valid[:, None]
    probabilities = logits.softmax(dim=1)
    common = probabilities.where(is_label, 0).sum(dim=(0, 2, 3))
    predicted = probabilities.where(valid[:, None], 0).sum(dim=(0, 2, 3))
    labeled = is_label.sum(dim=(0, 2, 3))
    losses = 1 - 2 * common / (predicted + labeled).clamp_min(1)
    occurs = labeled > 0
    return (losses * occurs).sum() / occurs.sum().clamp_min(1)


def _on_device_of(logits: torch.Tensor, class_weights: list[float]) -> torch.Tensor:
    return torch.tensor(class_weights, dtype=logits.dtype).to(logits.device, non_blocking=True)
