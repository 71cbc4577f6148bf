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

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .anchor_sampling import SamplingPlan, check_integer, check_limits
from .contrastive_diagnostics import class_sums, mean_cosines
from .gathered_anchors import GatheredRows, gather_rows
from .info_nce import (
    UnitRows,
    check_positives,
    check_temperature,
    contrast_across,
    contrast_within_scale,
    unit_rows,
)
from .process_group import num_processes
from .pseudo_anchors import PseudoDraws, PseudoLabeled, check_pseudo_settings
from .stage_anchors import StageSampler

DEFAULT_SCALE_WEIGHTS = (1.0, 0.7, 0.4, 0.1)  # finest first

_NAMES_IN_CONFIG = {  # arguments of the loss -> fields of `MsctrConfig`
    "num_labels": "num_labels",
    "stages": "projection_stages",
    "scale_weights": "contrastive_scale_weights",
    "pairs": "contrastive_cross_scale_pairs",
    "pair_weights": "contrastive_cross_scale_weights",
    "temperature": "contrastive_temperature",
    "cross_scale_temperature": "contrastive_cross_scale_temperature",
    "detach_coarse": "contrastive_detach_coarse",
    "ignore_index": "semantic_loss_ignore_index",
    "positives": "contrastive_positives",
    "anchor_selection": "contrastive_anchor_selection",
    "align_corners": "align_corners",
    "sampling": "contrastive_sampling",
    "min_anchors_per_class": "contrastive_min_anchors_per_class",
    "max_anchors_per_class": "contrastive_max_anchors_per_class",
    "max_anchors": "contrastive_max_anchors",
    "gather_anchors": "contrastive_gather_anchors",
    "pseudo_threshold": "contrastive_pseudo_threshold",
    "pseudo_share": "contrastive_pseudo_share",
}


