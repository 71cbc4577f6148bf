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

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class PixelConv2d(nn.Conv2d):
    """1x1 convolution of maps, and of single pixels by a matrix product; the signature is that of `nn.Conv2d`.

    Libraries build layers of the class and with the arguments of the layer that they adapt, so neither may differ. For
    pixels, whose number is another one in every batch, a matrix product needs no search for an algorithm.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve a map, (B, C, h, w) -> (B, D, h, w), or pixels, (N, C, 1, 1) -> (N, D, 1, 1)."""
        if self.kernel_size == (1, 1) == tuple(features.shape[2:]) and self.groups == 1:
            return F.linear(features.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]
        return super().forward(features)


class StageProjection(nn.Module):
    """Projection of one stage: 1x1 convolution, ReLU, BatchNorm, 1x1 convolution (ReLU first, as published)."""

    def __init__(self, in_channels: int, projection_dim: int):
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 1, bias=False),
            nn.ReLU(),
            nn.BatchNorm2d(in_channels, momentum=BATCH_NORM_MOMENTUM),
        )
        self.output = PixelConv2d(in_channels, projection_dim, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project a map: (B, C, h, w) -> (B, D, h, w)."""
        return self.output(self.hidden(features))

    def project_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Apply the last convolution to rows sampled from `hidden`, as `forward` to all pixels: (N, C) -> (N, D)."""
        # Called as a module, so that adapters, hooks and parametrizations act here too. Not all of them take an empty
        # batch: it is padded with a row.
        padded = rows if len(rows) else F.pad(rows, (0, 0, 0, 1))
        return self.output(padded[:, :, None, None]).flatten(1)[: len(rows)]


class ProjectionHead(nn.Module):
    """Projection head with separate layers for every projected stage, used only during training.

    Training needs only sampled pixels, so the last convolution is applied to these alone and no map of D channels is
    computed: `hidden` returns the maps to sample from, `row_projections` the functions for the sampled rows. If the
    head or a stage has a hook, another `forward` or a wrapper, `hidden` returns whole projections instead, so that it
    acts in training too.

    Args:
        in_channels (`Sequence[int]`): Numbers of channels of the stages, finest first.
        projection_dim (`int`): Number of channels D of the projections.

    Source: https://arxiv.org/abs/2203.13409, section 3; order and momentum as in the authors' code.
    """

    def __init__(self, in_channels: Sequence[int], projection_dim: int):
        super().__init__()
        self.stages = nn.ModuleList(StageProjection(channels, projection_dim) for channels in in_channels)

    def hidden(self, feature_maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Compute the maps that `row_projections` project: (B, C_s, h_s, w_s) per stage, finest first."""
        if self._projects_whole_maps():
            return self(feature_maps)
        return tuple(stage.hidden(features) for stage, features in zip(self.stages, feature_maps, strict=True))

    @property
    def row_projections(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Functions (N, C_s) -> (N, D), one per stage, for rows sampled from `hidden`."""
        if self._projects_whole_maps():
            return [_unchanged] * len(self.stages)
        return [stage.project_rows for stage in self.stages]  # type: ignore[misc]

    def project(self, hidden: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Project whole maps that `hidden` returned: (B, D, h_s, w_s) per stage."""
        if self._projects_whole_maps():
            return tuple(hidden)
        return tuple(stage.output(features) for stage, features in zip(self.stages, hidden, strict=True))

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Project stage maps: (B, C_s, h_s, w_s) per stage -> (B, D, h_s, w_s), finest first, not normalized."""
        return tuple(stage(features) for stage, features in zip(self.stages, feature_maps, strict=True))

    def _projects_whole_maps(self) -> bool:
        """Return whether something acts on the head or on a whole stage, and therefore has to see projected maps."""
        wrapped = any(not isinstance(stage, StageProjection) for stage in self.stages)
        return wrapped or any(_is_extended(module) for module in (self, *self.stages))


def _is_extended(module: nn.Module) -> bool:
    return "forward" in vars(module) or any(getattr(module, hooks) for hooks in _HOOKS)


def _unchanged(rows: torch.Tensor) -> torch.Tensor:
    return rows
