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
"""Projection head, from stage maps to the embeddings that are contrasted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

BATCH_NORM_MOMENTUM = 3e-4  # as in the authors' code


class StageProjection(nn.Module):
    """Projection of one stage: 1x1 convolution, ReLU, BatchNorm, 1x1 convolution (ReLU first, as published)."""

    def __init__(self, in_channels: int, projection_dim: int):
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 1, bias=False),
            nn.ReLU(),
            nn.BatchNorm2d(in_channels, momentum=BATCH_NORM_MOMENTUM),
        )
        self.output = nn.Conv2d(in_channels, projection_dim, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project a map: (B, C, h, w) -> (B, D, h, w)."""
        return self.output(self.hidden(features))

    def project_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Apply the last convolution to rows sampled from `hidden`, as `forward` to all pixels: (N, C) -> (N, D)."""
        return F.linear(rows, self.output.weight.flatten(1), self.output.bias)


class ProjectionHead(nn.Module):
    """Projection head with separate layers for every projected stage, used only during training.

    Training needs only sampled pixels, so the last convolution is applied to these alone and no map of D channels is
    computed: `hidden` returns the maps to sample from, `row_projections` the functions for the sampled rows.

    Args:
        in_channels (`Sequence[int]`): Numbers of channels of the stages, finest first.
        projection_dim (`int`): Number of channels D of the projections.

    Source: https://arxiv.org/abs/2203.13409, section 3; order and momentum as in the authors' code.
    """

    def __init__(self, in_channels: Sequence[int], projection_dim: int):
        super().__init__()
        self.stages = nn.ModuleList(StageProjection(channels, projection_dim) for channels in in_channels)

    def hidden(self, feature_maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Compute the maps that `row_projections` project: (B, C_s, h_s, w_s) per stage -> the same shapes."""
        return tuple(stage.hidden(features) for stage, features in zip(self.stages, feature_maps, strict=True))

    @property
    def row_projections(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Functions (N, C_s) -> (N, D), one per stage, for rows sampled from `hidden`."""
        return [stage.project_rows for stage in self.stages]  # type: ignore[misc]

    def project(self, hidden: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Project whole maps that `hidden` returned: (B, D, h_s, w_s) per stage."""
        return tuple(stage.output(features) for stage, features in zip(self.stages, hidden, strict=True))

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Project stage maps: (B, C_s, h_s, w_s) per stage -> (B, D, h_s, w_s), finest first, not normalized."""
        return self.project(self.hidden(feature_maps))
