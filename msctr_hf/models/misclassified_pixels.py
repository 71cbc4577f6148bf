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
"""Misclassified pixels of the stages: those at which the network predicts another class than the label.

The cross entropy compares labels with logits that are resized to the size of the labels. A stage takes its labels at
the nearest of these positions, so the prediction of a pixel is computed there, and nowhere else.

B = images, K = classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from .anchor_sampling import nearest_positions
from .transfers import to_device

_VALUES_AT_ONCE = 2**18  # logits that a CPU reads at once, so that they stay in the cache of a core
_HOST = torch.device("cpu")


@torch.no_grad()
def misclassified_pixels(
    logits: torch.Tensor, labels: torch.Tensor, features: Sequence[torch.Tensor], align_corners: bool = False
) -> list[torch.Tensor]:
    """Find the pixels of every stage at which another class has a larger logit than the label.

    With usual strides, the positions of a coarse stage are among those of a finer one, whose result it shares.

    Args:
        logits (`torch.Tensor` of shape `(B, K, h', w')`): Class scores at any size.
        labels (`torch.Tensor` of shape `(B, H, W)`, int64): Classes; at other values the result has no meaning.
        features (`Sequence[torch.Tensor]` of shapes `(B, C_s, h_s, w_s)`): Maps of the stages, finest first.
        align_corners (`bool`): Whether the cross entropy resizes logits with aligned corners.

    Returns:
        `list[torch.Tensor]`: bool, (B, h_s, w_s) for every stage.
    """
    found: list[tuple[list[int], list[int], torch.Tensor]] = []
    for stage in features:
        rows, columns = (
            nearest_positions(source, target, _HOST).tolist()
            for source, target in zip(labels.shape[-2:], stage.shape[-2:], strict=True)
        )
        among = (each for each in found if set(rows) <= set(each[0]) and set(columns) <= set(each[1]))
        known_rows, known_columns, known = next(among, (rows, columns, None))
        if known is None:
            known = _misclassified_at(logits, labels, rows, columns, align_corners)
        elif known.shape[1:] != stage.shape[2:]:
            known = _select(known, [known_rows.index(row) for row in rows], [known_columns.index(x) for x in columns])
        found.append((rows, columns, known))
    return [known for _, _, known in found]


def _misclassified_at(
    logits: torch.Tensor, labels: torch.Tensor, rows: Sequence[int], columns: Sequence[int], align_corners: bool
) -> torch.Tensor:
    """Find misclassified pixels at the product of some rows and columns of the labels."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    stage_labels = _select(labels, rows, columns).clamp(0, logits.shape[1] - 1)
    y = _in_logits(rows, logits.shape[2], labels.shape[1], align_corners)
    x = _in_logits(columns, logits.shape[3], labels.shape[2], align_corners)
    x = to_device(_normalized(x, logits.shape[3]).to(dtype), logits.device)
    places = y.tolist()
    images = 1 if logits.device.type == "cpu" else len(logits)
    of_images = []
    for some_logits, some_labels in zip(logits.split(images), stage_labels.split(images), strict=True):
        strips = []
        for strip in _strips(logits, len(rows)):
            first, last = int(places[strip.start]), min(int(places[strip.stop - 1]) + 2, logits.shape[2])
            some_y = to_device(_normalized(y[strip] - first, last - first).to(dtype), logits.device)
            grid = torch.stack(torch.meshgrid(x, some_y, indexing="xy"), dim=-1)  # (rows, columns, 2)
            # a copy of these rows, since pixels of many whole maps would compete for the same places in a cache
            source = some_logits[:, :, first:last].to(dtype, memory_format=torch.contiguous_format).contiguous()
            scores = F.grid_sample(source, grid.expand(len(source), -1, -1, -1), align_corners=False)  # bilinear
            of_label = scores.gather(1, some_labels[:, None, strip])[:, 0]
            strips.append(~(of_label >= scores.amax(1)))  # so that NaN is misclassified
        of_images.append(torch.cat(strips, dim=1))
    return torch.cat(of_images)


def _select(maps: torch.Tensor, rows: Sequence[int], columns: Sequence[int]) -> torch.Tensor:
    """Select rows and columns of maps (B, H, W)."""
    places = to_device(torch.tensor([*rows, *columns]), maps.device)
    return maps[:, places[: len(rows), None], places[len(rows) :]]


def _in_logits(positions: Sequence[int], size: int, of_labels: int, align_corners: bool) -> torch.Tensor:
    """Return where positions along a side of the labels lie along that side of the logits: float64, on the host."""
    places = torch.tensor(positions, dtype=torch.float64)
    if align_corners:
        return places * ((size - 1) / max(of_labels - 1, 1))
    return ((places + 0.5) * (size / of_labels) - 0.5).clamp(0, size - 1)


def _normalized(places: torch.Tensor, size: int) -> torch.Tensor:
    """Return places as `F.grid_sample` counts them, from -1 to 1 between the edges of the outer pixels."""
    return (2 * places + 1) / size - 1


def _strips(logits: torch.Tensor, num_rows: int) -> Iterator[slice]:
    """Divide the rows of a stage: on a CPU so that a strip reads few logits, elsewhere not."""
    step = num_rows
    if logits.device.type == "cpu":
        _, classes, height, width = logits.shape
        step = max(1, _VALUES_AT_ONCE // (classes * width) * num_rows // height)
    for first in range(0, num_rows, step):
        yield slice(first, min(first + step, num_rows))
