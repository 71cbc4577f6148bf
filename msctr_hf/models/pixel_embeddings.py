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
"""Embeddings of pixels: unit vectors whose cosines say how similar two pixels are to a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from .decode_heads import resize

FEATURES = ("projection", "decode_head", "backbone")
FORMER_FEATURES = {"projections": "projection", "pyramid": "decode_head", "stages": "backbone"}


class PixelEmbeddings:
    """Base class of networks that embed pixels; a network says which stages it has and computes their maps."""

    def embed(
        self, pixel_values: torch.Tensor, features: str = "projection", stage: int | None = None
    ) -> torch.Tensor:
        """Compute a unit vector for every pixel of a stage, or of all stages together.

        Where all stages are joined, every stage is normalized, resized bilinearly to the finest one and normalized
        again; then the S vectors of a pixel are concatenated and divided by the square root of S. A cosine of joined
        embeddings is therefore the mean of the cosines of the stages. A vector of zeros, which has no direction,
        remains zeros.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Normalized RGB images.
            features (`str`): `"projection"`, which the contrast trains; `"decode_head"`, the pyramid of the decode
                head; or `"backbone"`, its stage maps, which every network has.
            stage (`int`, *optional*): Stage, from 1, the finest; by default all stages.

        Returns:
            `torch.Tensor` of shape `(B, D, h, w)`: at the size of the stage, or of the finest one, at least float32.

        Raises:
            ValueError: If the network has no such features, or no such stage.
        """
        stages = self.embedding_stages(features, stage)
        maps = self.stage_embeddings(pixel_values, features)
        return maps[stages[0]] if stage is not None else self._joined(list(maps.values()))

    def embedding_stages(self, features: str = "projection", stage: int | None = None) -> list[int]:
        """List the stages that `embed` joins, finest first, or only `stage`.

        Raises:
            ValueError: If the network has no such features, or no such stage.
        """
        name = FORMER_FEATURES.get(features, features)
        if name not in FEATURES:
            raise ValueError(f"`features` must be {', '.join(map(repr, FEATURES[:-1]))} or 'backbone', got {name!r}.")
        found = self._stages_with_embeddings()
        if name not in found:
            reason = {
                "projection": "has no projection head: it was trained without contrast, or saved without its head",
                "decode_head": "has a decode head without a pyramid, which only UPerNet of this package has",
            }[name]
            choices = " or ".join(f"`features='{each}'`" for each in found)
            raise ValueError(f"`features='{name}'`: the network {reason}; use {choices}.")
        if stage is not None and stage not in found[name]:
            listed = ", ".join(map(str, found[name]))
            raise ValueError(f"`stage` must be one of {listed} with `features='{name}'`, got {stage}.")
        return list(found[name]) if stage is None else [stage]

    def stage_embeddings(self, pixel_values: torch.Tensor, features: str = "projection") -> dict[int, torch.Tensor]:
        """Compute a unit vector for every pixel of every stage: stage -> (B, D_s, h_s, w_s), finest first."""
        stages = self.embedding_stages(features)
        maps = self._maps_to_embed(pixel_values, FORMER_FEATURES.get(features, features))
        return {stage: _unit(features) for stage, features in zip(stages, maps, strict=True)}

    def _joined(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        size, align_corners = maps[0].shape[-2:], bool(getattr(self.config, "align_corners", False))  # type: ignore
        resized = [_unit(resize(features, size, align_corners)) for features in maps]
        return torch.cat(resized, dim=1) / math.sqrt(len(resized))

    def _stages_with_embeddings(self) -> Mapping[str, Sequence[int]]:
        """Return the stages of every kind of features that the network has, in the order of `FEATURES`."""
        raise NotImplementedError

    def _maps_to_embed(self, pixel_values: torch.Tensor, features: str) -> Sequence[torch.Tensor]:
        """Compute the maps (B, C_s, h_s, w_s) of all stages, finest first, not normalized."""
        raise NotImplementedError


def _unit(features: torch.Tensor) -> torch.Tensor:
    # float16 overflows in the sum of squares
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
