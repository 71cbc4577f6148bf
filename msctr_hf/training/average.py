"""Moving average of the weights and statistics of a network, which is validated, saved, and teaches."""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import nn


def build_average(network: nn.Module, decay: float, device: torch.device) -> ModelEmaV3:
    """Build the average of a network, to be updated with the number of every step.

    Its decay after t steps is 1 - t^(-2/3), at most `decay`. The statistics of normalization are averaged too, since
    those of the newest weights do not fit averaged ones (EMAN, https://arxiv.org/abs/2101.08482).

    Args:
        network (`nn.Module`): Network before `Accelerator.prepare`, which binds the forward pass to it: a later copy
            would run the original.
        decay (`float`): Largest decay.
        device (`torch.device`): Where the average is kept.
    """
    return ModelEmaV3(network, decay=decay, use_warmup=True).to(device)
