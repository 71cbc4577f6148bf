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
"""Contrastive term between pixels: its formula, and the functions that compute it.

For anchors f_i and a contrast set g_j, both of unit length, with logits a_ij = f_i . g_j / temperature:

    l_i = mean over positives p of [ log( exp(a_ip) + sum over negatives n of exp(a_in) ) - a_ip ]
        = mean over p of softplus(L_i - a_ip),    L_i = log sum over n of exp(a_in)

Positives have the class of the anchor, negatives do not; other positives are not in the denominator. The loss is the
mean of l_i over all N anchors; an anchor without positives contributes 0. The second form does not overflow.

The paper pulls every positive to the anchor. With `positives="any"` it is enough that some are near, so that a class
may stay several clusters:

    l_i = softplus(L_i - log P_i),    P_i = mean over p of exp(a_ip)

An anchor without positives or without negatives contributes 0. With one positive the two are equal.

N = anchors, M = rows of the contrast set, D = channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch

from .anchor_sampling import check_classes, check_is_tensor
from .info_nce_tiles import MAX_UNSHIFTED_LOGIT, UnitRows, across_sets, within_scale
from .transfers import to_device

_MIN_LENGTH = 1e-12  # the default of F.normalize
_FIRST_ORDER = (
    "The contrastive loss has first derivatives only, in reverse mode (`backward`, `torch.autograd.grad` and "
    "`torch.func.grad`): it cannot be differentiated twice (as by `hessian`) or in forward mode (`jvp`); "
    "`vmap` is replaced by a loop."
)


@torch.compiler.disable  # sizes depend on the labels, so every batch would be compiled again
def info_nce_loss(
    anchors: torch.Tensor,
    anchor_labels: torch.Tensor,
    contrast: torch.Tensor | None = None,
    contrast_labels: torch.Tensor | None = None,
    *,
    temperature: float = 0.1,
    self_offset: int | None = None,
    positives: str = "each",
) -> torch.Tensor:
    """Compute supervised InfoNCE of sampled pixels, exactly and with memory linear in their number.

    The host sorts rows by class, so labels on a GPU make it wait for the device; labels on the host do not.

    Args:
        anchors (`torch.Tensor` of shape `(N, D)`): Features, not normalized, rows in any order; N may be 0.
        anchor_labels (`torch.Tensor` of shape `(N,)`, int64): Class of every anchor, any integer, on any device.
        contrast (`torch.Tensor` of shape `(M, D)`, *optional*):
            Contrast set; `None` contrasts the anchors with each other, an anchor never with itself.
        contrast_labels (`torch.Tensor` of shape `(M,)`, int64, *optional*): Class of every row of the contrast set.
        temperature (`float`): Temperature of the logits, tested from 0.01; a number, which is not trained.
        self_offset (`int`, *optional*):
            Row of the first anchor in the contrast set, if the set contains the anchors themselves (for example, the
            anchors of all processes): row `self_offset + i` is not a positive of anchor i.
        positives (`str`): `"each"`, the published loss, is the mean over the positives of an anchor; `"any"` compares
            their mean similarity, exp(a_ip), with the negatives.

    Returns:
        `torch.Tensor`: scalar, float32 (float64 for float64 features), connected to the graph even where it is 0.

    Raises:
        ValueError: If shapes do not match, the temperature is not positive, `positives` is unknown, or the rows from
            `self_offset` on do not have the classes of the anchors.
        TypeError: If labels are not integers, or the temperature is not a number.
        NotImplementedError: If the loss is differentiated twice or in forward mode, or called under `vmap`. First
            derivatives by `torch.func.grad` and `torch.func.jacrev` work.

    Source: https://arxiv.org/abs/2203.13409, section 3.
    """
    refuse_transforms(*(side for side in (anchors, anchor_labels, contrast, contrast_labels) if side is not None))
    _check_arguments(anchors, anchor_labels, contrast, contrast_labels, temperature, self_offset)
    check_positives(positives)
    anchor_labels = anchor_labels.cpu().long()
    rows, order = _sort_by_class(anchors, anchor_labels)
    if contrast is None:
        return contrast_within_scale(rows, temperature, positives)
    contrast_labels = contrast_labels.cpu().long()
    contrast_rows, contrast_order = _sort_by_class(contrast, contrast_labels)
    if self_offset is None:
        return contrast_across(rows, contrast_rows, temperature, positives=positives)
    _check_that_anchors_are_in(contrast_labels, anchor_labels, self_offset)
    own_columns = to_device(contrast_order.argsort()[self_offset + order], anchors.device)
    return contrast_across(rows, contrast_rows, temperature, own_columns, positives)


def refuse_transforms(*tensors: torch.Tensor) -> None:
    """Raise if one of the tensors is batched by `vmap` or has a tangent of forward-mode differentiation."""
    _Gate.apply(*tensors)


def check_temperature(name: str, temperature: float) -> None:
    """Raise unless a temperature is a positive number, since a learnable one would get no gradient."""
    if isinstance(temperature, torch.Tensor):
        raise TypeError(f"`{name}` must be a number, got a tensor: the loss does not train it.")
    if not isinstance(temperature, Real) or isinstance(temperature, bool):
        raise TypeError(f"`{name}` must be a number, got {temperature!r}.")
    if not 0 < temperature < math.inf:
        raise ValueError(f"`{name}` must be positive and finite, got {temperature}.")


def check_positives(positives: str) -> None:
    """Raise unless the use of positives is known."""
    if positives not in ("each", "any"):
        raise ValueError(f"`positives` must be 'each' or 'any', got {positives!r}.")


def unit_rows(features: torch.Tensor, labels: torch.Tensor, class_sizes: dict[int, int]) -> UnitRows:
    """Normalize features (N, D) that are sorted by class, in float32 even inside autocast (float64 stays float64)."""
    with torch.autocast(features.device.type, enabled=False):
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        return UnitRows(_UnitLength.apply(features.to(dtype))[0], labels, class_sizes)


def contrast_within_scale(rows: UnitRows, temperature: float = 0.1, positives: str = "each") -> torch.Tensor:
    """Compute the mean of l_i over rows that are contrasted with each other, without waiting for the device."""
    if temperature * MAX_UNSHIFTED_LOGIT < 1:
        own_columns = torch.arange(len(rows.labels), device=rows.labels.device)
        return contrast_across(rows, rows, temperature, own_columns, positives)
    with torch.autocast(rows.features.device.type, enabled=False):
        return _WithinScale.apply(*rows, temperature, rows.features.requires_grad, positives)[0]


def contrast_across(
    anchors: UnitRows,
    contrast: UnitRows,
    temperature: float = 0.1,
    own_columns: torch.Tensor | None = None,
    positives: str = "each",
) -> torch.Tensor:
    """Compute the mean of l_i over anchors that are contrasted with another set, without waiting for the device.

    Args:
        anchors (`UnitRows`): N anchors.
        contrast (`UnitRows`): M rows.
        temperature (`float`): Temperature of the logits.
        own_columns (`torch.Tensor` of shape `(N,)`, int64, *optional*):
            Rows of the contrast set that are the anchors themselves, each excluded from its own positives.
        positives (`str`): `"each"` or `"any"`, as in `info_nce_loss`.
    """
    with torch.autocast(anchors.features.device.type, enabled=False):
        wants_grad = (anchors.features.requires_grad, contrast.features.requires_grad)
        return _AcrossSets.apply(
            anchors.features,
            contrast.features,
            anchors[1:],
            contrast[1:],
            own_columns,
            temperature,
            wants_grad,
            positives,
        )[0]


class _FirstOrder(torch.autograd.Function):
    """Base class of functions whose gradient is computed once, with the value, and has no derivative of its own."""

    @staticmethod
    def vmap(info, in_dims, *arguments):
        raise NotImplementedError(_FIRST_ORDER)

    @staticmethod
    def jvp(ctx, *tangents):
        raise NotImplementedError(_FIRST_ORDER)


class _Gate(_FirstOrder):
    """Function of no value that refuses transforms of its inputs, before the host reads them."""

    @staticmethod
    def forward(*tensors):
        return tensors[0].new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)


class _Once(torch.autograd.Function):
    """Identity of a gradient, as a function of what it depends on, that raises if it is differentiated."""

    generate_vmap_rule = True  # `torch.func.jacrev` computes first derivatives under vmap

    @staticmethod
    def forward(grad, *sources):
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(_FIRST_ORDER)


class _UnitLength(_FirstOrder):
    """Normalization of rows to unit length, as `F.normalize(rows, dim=1)`, with few operations in backward."""

    @staticmethod
    def forward(rows):
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(_MIN_LENGTH)
        return rows / lengths, lengths

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx, units_grad, _):
        if units_grad is None:
            return None
        units, lengths = ctx.saved_tensors
        along = (units_grad * units).sum(dim=1, keepdim=True)
        return _once((units_grad - units * along).div_(lengths), units, units_grad)


class _WithinScale(_FirstOrder):
    """Within-scale term, whose gradient is computed in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(features, labels, class_sizes, temperature, wants_grad, positives):
        return within_scale(UnitRows(features, labels, class_sizes), temperature, wants_grad, positives)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save_gradients(ctx, output[1:], inputs[:1])

    @staticmethod
    def backward(ctx, loss_grad, *_):
        grad, features = ctx.saved_tensors
        return _scaled(grad, loss_grad, features), None, None, None, None, None


