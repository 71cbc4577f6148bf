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
"""Multi-scale and cross-scale contrastive loss: which stages are contrasted, and how the terms add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .anchor_sampling import Anchors, count_pairs, draw_anchors, pair_of_every_pixel, plan_draws
from .contrastive_diagnostics import class_sums, mean_cosines
from .gathered_anchors import GatheredRows, gather_rows, spans_processes
from .info_nce import UnitRows, contrast_across, contrast_within_scale, unit_rows

DEFAULT_SCALE_WEIGHTS = (1.0, 0.7, 0.4, 0.1)  # finest first


class ContrastiveResult(NamedTuple):
    """Contrastive loss of one batch, with its terms and diagnostics.

    Args:
        loss (`torch.Tensor`): Weighted sum of the terms.
        terms (`dict[str, torch.Tensor]`): Every unweighted term, detached.
        cosines (`dict[str, torch.Tensor]`): Mean cosines of the positive and negative pairs of every term on this
            process, NaN without such pairs.
        facts (`dict[str, float]`): Anchors and classes of every stage and share of stages without anchors on this
            process; known to the host, so that reading them does not wait for the device.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    cosines: dict[str, torch.Tensor]
    facts: dict[str, float]

    @property
    def diagnostics(self) -> dict[str, torch.Tensor | float]:
        """Facts and cosines together."""
        return {**self.facts, **self.cosines}


