"""Optimizers, parameter groups and learning-rate schedules of the recipes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .duration import Duration
from .settings import TrainingSettings

NORMS = "norm"
# Norms of timm and transformers (EvoNorm2dS0, ConvNextV2GRN, InplaceAbn) have similar names, but no common base class.
_NAME_OF_A_NORM = re.compile("Norm(?!al|Free)|GRN|Abn")


def build_optimizer(model: nn.Module, arguments: TrainingSettings, fused: bool = True) -> torch.optim.Optimizer:
    """Build SGD, Adam or AdamW for the trainable parameters, grouped by learning rate and weight decay.

    Args:
        model (`nn.Module`): Network; parameters of its `backbone` get the learning rate of the backbone.
        arguments (`TrainingSettings`): Learning rates, weight decay, and parameters without weight decay.
        fused (`bool`): Whether to use the fused optimizer, for CPUs and for NVIDIA, AMD and Intel GPUs.
    """
    groups = parameter_groups(model, arguments)
    # a fused optimizer is one kernel, which can also skip a step on the device without the host (see StepGuard)
    options: dict[str, Any] = {"lr": arguments.learning_rate, "fused": fused}
    if arguments.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=arguments.momentum, **options)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[arguments.optimizer]
    return optimizer(groups, betas=tuple(arguments.adam_betas), **options)


def parameter_groups(model: nn.Module, arguments: TrainingSettings) -> list[dict]:
    """Group the trainable parameters by (backbone or not, weight decay or not), without empty groups."""
    backbone = set(model.backbone.parameters())
    in_norms = set(_parameters_of_norms(model)) if NORMS in arguments.no_decay else set()
    name_parts = [part for part in arguments.no_decay if part != NORMS]
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter not in in_norms and not any(part in name for part in name_parts)
            groups.setdefault((parameter in backbone, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": arguments.learning_rate * (arguments.backbone_learning_rate_factor if in_backbone else 1.0),
            "weight_decay": arguments.weight_decay if decays else 0.0,
        }
        for (in_backbone, decays), parameters in groups.items()
    ]


def _parameters_of_norms(model: nn.Module) -> Iterable[nn.Parameter]:
    for module in model.modules():
        parameters = module.parameters(recurse=False)
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
            yield from parameters
        elif any(_NAME_OF_A_NORM.search(kind.__name__) for kind in type(module).__mro__):
            # scales and offsets of channels, not the matrix of a linear layer that is called after its norm
            yield from (each for each in parameters if each.numel() == max(each.shape, default=1))


def build_schedule(optimizer: torch.optim.Optimizer, arguments: TrainingSettings, duration: Duration) -> LambdaLR:
    """Build the schedule of the learning rate: linear warm-up, then poly, exponential or constant."""
    return LambdaLR(optimizer, lambda step: schedule_factor(step, arguments, duration))


def schedule_factor(step: int, arguments: TrainingSettings, duration: Duration) -> float:
    """Compute the factor of the learning rate at a step, counted from 0; it is never negative.

    The exponential schedule decays at the first step that begins after the end of an epoch.
    After the warm-up, the factor is computed from the absolute step: the schedule includes the steps of the warm-up.
    """
    if step < arguments.warmup_steps:
        return (step + 1) / arguments.warmup_steps
    if arguments.schedule == "poly":
        return max(0.0, 1 - step / duration.max_steps) ** arguments.poly_power
    if arguments.schedule == "exponential":
        whole_epochs = step * arguments.gradient_accumulation_steps // (duration.batches_per_epoch or 1)
        return arguments.exponential_gamma**whole_epochs
    return 1.0
