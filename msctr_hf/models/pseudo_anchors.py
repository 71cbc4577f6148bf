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
"""Anchors from images without labels: pixels of which a teacher is confident, in addition to the labeled anchors.

U = unlabeled images, K = classes; a *pair* is one class of one image, as in `anchor_sampling`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .anchor_sampling import Anchors, SamplingPlan, plan_of_pairs, qualifying_pairs
from .transfers import expand_runs, to_device


class PseudoLabeled(NamedTuple):
    """Feature maps of unlabeled images, and what a teacher says about them.

    Args:
        features (`Sequence[torch.Tensor]` of shapes `(U, C_s, h_s, w_s)`): One map per stage, finest first, with the
            channels of the maps of the labeled images.
        labels (`torch.Tensor` of shape `(U, H, W)`, int64): Classes or the ignore index, at any size.
        confidence (`torch.Tensor` of shape `(U, H, W)`): Confidence of the teacher.
    """

    features: Sequence[torch.Tensor]
    labels: torch.Tensor
    confidence: torch.Tensor

    def confident_labels(self, threshold: float, ignore_index: int) -> torch.Tensor:
        """Replace the labels of pixels whose confidence is below a threshold by the ignore index."""
        return self.labels.long().where(self.confidence >= threshold, ignore_index)


class PseudoDraws:
    """Random numbers for the draws of pseudo-labeled anchors, apart from all others of a run.

    Every draw has a generator of its own, which follows from a seed and the number of draws before. The seed is that
    of the default generator when the first draw is made, whose sequence is not changed.
    """

    def __init__(self) -> None:
        self.seed: int | None = None
        self.drawn = 0

    def next(self) -> random.Random:
        """Return the random numbers of the next draw, on the host."""
        if self.seed is None:
            self.seed = torch.initial_seed()
        self.drawn += 1
        return random.Random(f"{self.seed}, draw {self.drawn}")

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the number of draws, for a checkpoint."""
        return {"seed": self.seed, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the draws of a checkpoint."""
        self.seed, self.drawn = state["seed"], state["drawn"]


def generator_of(numbers: random.Random, device: torch.device) -> torch.Generator:
    """Make a generator on a device from random numbers of the host."""
    return torch.Generator(device).manual_seed(numbers.getrandbits(63))


def check_pseudo_settings(threshold: float, share: float) -> None:
    """Raise unless the threshold is a probability and the share leaves room for labeled anchors."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"`pseudo_threshold` must be a probability in [0, 1], got {threshold}.")
    if not 0 <= share < 1:
        raise ValueError(f"`pseudo_share` must be in [0, 1), got {share}.")


def plan_pseudo_draws(
    counts: Sequence[Sequence[int]],
    labeled: SamplingPlan,
    numbers: random.Random,
    *,
    share: float,
    min_anchors_per_class: int,
    max_anchors: int,
) -> SamplingPlan:
    """Decide on the host how many pixels to draw from every pair of an unlabeled image and a class.

    A pair gives as many pixels as the labeled pair with the most draws, if it has as many. Pairs are then dropped at
    random, until the rest are at most `share` of all anchors, and all anchors at most `max_anchors`. Without labeled
    anchors there are none.

    Args:
        counts (`Sequence[Sequence[int]]`): Confident pixels of every pair, by image and class.
        labeled (`SamplingPlan`): Draws from the labeled images of this stage.
        numbers (`random.Random`): Source of randomness.
        share (`float`): Largest share of pseudo-labeled anchors among the anchors, in [0, 1).
        min_anchors_per_class (`int`): Number of confident pixels that a pair needs to qualify.
        max_anchors (`int`): Largest number of anchors of the stage.
    """
    if not labeled.draws:
        return plan_of_pairs([], 0, 0)
    num_labeled = sum(labeled.draws)
    # the number that is added keeps 0.6 / 0.4 = 1.4999999999999998 from losing an anchor
    room = min(math.floor(share / (1 - share) * num_labeled + 1e-6), max_anchors - num_labeled)
    qualifying = qualifying_pairs(counts, min_anchors_per_class)
    numbers.shuffle(qualifying)
    kept, drawn = [], 0
    for label, image, available in qualifying:
        drawn += min(available, labeled.largest)
        if drawn > room:
            break
        kept.append((label, image, available))
    return plan_of_pairs(sorted(kept), labeled.largest, len(counts[0]))


def join_anchors(sets: Sequence[Anchors], num_labels: int) -> Anchors:
    """Join sets of anchors, (N_i, C) each, to one that is sorted by class and then by set: (sum of N_i, C)."""
    sizes = torch.tensor([[each.class_sizes.get(label, 0) for label in range(num_labels)] for each in sets])
    ends = sizes.flatten().cumsum(0).view_as(sizes)  # rows of the first set come first, each set is sorted by class
    order = expand_runs((ends - sizes).T.flatten(), sizes.T.flatten())
    features, labels = (torch.cat(parts) for parts in ([s.features for s in sets], [s.labels for s in sets]))
    order = to_device(order, labels.device)
    present = {label: size for label, size in enumerate(sizes.sum(0).tolist()) if size > 0}
    return Anchors(features[order], labels[order], present)