class _AcrossSets(_FirstOrder):
    """Term between two sets, whose gradients are computed in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(anchors, contrast, anchor_facts, contrast_facts, own_columns, temperature, wants_grad, positives):
        sides = UnitRows(anchors, *anchor_facts), UnitRows(contrast, *contrast_facts)
        return across_sets(*sides, own_columns, temperature, wants_grad, positives)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save_gradients(ctx, output[1:], inputs[:2])

    @staticmethod
    def backward(ctx, loss_grad, *_):
        *grads, anchors, contrast = ctx.saved_tensors
        anchor_grad, contrast_grad = (_scaled(grad, loss_grad, anchors, contrast) for grad in grads)
        return anchor_grad, contrast_grad, None, None, None, None, None, None


def _save_gradients(ctx, grads: Sequence[torch.Tensor | None], sources: Sequence[torch.Tensor]) -> None:
    """Save gradients, and what they depend on, for the backward pass, which needs no gradient of a gradient."""
    ctx.mark_non_differentiable(*(grad for grad in grads if grad is not None))
    ctx.set_materialize_grads(False)  # otherwise autograd would fill a tensor with zeros for every gradient
    ctx.save_for_backward(*grads, *sources)  # unlike attributes, freed after the backward pass and visible to hooks


def _scaled(grad: torch.Tensor | None, loss_grad: torch.Tensor | None, *sources: torch.Tensor) -> torch.Tensor | None:
    """Scale a saved gradient in the backward pass; `None` stands for a zero."""
    return None if grad is None or loss_grad is None else _once(grad * loss_grad, loss_grad, *sources)


def _once(grad: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
    """Make a gradient raise if it is differentiated, instead of being a constant; free unless a graph is recorded."""
    return _Once.apply(grad, *sources) if torch.is_grad_enabled() else grad


def _sort_by_class(features: torch.Tensor, labels: torch.Tensor) -> tuple[UnitRows, torch.Tensor]:
    """Sort features by labels on the host; return unit rows and the order (N,) of the original rows."""
    sorted_labels, order = labels.sort(stable=True)
    classes, counts = sorted_labels.unique_consecutive(return_counts=True)
    class_sizes = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    if not torch.equal(order, torch.arange(len(order))):
        features = features[to_device(order, features.device)]
    return unit_rows(features, to_device(sorted_labels, features.device), class_sizes), order


def _check_arguments(anchors, anchor_labels, contrast, contrast_labels, temperature, self_offset) -> None:
    check_temperature("temperature", temperature)
    if (contrast is None) != (contrast_labels is None):
        raise ValueError("`contrast` and `contrast_labels` must be given together, or not at all.")
    sets = [("anchors", anchors, anchor_labels)]
    if contrast is not None:
        sets.append(("contrast", contrast, contrast_labels))
    for name, features, labels in sets:
        check_is_tensor(f"{name.removesuffix('s')}_labels", labels)
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"`{name}` must be (N, D) with labels (N,), got {tuple(features.shape)} and {tuple(labels.shape)}."
            )
        check_classes(f"{name.removesuffix('s')}_labels", labels)
    if contrast is not None and contrast.shape[1] != anchors.shape[1]:
        raise ValueError(f"`anchors` has {anchors.shape[1]} channels, but `contrast` has {contrast.shape[1]}.")
    if self_offset is not None and contrast is None:
        raise ValueError("`self_offset` is a row of `contrast`, which is missing.")


def _check_that_anchors_are_in(contrast_labels, anchor_labels, self_offset) -> None:
    stop = self_offset + len(anchor_labels)
    if self_offset < 0 or not torch.equal(contrast_labels[self_offset:stop], anchor_labels):
        raise ValueError(
            f"`self_offset` {self_offset}: rows {self_offset} to {stop} of `contrast` ({len(contrast_labels)} rows) "
            "are not the anchors: their classes differ."
        )
