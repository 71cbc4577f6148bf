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
"""Anchors of all stages of a batch: pixels are counted on the device, planned on the host and drawn on the device.

B = labeled images, K = classes, C_s = channels of a stage; groups of pixels are those of `anchor_sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any, NamedTuple

import torch

from .anchor_sampling import (
    Anchors,
    SamplingPlan,
    check_channel_order,
    check_map,
    count_pairs,
    draw_anchors,
    pair_of_every_pixel,
    plan_draws,
    tell_apart,
)
from .info_nce import refuse_transforms
from .misclassified_pixels import misclassified_pixels
from .pseudo_anchors import PseudoDraws, PseudoLabeled, generator_of, join_anchors, plan_pseudo_draws
from .transfers import beside_queue, hand_over

MAX_LISTED = 5  # values that an error quotes


class StageAnchors(NamedTuple):
    """Anchors of every stage, finest first, and the plans by which they were drawn.

    Args:
        anchors (`list[Anchors]`): Labeled and pseudo-labeled pixels.
        plans (`list[SamplingPlan]`): Draws from labeled images.
        pseudo_plans (`list[SamplingPlan]`): Draws from unlabeled images; empty if the batch has none.
    """

    anchors: list[Anchors]
    plans: list[SamplingPlan]
    pseudo_plans: list[SamplingPlan]


class StageSampler(NamedTuple):
    """Sampler of all stages of a batch, with settings of `MultiScaleContrastiveLoss`, whose docstring explains them.

    Args:
        pseudo_draws (`PseudoDraws`): Random numbers for unlabeled images, which every batch with some moves on.
    """

    num_labels: int
    stages: Sequence[int]
    ignore_index: int
    anchor_selection: str
    align_corners: bool
    sampling: str
    min_anchors_per_class: int
    max_anchors_per_class: int
    max_anchors: int
    pseudo_threshold: float
    pseudo_share: float
    pseudo_draws: PseudoDraws

    @property
    def limits(self) -> dict[str, Any]:
        """Rule and limits of the draws from labeled images, as `plan_draws` takes them."""
        names = ("sampling", "min_anchors_per_class", "max_anchors_per_class", "max_anchors")
        return {name: getattr(self, name) for name in names}

    def draw(
        self,
        features: Sequence[torch.Tensor],
        labels: torch.Tensor,
        generator: torch.Generator | None = None,
        logits: torch.Tensor | None = None,
        pseudo: PseudoLabeled | None = None,
    ) -> StageAnchors:
        """Draw labeled pixels of every stage, then confident pixels of unlabeled images in addition.

        Arguments and errors are those of `MultiScaleContrastiveLoss.forward`.
        """
        self._check_batch(features, labels)
        if pseudo is not None:
            self._check_pseudo(features, pseudo)
        if self.anchor_selection == "hard":
            self._check_logits(logits, labels)
        else:
            logits = None
        refuse_transforms(
            labels, *features, *([] if logits is None else [logits]), *([] if pseudo is None else pseudo.features)
        )
        groups, counts = self._count(features, labels, logits, pseudo)
        num_stages = len(self.stages)
        anchors, plans = self._draw_labeled(
            features, groups[:num_stages], counts[:num_stages], len(labels), logits is not None, generator
        )
        if pseudo is None:
            return StageAnchors(anchors, plans, [])
        added, pseudo_plans = self._draw_pseudo_labeled(pseudo, groups[num_stages:], counts[num_stages:], plans)
        joined = [join_anchors(stage, self.num_labels) for stage in zip(anchors, added, strict=True)]
        return StageAnchors(joined, plans, pseudo_plans)

    def _count(
        self,
        features: Sequence[torch.Tensor],
        labels: torch.Tensor,
        logits: torch.Tensor | None,
        pseudo: PseudoLabeled | None,
    ) -> tuple[list[torch.Tensor], list[list[list[int]]]]:
        """Compute the groups of pixels of every stage and their sizes by image, first labeled ones, then the others.

        The sizes of all stages reach the host in one synchronization. With `logits` there are two groups of pixels in
        every class of a labeled image, those that are classified right and the others. Without them, sizes depend on
        labels alone: where these are marked as complete, the host does not wait for the maps.
        """
        read = [labels] if pseudo is None else [labels, pseudo.labels, pseudo.confidence]
        with beside_queue(*read) if logits is None else nullcontext():
            classes = labels.long()
            groups = self._groups(features, classes, logits)
            per_image = self.num_labels * (1 if logits is None else 2)
            sizes = [count_pairs(stage, len(labels), per_image) for stage in groups]
            unknown = [self._is_unknown(classes).sum()]
            if pseudo is not None:
                confident = pseudo.confident_labels(self.pseudo_threshold, self.ignore_index)
                of_unlabeled = self._groups(pseudo.features, confident, None)
                sizes += [count_pairs(stage, len(confident), self.num_labels) for stage in of_unlabeled]
                groups += of_unlabeled
                unknown.append(self._is_unknown(pseudo.labels).sum())
            numbers = iter(torch.cat([torch.stack(unknown), *(size.flatten() for size in sizes)]).tolist())
        hand_over(groups)
        for name, values in zip(("labels", "pseudo.labels"), read[:2], strict=False):
            if next(numbers):
                self._refuse_unknown(name, values)
        return groups, [[list(islice(numbers, size.shape[1])) for _ in range(len(size))] for size in sizes]

    def _draw_labeled(
        self,
        features: Sequence[torch.Tensor],
        groups: Sequence[torch.Tensor],
        counts: Sequence[Sequence[Sequence[int]]],
        num_images: int,
        apart: bool,
        generator: torch.Generator | None,
    ) -> tuple[list[Anchors], list[SamplingPlan]]:
        """Plan and draw the labeled anchors of every stage; `apart` tells misclassified pixels apart."""
        num_groups = num_images * self.num_labels * (2 if apart else 1)
        anchors, plans = [], []
        for stage, stage_groups, of_images in zip(features, groups, counts, strict=True):
            plans.append(plan_draws(of_images, **self.limits, misclassified_apart=apart))
            anchors.append(draw_anchors(stage, stage_groups, num_groups, plans[-1], generator))
        return anchors, plans

    def _draw_pseudo_labeled(
        self,
        pseudo: PseudoLabeled,
        groups: Sequence[torch.Tensor],
        counts: Sequence[Sequence[Sequence[int]]],
        labeled_plans: Sequence[SamplingPlan],
    ) -> tuple[list[Anchors], list[SamplingPlan]]:
        """Plan and draw the confident pixels of every stage, whose number depends on the labeled ones."""
        limits = {name: getattr(self, name) for name in ("min_anchors_per_class", "max_anchors")}
        anchors, plans = [], []
        for stage, stage_groups, of_images, labeled in zip(
            pseudo.features, groups, counts, labeled_plans, strict=True
        ):
            numbers = self.pseudo_draws.next()
            plans.append(plan_pseudo_draws(of_images, labeled, numbers, share=self.pseudo_share, **limits))
            generator = generator_of(numbers, stage.device)
            num_groups = len(stage) * self.num_labels
            anchors.append(draw_anchors(stage, stage_groups, num_groups, plans[-1], generator))
        return anchors, plans

    def _groups(
        self, features: Sequence[torch.Tensor], labels: torch.Tensor, logits: torch.Tensor | None
    ) -> list[torch.Tensor]:
        pairs = [pair_of_every_pixel(labels, stage, self.num_labels, self.ignore_index) for stage in features]
        if logits is None:
            return pairs
        misclassified = misclassified_pixels(logits, labels, features, self.align_corners)
        num_pairs = len(labels) * self.num_labels
        return [tell_apart(*stage, num_pairs) for stage in zip(pairs, misclassified, strict=True)]

    def _is_unknown(self, labels: torch.Tensor) -> torch.Tensor:
        return ((labels < 0) | (labels >= self.num_labels)) & (labels != self.ignore_index)

    def _refuse_unknown(self, name: str, labels: torch.Tensor) -> None:
        values = labels[self._is_unknown(labels)].unique().tolist()
        listed = ", ".join(map(str, values[:MAX_LISTED])) + (", ..." if len(values) > MAX_LISTED else "")
        raise ValueError(
            f"`{name}` has values that are neither classes, 0 to {self.num_labels - 1}, nor `ignore_index`, "
            f"{self.ignore_index}: {listed}."
        )

    def _check_batch(self, features: Sequence[torch.Tensor], labels: torch.Tensor) -> None:
        if isinstance(features, (torch.Tensor, dict)) or not hasattr(features, "__len__"):
            remedy = "[features]" if isinstance(features, torch.Tensor) else "list(features)"
            remedy = "list(features.values())" if isinstance(features, dict) else remedy
            raise TypeError(f"`features` must be a list with one map per stage, got one object: pass `{remedy}`.")
        if len(features) != len(self.stages):
            raise ValueError(
                f"`features` must have one map for each of the `stages` {list(self.stages)}, got {len(features)}."
            )
        for position, stage in enumerate(features):
            check_map(f"features[{position}]", stage, labels)
        check_channel_order("features", features, labels)

    def _check_pseudo(self, features: Sequence[torch.Tensor], pseudo: PseudoLabeled) -> None:
        if len(pseudo.features) != len(features):
            raise ValueError(
                f"`pseudo.features` must have one map for each of the `stages` {list(self.stages)}, got "
                f"{len(pseudo.features)}."
            )
        for position, (stage, labeled) in enumerate(zip(pseudo.features, features, strict=True)):
            name = f"pseudo.features[{position}]"
            check_map(name, stage, pseudo.labels)
            if stage.shape[1] != labeled.shape[1]:
                raise ValueError(
                    f"`{name}` must have the {labeled.shape[1]} channels of `features[{position}]`, got "
                    f"{stage.shape[1]}."
                )
        if pseudo.confidence.shape != pseudo.labels.shape:
            raise ValueError(
                f"`pseudo.confidence` must have the shape of `pseudo.labels`, {tuple(pseudo.labels.shape)}, got "
                f"{tuple(pseudo.confidence.shape)}."
            )

    def _check_logits(self, logits: torch.Tensor | None, labels: torch.Tensor) -> None:
        if logits is None:
            raise ValueError(
                "`anchor_selection='hard'` needs the class scores of the network: pass `logits` (B, num_labels, h, w)."
            )
        shape, expected = tuple(logits.shape), (len(labels), self.num_labels)
        if len(shape) != 4 or shape[:2] != expected or logits.device != labels.device:
            raise ValueError(
                f"`logits` must be (B, num_labels, h, w) with {expected} on {labels.device}, as `labels`, got {shape} "
                f"on {logits.device}."
            )
