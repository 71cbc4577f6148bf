"""The contrastive term between pixels, the one place with its formula.

For anchors f_i and a contrast set g_j, both of unit length, with logits a_ij = f_i . g_j / temperature:

    l_i = mean over positives p of [ log( exp(a_ip) + sum over negatives n of exp(a_in) ) - a_ip ]
        = mean over p of softplus(L_i - a_ip),    L_i = log sum over n of exp(a_in)

Positives share the class of the anchor, negatives do not; other positives are not in the denominator. The loss is
the mean of l_i over all N anchors; one without positives contributes 0. The second form needs no large exponentials.

N = anchors, M = rows of the contrast set, D = channels.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

import torch
import torch.nn.functional as F

TILE_ROWS = 512


def info_nce_loss(
    anchors: torch.Tensor,
    anchor_labels: torch.Tensor,
    contrast: torch.Tensor | None = None,
    contrast_labels: torch.Tensor | None = None,
    *,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Supervised InfoNCE over sampled pixels, exact, with memory linear in their number.

    Args:
        anchors (`torch.Tensor` of shape `(N, D)`): Features, not normalised, rows in any order; N may be 0.
        anchor_labels (`torch.Tensor` of shape `(N,)`, int64): Class of every anchor.
        contrast (`torch.Tensor` of shape `(M, D)`, *optional*):
            Contrast set; `None` contrasts the anchors with each other, an anchor never with itself.
        contrast_labels (`torch.Tensor` of shape `(M,)`, *optional*): Its classes.
        temperature (`float`): Temperature, at least 0.01.

    Returns:
        `torch.Tensor`: scalar, float32 (float64 for float64 features), connected to the graph also where it is 0.

    Raises:
        ValueError: If shapes do not fit together or the temperature is not positive.

    Source: https://arxiv.org/abs/2203.13409, section 3.
    """
    _check_shapes(anchors, anchor_labels, contrast, contrast_labels, temperature)
    anchors, anchor_sizes = _sort_by_class(anchors, anchor_labels)
    if contrast is None:
        return sorted_info_nce_loss(anchors, anchor_sizes, temperature=temperature)
    contrast, contrast_sizes = _sort_by_class(contrast, contrast_labels)
    return sorted_info_nce_loss(anchors, anchor_sizes, contrast, contrast_sizes, temperature=temperature)