@dataclass(frozen=True)
class MultiScaleContrastiveLoss:
    """Weighted sum of the within-scale terms of all projected stages and the cross-scale terms of pairs of stages.

    Args:
        num_labels (`int`): Number of classes.
        stages (`Sequence[int]`): Backbone stages of the maps, from 1, finest first; they name the terms.
        scale_weights (`Sequence[float]`): Weight of every within-scale term.
        pairs (`Sequence[Sequence[int]]`): (anchors, contrast) positions in `stages`; empty without cross-scale terms.
        pair_weights (`Sequence[float]`): Weight of every cross-scale term.
        temperature (`float`): Temperature of the within-scale terms.
        cross_scale_temperature (`float`): Temperature of the cross-scale terms.
        detach_coarse (`bool`): Whether the contrast side of a pair gets no gradient.
        ignore_index (`int`): Label that is never sampled.
        sampling, min_anchors_per_class, max_anchors_per_class, max_anchors: As in `sample_anchors`, per process.
        gather_anchors (`bool`): Whether to contrast with the anchors of all processes: a batch split over processes
            then yields the loss and the gradients that its anchors yield on one process.

    Source: https://arxiv.org/abs/2203.13409, section 3.
    """

    num_labels: int
    stages: Sequence[int]
    scale_weights: Sequence[float]
    pairs: Sequence[Sequence[int]] = ()
    pair_weights: Sequence[float] = ()
    temperature: float = 0.1
    cross_scale_temperature: float = 0.1
    detach_coarse: bool = False
    ignore_index: int = 255
    sampling: str = "rarest"
    min_anchors_per_class: int = 5
    max_anchors_per_class: int = 2500
    max_anchors: int = 10_000
    gather_anchors: bool = False

    def __post_init__(self):
        if len(self.scale_weights) != len(self.stages):
            raise ValueError(
                f"`contrastive_scale_weights` must have one entry per projected stage {list(self.stages)}, "
                f"got {list(self.scale_weights)}."
            )
        if len(self.pair_weights) != len(self.pairs):
            raise ValueError(
                f"`contrastive_cross_scale_weights` must have one entry per pair {list(self.pairs)}, "
                f"got {list(self.pair_weights)}."
            )
        for pair in self.pairs:
            if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= stage < len(self.stages) for stage in pair):
                raise ValueError(
                    f"`contrastive_cross_scale_pairs` must pair two different positions below {len(self.stages)}, "
                    f"got {list(pair)}."
                )

    @classmethod
    def from_config(cls, config) -> MultiScaleContrastiveLoss:
        """Build the loss from the settings of an `MsctrConfig`."""
        stages = config.projection_stages
        pairs = _or_default(config.contrastive_cross_scale_pairs, _default_pairs(len(stages)))
        pairs = pairs if config.contrastive_mode == "ms_cs" else ()
        pair_weights = _or_default(config.contrastive_cross_scale_weights, [1.0] * len(pairs))
        return cls(
            num_labels=config.num_labels,
            stages=stages,
            scale_weights=_or_default(config.contrastive_scale_weights, DEFAULT_SCALE_WEIGHTS[: len(stages)]),
            pairs=pairs,
            pair_weights=pair_weights if pairs else (),
            temperature=config.contrastive_temperature,
            cross_scale_temperature=_or_default(
                config.contrastive_cross_scale_temperature, config.contrastive_temperature
            ),
            detach_coarse=config.contrastive_detach_coarse,
            ignore_index=config.semantic_loss_ignore_index,
            sampling=config.contrastive_sampling,
            min_anchors_per_class=config.contrastive_min_anchors_per_class,
            max_anchors_per_class=config.contrastive_max_anchors_per_class,
            max_anchors=config.contrastive_max_anchors,
            gather_anchors=config.contrastive_gather_anchors,
        )

    def __call__(
        self,
        features: Sequence[torch.Tensor],
        labels: torch.Tensor,
        project: Sequence[Callable[[torch.Tensor], torch.Tensor]] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the loss and the terms of one batch, with the arguments of `contrast`."""
        result = self.contrast(features, labels, project, generator)
        return result.loss, result.terms

    @torch.compiler.disable  # sizes depend on the labels, so every batch would be compiled again
    def contrast(
        self,
        features: Sequence[torch.Tensor],
        labels: torch.Tensor,
        project: Sequence[Callable[[torch.Tensor], torch.Tensor]] | None = None,
        generator: torch.Generator | None = None,
    ) -> ContrastiveResult:
        """Sample anchors of one batch and contrast them.

        Args:
            features (`Sequence[torch.Tensor]` of shapes `(B, C_s, h_s, w_s)`): One map per stage, finest first.
            labels (`torch.Tensor` of shape `(B, H, W)`, int64): Classes or the ignore index, at any size.
            project (`Sequence[Callable]`, *optional*):
                Function of every stage that projects sampled rows, (N, C_s) -> (N, D); `None` if `features` are
                projections already.
            generator (`torch.Generator`, *optional*): Source of randomness, on the device of `features`.
        """
        if len(features) != len(self.stages):
            raise ValueError(f"Expected maps of the stages {list(self.stages)}, got {len(features)} maps.")
        anchors = self._sample(features, labels, generator)
        if project is not None:
            anchors = [
                stage._replace(features=projection(stage.features))
                for stage, projection in zip(anchors, project, strict=True)
            ]
        rows = [unit_rows(*stage) for stage in anchors]
        terms = self._terms(rows)
        weighted = [
            weight * term for weight, term in zip((*self.scale_weights, *self.pair_weights), terms, strict=True)
        ]
        return ContrastiveResult(
            loss=torch.stack(weighted).sum(),
            terms={name: term.detach() for name, term in zip(self._term_names(), terms, strict=True)},
            cosines=self._cosines(rows),
            facts=self._facts(rows),
        )

    def _terms(self, rows: Sequence[UnitRows]) -> list[torch.Tensor]:
        """Compute the within-scale terms of all stages, then the cross-scale terms of all pairs."""
        if self.gather_anchors and spans_processes():
            return self._terms_across_processes(rows, gather_rows(rows, self.num_labels))
        terms = [contrast_within_scale(stage, self.temperature) for stage in rows]
        for fine, coarse in self.pairs:
            terms.append(contrast_across(rows[fine], self._contrast_side(rows[coarse]), self.cross_scale_temperature))
        return terms

    def _terms_across_processes(
        self, rows: Sequence[UnitRows], gathered: Sequence[GatheredRows]
    ) -> list[torch.Tensor]:
        terms = [
            stage.share * contrast_across(own, stage.rows, self.temperature, stage.own_columns)
            for own, stage in zip(rows, gathered, strict=True)
        ]
        for fine, coarse in self.pairs:
            contrast = self._contrast_side(gathered[coarse].rows)
            terms.append(gathered[fine].share * contrast_across(rows[fine], contrast, self.cross_scale_temperature))
        return terms

    def _contrast_side(self, rows: UnitRows) -> UnitRows:
        return rows._replace(features=rows.features.detach()) if self.detach_coarse else rows

    def _stage_names(self) -> list[str]:
        return [f"contrastive/stage_{stage}" for stage in self.stages]

    def _term_names(self) -> list[str]:
        pairs = [f"contrastive/stage_{self.stages[a]}_to_stage_{self.stages[b]}" for a, b in self.pairs]
        return [*self._stage_names(), *pairs]

    def _cosines(self, rows: Sequence[UnitRows]) -> dict[str, torch.Tensor]:
        sums = [class_sums(stage, self.num_labels) for stage in rows]
        sizes = [stage.class_sizes for stage in rows]
        cosines = [mean_cosines(*stage) for stage in zip(sums, sizes, strict=True)]
        cosines += [mean_cosines(sums[a], sizes[a], sums[b], sizes[b]) for a, b in self.pairs]
        named = {}
        for name, (positive, negative) in zip(self._term_names(), cosines, strict=True):
            named[f"{name}/positive_cosine"] = positive
            named[f"{name}/negative_cosine"] = negative
        return named

    def _facts(self, rows: Sequence[UnitRows]) -> dict[str, float]:
        facts = {"contrastive/skipped_stages": sum(not stage.class_sizes for stage in rows) / len(rows)}
        for name, stage in zip(self._stage_names(), rows, strict=True):
            facts[f"{name}/anchors"] = float(sum(stage.class_sizes.values()))
            facts[f"{name}/classes"] = float(len(stage.class_sizes))
        return facts

    def _sample(
        self, features: Sequence[torch.Tensor], labels: torch.Tensor, generator: torch.Generator | None
    ) -> list[Anchors]:
        """Sample every stage; the class counts of all stages reach the host in one synchronization."""
        pairs = [pair_of_every_pixel(labels, stage, self.num_labels, self.ignore_index) for stage in features]
        counts = torch.stack([count_pairs(stage, len(labels), self.num_labels) for stage in pairs]).tolist()
        anchors = []
        for stage, stage_pairs, stage_counts in zip(features, pairs, counts, strict=True):
            plan = plan_draws(
                stage_counts,
                sampling=self.sampling,
                min_anchors_per_class=self.min_anchors_per_class,
                max_anchors_per_class=self.max_anchors_per_class,
                max_anchors=self.max_anchors,
            )
            anchors.append(draw_anchors(stage, stage_pairs, self.num_labels, plan, generator))
        return anchors


def _default_pairs(num_stages: int) -> list[tuple[int, int]]:
    """Pair the finest stage with the coarsest and, if there are more than two, with the second coarsest."""
    return [(0, coarse) for coarse in (num_stages - 1, num_stages - 2) if coarse > 0]


def _or_default(value, default):
    return default if value is None else value
