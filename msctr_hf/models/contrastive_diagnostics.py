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
"""Mean cosines of the positive and negative pairs of a contrastive term.

Sums over pairs follow from one sum of rows per class, in linear instead of quadratic time: with the class sums s_k of
unit rows, the cosines of all pairs within a class add up to |s_k|^2, and the cosines of all pairs to |sum of s_k|^2.
"""

from __future__ import annotations

import math

import torch

from .info_nce import UnitRows


def class_sums(rows: UnitRows, num_labels: int) -> torch.Tensor:
    """Sum the unit rows of every class: (K, D), detached."""
    features = rows.features.detach()
    return features.new_zeros(num_labels, features.shape[1]).index_add_(0, rows.labels, features)


def mean_cosines(
    sums: torch.Tensor,
    class_sizes: dict[int, int],
    contrast_sums: torch.Tensor | None = None,
    contrast_sizes: dict[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the mean cosine of the positive pairs and of the negative pairs of a term; NaN without such pairs.

    Both are scalars on the device of `sums`, also without pairs, so that an output has one structure for any batch.

    Args:
        sums (`torch.Tensor` of shape `(K, D)`): Class sums of the anchors, from `class_sums`.
        class_sizes (`dict[int, int]`): Class -> number of anchors.
        contrast_sums, contrast_sizes (*optional*): Class sums and sizes of the contrast set; `None` for a within-scale
            term, which contrasts the anchors with each other.
    """
    own_pairs = 0
    if contrast_sums is None:
        contrast_sums, contrast_sizes = sums, class_sizes
        own_pairs = sum(class_sizes.values())  # every row has the cosine 1 with itself, which is not a pair
    same_class = sum(size * contrast_sizes.get(label, 0) for label, size in class_sizes.items())
    negative_pairs = sum(class_sizes.values()) * sum(contrast_sizes.values()) - same_class
    positive_pairs = same_class - own_pairs
    same_class_sum = (sums * contrast_sums).sum()
    all_sum = (sums.sum(0) * contrast_sums.sum(0)).sum()  # inside autocast `@` would lose digits
    return (
        (same_class_sum - own_pairs) / positive_pairs if positive_pairs else sums.new_full((), math.nan),
        (all_sum - same_class_sum) / negative_pairs if negative_pairs else sums.new_full((), math.nan),
    )
