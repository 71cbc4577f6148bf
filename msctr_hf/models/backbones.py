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
"""Backbones: timm and transformers networks as sources of stage maps, finest first."""

from __future__ import annotations

from torch import nn
from transformers import AutoBackbone, PreTrainedConfig


def build_backbone(config: PreTrainedConfig) -> nn.Module:
    """Build the backbone that a configuration describes, with random weights.

    Args:
        config (`PreTrainedConfig`): Configuration of a transformers backbone, or a `timm_backbone`.

    Returns:
        `nn.Module`: called with `pixel_values` (B, C, H, W), its output has `feature_maps`: a tuple of
        (B, C_s, h_s, w_s), finest first. `.channels` lists the C_s.
    """
    if config.model_type == "timm_backbone":
        from .timm_backbones import MsctrTimmBackbone

        backbone = MsctrTimmBackbone(config)
    else:
        backbone = AutoBackbone.from_config(config)
    _disable_unused_parameters(backbone)
    return backbone


def input_channels(config: PreTrainedConfig) -> int:
    """Return the number of channels of the images that a network, or a backbone, reads; 3 if it does not say."""
    for part in (getattr(config, "backbone_config", None), config):
        if (channels := getattr(part, "num_channels", None)) is not None:
            return channels
    return 3


def works_at_one_stride(backbone: nn.Module) -> bool:
    """Return whether all maps of a backbone have the same stride, as in plain vision transformers."""
    if backbone.config.model_type == "timm_backbone":
        network = backbone._backbone
        splits_into_patches = hasattr(getattr(network, "model", None), "patch_embed")
        return splits_into_patches and len(set(network.feature_info.reduction())) == 1
    config = backbone.config
    return hasattr(config, "patch_size") and hasattr(config, "hidden_size") and not hasattr(config, "depths")


def _disable_unused_parameters(backbone: nn.Module) -> None:
    """Disable parameters that no stage map depends on, because DDP expects a gradient for every parameter.

    These are the last norm of Swin and the mask tokens of masked pretraining.
    """
    for name, parameter in backbone.named_parameters():
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)  # not removed: pretrained weights contain it
    for network in ("swin", "swinv2"):
        if hasattr(getattr(backbone, network, None), "layernorm"):
            getattr(backbone, network).layernorm = nn.Identity()
