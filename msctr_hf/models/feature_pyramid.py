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
"""Simple feature pyramid: stage maps at four strides, from a network whose blocks all have the same stride."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

LEVELS = 4


class SimpleFeaturePyramid(nn.Module):
    """Pyramid of maps with the strides s / 4, s / 2, s and 2 s, finest first, from maps of one stride s.

    From four maps, every level is made from one of them, the finest from the earliest block; from a single map, all
    levels are made.

    Args:
        in_channels (`Sequence[int]`): Numbers of channels of the four maps, or of the single map.

    Source: Li et al., "Exploring Plain Vision Transformer Backbones", 2022 (https://arxiv.org/abs/2203.16527),
    section 3, without the convolutions that decode heads have themselves.
    """

    def __init__(self, in_channels: Sequence[int]):
        super().__init__()
        if len(in_channels) not in (1, LEVELS):
            raise ValueError(
                f"A backbone whose maps have one stride must return {LEVELS} maps, or only the last, got "
                f"{len(in_channels)}: choose them in `backbone_config` by `out_features` or `out_indices`."
            )
        from timm.layers import LayerNorm2d  # slow to import, and needed only for plain vision transformers

        finest, fine, middle, coarse = in_channels if len(in_channels) == LEVELS else [*in_channels] * LEVELS
        self.levels = nn.ModuleList(
            [
                nn.Sequential(_double(finest, finest // 2), LayerNorm2d(finest // 2), nn.GELU(), _double(finest // 2)),
                _double(fine),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        self.channels = [finest // 4, fine // 2, middle, coarse]

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Resize maps (B, C, h, w): (B, C / 4, 4 h, 4 w), (B, C / 2, 2 h, 2 w), (B, C, h, w), (B, C, h / 2, w / 2)."""
        maps = list(feature_maps) if len(feature_maps) == LEVELS else [*feature_maps] * LEVELS
        return [level(features) for level, features in zip(self.levels, maps, strict=True)]


def _double(in_channels: int, out_channels: int | None = None) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels or in_channels // 2, kernel_size=2, stride=2)