def sorted_info_nce_loss(
    anchors: torch.Tensor,
    anchor_sizes: dict[int, int],
    contrast: torch.Tensor | None = None,
    contrast_sizes: dict[int, int] | None = None,
    *,
    temperature: float = 0.1,
) -> torch.Tensor:
    """`info_nce_loss` for rows sorted by class whose class sizes are known on the host: no synchronisation.

    Args:
        anchors (`torch.Tensor` of shape `(N, D)`): Features, not normalised.
        anchor_sizes (`dict[int, int]`): Class -> number of rows, in the order of the rows.
        contrast (`torch.Tensor` of shape `(M, D)`, *optional*): Contrast set, likewise.
        contrast_sizes (`dict[int, int]`, *optional*): Its class sizes.
        temperature (`float`): Temperature.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        anchors = _unit_rows(anchors)
        if contrast is None:
            return _TiledInfoNce.apply(anchors, anchors.detach(), anchor_sizes, anchor_sizes, temperature, True)
        return _TiledInfoNce.apply(anchors, _unit_rows(contrast), anchor_sizes, contrast_sizes, temperature, False)


class _TiledInfoNce(torch.autograd.Function):
    """Tiles of anchor rows against the whole contrast set; the gradient is formed in the forward pass.

    One (TILE_ROWS, M) tile lives at a time and only the gradients (N, D) and (M, D) are kept. Rows are sorted by
    class, so positives of a tile lie in one range of columns and masks are never wider than it.
    """

    @staticmethod
    def forward(ctx, anchors, contrast, anchor_sizes, contrast_sizes, temperature, within_scale):
        wants_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        anchor_grad = torch.zeros_like(anchors) if wants_grad else None
        contrast_grad = torch.zeros_like(contrast) if wants_grad else None
        classes, offsets = _class_offsets(contrast_sizes)
        anchor_labels = _expand(anchor_sizes, anchors.device)
        contrast_labels = anchor_labels if within_scale else _expand(contrast_sizes, anchors.device)
        host_labels = [label for label, size in anchor_sizes.items() for _ in range(size)]
        loss = anchors.new_zeros(())
        for start in range(0, len(anchors) if len(contrast) else 0, TILE_ROWS):
            rows = slice(start, min(start + TILE_ROWS, len(anchors)))
            columns = slice(
                offsets[bisect_left(classes, host_labels[rows.start])],
                offsets[bisect_right(classes, host_labels[rows.stop - 1])],
            )
            positives = anchor_labels[rows, None] == contrast_labels[None, columns]  # (T, P)
            logits = (anchors[rows] @ contrast.T).div_(temperature)  # (T, M)
            tile_loss, logits_grad = _tile(logits, positives, columns, rows.start if within_scale else None)
            loss += tile_loss
            if wants_grad:
                anchor_grad[rows] += logits_grad @ contrast
                contrast_grad += logits_grad.T @ anchors[rows]
        scale = 1 / max(len(anchors), 1)
        if wants_grad:
            if within_scale:  # the contrast set are the anchors themselves
                anchor_grad += contrast_grad
                contrast_grad = None
            grads = (None if grad is None else grad.mul_(scale / temperature) for grad in (anchor_grad, contrast_grad))
            ctx.save_for_backward(*grads)  # freed after the backward, and seen by whoever watches saved tensors
        return loss * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_grad):
        anchor_grad, contrast_grad = (None if grad is None else grad * loss_grad for grad in ctx.saved_tensors)
        return anchor_grad, contrast_grad, None, None, None, None


def _tile(
    logits: torch.Tensor, positives: torch.Tensor, columns: slice, first_row: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of l_i over a tile of logits (T, M), overwritten, and its gradient with respect to them (T, M).

    Args:
        positives (`torch.Tensor` of shape `(T, P)`, bool): Same class, for the columns in `columns`.
        first_row (`int`, *optional*): Column of the first row itself where anchors and contrast set are the same.
    """
    positive_logits = logits[:, columns].clone()  # (T, P)
    logits[:, columns].masked_fill_(positives, float("-inf"))  # leaves the negatives
    if first_row is not None:
        own = torch.arange(len(logits), device=logits.device)
        positives[own, own + (first_row - columns.start)] = False
    shift = logits.amax(dim=1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)  # finite without negatives
    negatives = logits.sub_(shift).exp_()
    total = negatives.sum(dim=1, keepdim=True)
    gap = shift + total.log() - positive_logits  # L_i - a_ip; -inf without negatives
    weight = positives.to(logits.dtype)
    weight /= weight.sum(dim=1, keepdim=True).clamp_min(1)  # 1 / |P(i)| at the positives
    loss = -(F.logsigmoid(-gap) * weight).sum()
    pull = torch.sigmoid(gap) * weight  # (T, P)
    logits_grad = negatives.mul_(pull.sum(dim=1, keepdim=True) / total.clamp_min(torch.finfo(total.dtype).tiny))
    logits_grad[:, columns] -= pull
    return loss, logits_grad


def _unit_rows(features: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    return F.normalize(features.to(dtype), dim=1)


def _sort_by_class(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[int, int]]:
    order = labels.argsort(stable=True)
    classes, counts = labels.unique(return_counts=True)  # ascending
    return features[order], dict(zip(classes.tolist(), counts.tolist(), strict=True))


def _class_offsets(sizes: dict[int, int]) -> tuple[list[int], list[int]]:
    """Classes in row order, and the first row of each with the number of rows at the end."""
    return list(sizes), [0, *accumulate(sizes.values())]


def _expand(sizes: dict[int, int], device: torch.device) -> torch.Tensor:
    labels = torch.tensor(list(sizes), dtype=torch.int64)
    return labels.repeat_interleave(torch.tensor(list(sizes.values()), dtype=torch.int64)).to(
        device, non_blocking=True
    )


def _check_shapes(anchors, anchor_labels, contrast, contrast_labels, temperature) -> None:
    if temperature <= 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}.")
    if (contrast is None) != (contrast_labels is None):
        raise ValueError("`contrast` and `contrast_labels` go together: give both or neither.")
    sets = [("anchors", anchors, anchor_labels)]
    if contrast is not None:
        sets.append(("contrast", contrast, contrast_labels))
    for name, features, labels in sets:
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"`{name}` must be (N, D) with labels (N,), got {tuple(features.shape)} and {tuple(labels.shape)}."
            )
    if contrast is not None and contrast.shape[1] != anchors.shape[1]:
        raise ValueError(f"anchors have {anchors.shape[1]} channels, the contrast set {contrast.shape[1]}.")