class ContrastiveResult(NamedTuple):
    """Contrastive loss of one batch, with its terms and diagnostics.

    Args:
        loss (`torch.Tensor`): Weighted sum of the terms.
        terms (`dict[str, torch.Tensor]`): Every unweighted term, detached.
        cosines (`dict[str, torch.Tensor]`): Mean cosines of the positive and negative pairs of every term on this
            process, NaN without such pairs.
        facts (`dict[str, float]`): Anchors and classes of every stage and share of stages without anchors on this
            process, with hard anchors their share in every stage, NaN without labeled anchors, and with pseudo-labels
            the anchors that have one; known to the host, so that reading them does not wait for the device.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    cosines: dict[str, torch.Tensor]
    facts: dict[str, float]

    @property
    def diagnostics(self) -> dict[str, torch.Tensor | float]:
        """Facts and cosines together."""
        return {**self.facts, **self.cosines}


class MultiScaleContrastiveLoss(nn.Module):
    """Weighted sum of the within-scale terms of all stages and the cross-scale terms of pairs of stages.

    The module has no parameters and no buffers. All defaults are the published ones.

    ```python
    contrast = MultiScaleContrastiveLoss(num_labels=19)
    loss, terms = contrast(projections, labels)  # maps (B, D, h, w), finest first, and classes (B, H, W)
    ```

    Args:
        num_labels (`int`): Number of classes, at least 2.
        stages (`Sequence[int]`): Backbone stages of the maps, finest first; they name the terms.
        scale_weights (`Sequence[float]`, *optional*): Weight of every within-scale term; by default 1, 0.7, 0.4 and
            then 0.1.
        pairs (`Sequence[Sequence[int]]`, *optional*): (anchors, contrast) positions in `stages`, from 0; `()` without
            cross-scale terms. By default the finest with the coarsest and, with more than two stages, with the second
            coarsest.
        pair_weights (`Sequence[float]`, *optional*): Weight of every cross-scale term; 1 by default.
        temperature (`float`): Temperature of the within-scale terms.
        cross_scale_temperature (`float`, *optional*): Temperature of the cross-scale terms; by default `temperature`.
        detach_coarse (`bool`): Whether the contrast side of a pair gets no gradient.
        ignore_index (`int`): Label that is never sampled; any other label is a class.
        positives (`str`): As in `info_nce_loss`: `"each"`, or `"any"` for classes that may stay several clusters.
        anchor_selection (`str`): `"random"`, or `"hard"` to draw half of the anchors of every class of an image from
            pixels that the network misclassifies, as far as there are enough of them and of the others; their number
            does not change. It needs the `logits` of the network.
        align_corners (`bool`): Whether the cross entropy of the network resizes logits with aligned corners; only for
            hard anchors.
        sampling, min_anchors_per_class, max_anchors_per_class, max_anchors: As in `sample_anchors`, per process.
        gather_anchors (`bool`): Whether to contrast with the anchors of all processes: a batch split over processes
            then yields the loss and the gradients that its anchors yield on one process.
        pseudo_threshold (`float`): Smallest confidence of pixels of unlabeled images that are drawn as anchors.
        pseudo_share (`float`): Largest share of pixels of unlabeled images among the anchors of a stage, in [0, 1).

    `pseudo_draws` has the random numbers for unlabeled images; its `state_dict` belongs into a checkpoint.

    Raises:
        ValueError: If a setting is out of its range, or does not fit the stages.
        TypeError: If a setting has another type. A temperature is a number: it is not trained.

    Source: https://arxiv.org/abs/2203.13409, section 3.
    """

    def __init__(
        self,
        num_labels: int,
        stages: Sequence[int] = (1, 2, 3, 4),
        scale_weights: Sequence[float] | None = None,
        pairs: Sequence[Sequence[int]] | None = None,
        pair_weights: Sequence[float] | None = None,
        temperature: float = 0.1,
        cross_scale_temperature: float | None = None,
        detach_coarse: bool = False,
        ignore_index: int = 255,
        positives: str = "each",
        anchor_selection: str = "random",
        align_corners: bool = False,
        sampling: str = "rarest",
        min_anchors_per_class: int = 5,
        max_anchors_per_class: int = 2500,
        max_anchors: int = 10_000,
        gather_anchors: bool = False,
        pseudo_threshold: float = 0.97,
        pseudo_share: float = 0.5,
    ):
        super().__init__()
        self.num_labels = num_labels
        self.stages = _entries("stages", stages)
        self.scale_weights = _entries(
            "scale_weights", _or_default(scale_weights, _default_scale_weights(len(self.stages)))
        )
        pairs = _entries("pairs", _or_default(pairs, _default_pairs(len(self.stages))))
        self.pairs = tuple(_entries("pairs", pair, "pairs of positions") for pair in pairs)
        self.pair_weights = _entries("pair_weights", _or_default(pair_weights, (1.0,) * len(self.pairs)))
        self.temperature = temperature
        self.cross_scale_temperature = _or_default(cross_scale_temperature, temperature)
        self.detach_coarse = detach_coarse
        self.ignore_index = ignore_index
        self.positives = positives
        self.anchor_selection = anchor_selection
        self.align_corners = align_corners
        self.sampling = sampling
        self.min_anchors_per_class = min_anchors_per_class
        self.max_anchors_per_class = max_anchors_per_class
        self.max_anchors = max_anchors
        self.gather_anchors = gather_anchors
        self.pseudo_threshold = pseudo_threshold
        self.pseudo_share = pseudo_share
        self.pseudo_draws = PseudoDraws()
        self._check_settings()

    @classmethod
    def from_config(cls, config) -> MultiScaleContrastiveLoss:
        """Build the loss from the settings of an `MsctrConfig`, which errors name as the configuration does."""
        settings = {argument: getattr(config, name) for argument, name in _NAMES_IN_CONFIG.items()}
        if config.contrastive_mode != "ms_cs":
            settings |= {"pairs": (), "pair_weights": ()}
        try:
            return cls(**settings)
        except ValueError as error:
            named = re.sub(r"`(\w+)`", lambda match: f"`{_NAMES_IN_CONFIG.get(match[1], match[1])}`", str(error))
            raise ValueError(named) from error

    def forward(
        self,
        features: Sequence[torch.Tensor],
        labels: torch.Tensor,
        project: Sequence[Callable[[torch.Tensor], torch.Tensor]] | None = None,
        generator: torch.Generator | None = None,
        *,
        logits: torch.Tensor | None = None,
        pseudo: PseudoLabeled | None = None,
        all_results: bool = False,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]] | ContrastiveResult:
        """Sample anchors of one batch and contrast them.

        Args:
            features (`Sequence[torch.Tensor]` of shapes `(B, C_s, h_s, w_s)`): One map per stage, finest first.
            labels (`torch.Tensor` of shape `(B, H, W)`, int64): Classes or the ignore index, at any size.
            project (`Sequence[Callable]`, *optional*):
                Function of every stage that projects sampled rows, (N, C_s) -> (N, D); `None` if `features` are
                projections already.
            generator (`torch.Generator`, *optional*): Source of randomness, on the device of `features`.
            logits (`torch.Tensor` of shape `(B, num_labels, h, w)`, *optional*): Class scores of the network at any
                size, without gradient; needed for hard anchors, and otherwise not read.
            pseudo (`PseudoLabeled`, *optional*): Maps of unlabeled images, like `features`, with the classes and the
                confidence of a teacher. Labeled pixels are drawn as without them; then confident pixels are drawn, and
                both are contrasted together.
            all_results (`bool`): Whether to return all that `contrast` does.

        Returns:
            `tuple`: the loss, and every unweighted term by its name, detached.

        Raises:
            ValueError: If shapes do not match, a label is neither a class nor the ignore index, or logits are missing.
            TypeError: If labels are not a tensor of integers, or maps are not floating-point tensors.
        """
        result = self._contrast(features, labels, project, generator, logits, pseudo)
        return result if all_results else (result.loss, result.terms)

    def contrast(
        self,
        features: Sequence[torch.Tensor],
        labels: torch.Tensor,
        project: Sequence[Callable[[torch.Tensor], torch.Tensor]] | None = None,
        generator: torch.Generator | None = None,
        *,
        logits: torch.Tensor | None = None,
        pseudo: PseudoLabeled | None = None,
    ) -> ContrastiveResult:
        """Call the module, and return diagnostics with the loss and its terms."""
        return self(features, labels, project, generator, logits=logits, pseudo=pseudo, all_results=True)

    def extra_repr(self) -> str:
        """Describe the settings, for `print`."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in _NAMES_IN_CONFIG)

    def _sampler(self) -> StageSampler:
        return StageSampler._make(getattr(self, name) for name in StageSampler._fields)

    def _check_settings(self) -> None:
        check_integer("num_labels", self.num_labels)
        if self.num_labels < 2:
            raise ValueError(
                f"`num_labels` must be at least 2, got {self.num_labels}: a single class has nothing to be contrasted "
                "with; give the background a class."
            )
        if not self.stages or len(set(self.stages)) != len(self.stages):
            raise ValueError(f"`stages` must list stages, each once, got {list(self.stages)}.")
        if len(self.scale_weights) != len(self.stages):
            raise ValueError(
                f"`scale_weights` must have one entry per stage {list(self.stages)}, got {list(self.scale_weights)}."
            )
        if len(self.pair_weights) != len(self.pairs):
            raise ValueError(
                f"`pair_weights` must have one entry per pair {_listed(self.pairs)}, got {list(self.pair_weights)}."
            )
        for pair in self.pairs:
            if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= stage < len(self.stages) for stage in pair):
                raise ValueError(
                    f"`pairs` must pair two different positions below {len(self.stages)}, got {list(pair)}."
                )
        check_temperature("temperature", self.temperature)
        check_temperature("cross_scale_temperature", self.cross_scale_temperature)
        check_positives(self.positives)
        if self.anchor_selection not in ("random", "hard"):
            raise ValueError(f"`anchor_selection` must be 'random' or 'hard', got {self.anchor_selection!r}.")
        check_limits(**self._sampler().limits)
        check_pseudo_settings(self.pseudo_threshold, self.pseudo_share)

    def _check_project(self, project: Sequence | None) -> None:
        if project is None:
            return
        count = len(project) if hasattr(project, "__len__") else f"a {type(project).__name__}"
        if count != len(self.stages):
            raise ValueError(
                f"`project` must have one function for each of the `stages` {list(self.stages)}, got {count}."
            )

    def _check_projections(self, rows: Sequence[UnitRows]) -> None:
        for pair in self.pairs:
            fine, coarse = (rows[position].features.shape[1] for position in pair)
            if fine != coarse:
                raise ValueError(
                    f"Stages {' and '.join(str(self.stages[position]) for position in pair)} are contrasted with each "
                    f"other, but have {fine} and {coarse} channels: project all `features` to one number of channels."
                )

    @torch.compiler.disable  # sizes depend on the labels, so every batch would be compiled again
    def _contrast(
        self,
        features: Sequence[torch.Tensor],
        labels: torch.Tensor,
        project: Sequence[Callable[[torch.Tensor], torch.Tensor]] | None,
        generator: torch.Generator | None,
        logits: torch.Tensor | None,
        pseudo: PseudoLabeled | None,
    ) -> ContrastiveResult:
        self._check_project(project)
        anchors, plans, pseudo_plans = self._sampler().draw(features, labels, generator, logits, pseudo)
        if project is not None:
            anchors = [
                stage._replace(features=projection(stage.features))
                for stage, projection in zip(anchors, project, strict=True)
            ]
        rows = [unit_rows(*stage) for stage in anchors]
        self._check_projections(rows)
        terms = self._terms(rows)
        weighted = [
            weight * term for weight, term in zip((*self.scale_weights, *self.pair_weights), terms, strict=True)
        ]
        return ContrastiveResult(
            loss=torch.stack(weighted).sum(),
            terms={name: term.detach() for name, term in zip(self._term_names(), terms, strict=True)},
            cosines=self._cosines(rows),
            facts=self._facts(rows, plans, pseudo_plans),
        )

    def _terms(self, rows: Sequence[UnitRows]) -> list[torch.Tensor]:
        """Compute the within-scale terms of all stages, then the cross-scale terms of all pairs."""
        if self.gather_anchors and num_processes() > 1:
            return self._terms_across_processes(rows, gather_rows(rows, self.num_labels))
        terms = [contrast_within_scale(stage, self.temperature, self.positives) for stage in rows]
        for fine, coarse in self.pairs:
            terms.append(self._across(rows[fine], self._contrast_side(rows[coarse])))
        return terms

    def _terms_across_processes(
        self, rows: Sequence[UnitRows], gathered: Sequence[GatheredRows]
    ) -> list[torch.Tensor]:
        terms = [
            stage.share * contrast_across(own, stage.rows, self.temperature, stage.own_columns, self.positives)
            for own, stage in zip(rows, gathered, strict=True)
        ]
        for fine, coarse in self.pairs:
            contrast = self._contrast_side(gathered[coarse].rows)
            terms.append(gathered[fine].share * self._across(rows[fine], contrast))
        return terms

    def _across(self, anchors: UnitRows, contrast: UnitRows) -> torch.Tensor:
        return contrast_across(anchors, contrast, self.cross_scale_temperature, positives=self.positives)

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

    def _facts(
        self, rows: Sequence[UnitRows], plans: Sequence[SamplingPlan], pseudo_plans: Sequence[SamplingPlan]
    ) -> dict[str, float]:
        facts = {"contrastive/skipped_stages": sum(not stage.class_sizes for stage in rows) / len(rows)}
        for name, stage, plan in zip(self._stage_names(), rows, plans, strict=True):
            facts[f"{name}/anchors"] = float(sum(stage.class_sizes.values()))
            facts[f"{name}/classes"] = float(len(stage.class_sizes))
            if self.anchor_selection == "hard":
                facts[f"{name}/hard_share"] = plan.misclassified / sum(plan.draws) if plan.draws else math.nan
        for name, plan in zip(self._stage_names(), pseudo_plans, strict=False):
            facts[f"{name}/pseudo_anchors"] = float(sum(plan.draws))
        return facts


def _default_scale_weights(num_stages: int) -> tuple[float, ...]:
    return (*DEFAULT_SCALE_WEIGHTS, *DEFAULT_SCALE_WEIGHTS[-1:] * num_stages)[:num_stages]


def _default_pairs(num_stages: int) -> list[tuple[int, int]]:
    """Pair the finest stage with the coarsest and, if there are more than two, with the second coarsest."""
    return [(0, coarse) for coarse in (num_stages - 1, num_stages - 2) if coarse > 0]


def _entries(name: str, values: Any, what: str = "entries") -> tuple:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"`{name}` must be a list of {what}, got {values!r}.")
    return tuple(values)


def _or_default(value, default):
    return default if value is None else value


def _listed(pairs: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(pair) for pair in pairs]
