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
"""Simple feature pyramid: stage maps at four strides for networks whose blocks all work at one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

LEVELS = 4


class SimpleFeaturePyramid(nn.Module):
    """Maps of one stride s -> maps at strides s / 4, s / 2, s and 2 s, finest first.

    With four maps each level is made from one of them, the first block's the finest; a single map gives all levels.

    Args:
        in_channels (`Sequence[int]`): Channels of the four maps, or of the single one.

    Source: Li et al., "Exploring Plain Vision Transformer Backbones", 2022 (https://arxiv.org/abs/2203.16527),
    section 3, without the convolutions that a decode head brings itself.
    """

    def __init__(self, in_channels: Sequence[int]):
        super().__init__()
        if len(in_channels) not in (1, LEVELS):
            raise ValueError(
                f"A backbone with maps of one stride must give {LEVELS} of them, or only the last, got "
                f"{len(in_channels)}: name them in `backbone_config` with `out_features` or `out_indices`."
            )
        from timm.layers import LayerNorm2d  # here: timm takes long to import, and only plain transformers need this

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
        """(B, C, h, w) each -> (B, C / 4, 4 h, 4 w), (B, C / 2, 2 h, 2 w), (B, C, h, w), (B, C, h / 2, w / 2)."""
        maps = list(feature_maps) if len(feature_maps) == LEVELS else [*feature_maps] * LEVELS
        return [level(features) for level, features in zip(self.levels, maps, strict=True)]


def _double(in_channels: int, out_channels: int | None = None) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels or in_channels // 2, kernel_size=2, stride=2)
