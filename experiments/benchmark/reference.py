"""Compute the contrastive objective in the straightforward way, for comparison with this package.

The values are the same, at a higher cost: autograd keeps full matrices of masks, exponentials and logarithms, and the
sampler loops over pairs of image and class and indexes the whole map each time, so that its backward pass writes the
gradient of the whole map once per pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from msctr_hf.models.anchor_sampling import resize_labels
from msctr_hf.models.contrastive_loss import ContrastiveResult, MultiScaleContrastiveLoss
from msctr_hf.models.projection_head import ProjectionHead


def dense_info_nce_loss(
    anchors: torch.Tensor,
    anchor_labels: torch.Tensor,
    contrast: torch.Tensor | None = None,
    contrast_labels: torch.Tensor | None = None,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Compute the value of `info_nce_loss` with full (N, M) matrices."""
    within = contrast is None
    rows = F.normalize(anchors, dim=1)
    columns = rows if within else F.normalize(contrast, dim=1)
    same_class = anchor_labels[:, None] == (anchor_labels if within else contrast_labels)[None]
    negatives = (~same_class).to(rows.dtype)
    positives = same_class.to(rows.dtype)
    if within:
        positives = positives - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    logits = rows @ columns.T / temperature
    exponentials = logits.exp()
    of_negatives = (exponentials * negatives).sum(dim=1, keepdim=True)
    log_probabilities = logits - (exponentials + of_negatives).log()
    return -((positives * log_probabilities).sum(dim=1) / positives.sum(dim=1).clamp_min(1)).mean()


def sample_pair_by_pair(
    features: torch.Tensor, labels: torch.Tensor, num_labels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample like `sample_anchors` with its defaults, in a loop over pairs: rows (N, C) and labels (N,), N >= 0."""
    stage_labels = resize_labels(labels, features).flatten(1)
    pairs = []
    for image in range(len(features)):
        for label in range(num_labels):
            pixels = (stage_labels[image] == label).nonzero().flatten()
            if len(pixels) >= 5:
                pairs.append((label, image, pixels))
    if not pairs:
        return features.flatten(2)[:0, :, 0], stage_labels[:0, 0]
    views = min(2500, 10_000 // len(pairs), *(len(pixels) for _, _, pixels in pairs))
    rows, row_labels = [], []
    for label, image, pixels in sorted(pairs, key=lambda pair: pair[:2]):
        drawn = pixels[torch.randperm(len(pixels), device=pixels.device)[:views]]
        rows.append(features.flatten(2)[image][:, drawn].T)
        row_labels.append(drawn.new_full((views,), label))
    return torch.cat(rows), torch.cat(row_labels)


def dense_multi_scale_loss(
    features: Sequence[torch.Tensor],
    labels: torch.Tensor,
    num_labels: int,
    scale_weights: Sequence[float],
    pairs: Sequence[Sequence[int]],
) -> torch.Tensor:
    """Compute the value of `MultiScaleContrastiveLoss` with pair weights of 1, without the terms of empty stages."""
    anchors = [sample_pair_by_pair(stage, labels, num_labels) for stage in features]
    connected = [0.0 * rows.sum() for rows, _ in anchors]
    within = [
        weight * dense_info_nce_loss(*stage)
        for weight, stage in zip(scale_weights, anchors, strict=True)
        if len(stage[1])
    ]
    across = [
        dense_info_nce_loss(*anchors[fine], *anchors[coarse])
        for fine, coarse in pairs
        if len(anchors[fine][1]) and len(anchors[coarse][1])
    ]
    return torch.stack([*connected, *within, *across]).sum()


class StraightforwardContrast(nn.Module):
    """Stand-in for the `contrastive_loss` of a network that projects whole maps and calls `dense_multi_scale_loss`."""

    def __init__(self, objective: MultiScaleContrastiveLoss, projection_head: ProjectionHead):
        super().__init__()
        self.objective = objective
        self.projection_head = projection_head

    def contrast(
        self,
        hidden: Sequence[torch.Tensor],
        labels: torch.Tensor,
        project: object,
        logits: torch.Tensor,
        pseudo: None = None,
    ) -> ContrastiveResult:
        """Compute the loss of `MultiScaleContrastiveLoss.contrast` for labeled images, without terms and facts."""
        objective = self.objective
        maps = [stage.float() for stage in self.projection_head.project(hidden)]  # projected under autocast
        with torch.autocast(labels.device.type, enabled=False):
            loss = dense_multi_scale_loss(maps, labels, objective.num_labels, objective.scale_weights, objective.pairs)
        return ContrastiveResult(loss, {}, {}, {})
