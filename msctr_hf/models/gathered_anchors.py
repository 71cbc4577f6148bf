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
"""Anchors of all processes as one contrast set, so that a batch split over processes has the loss of one process.

Every process contrasts its own anchors with the anchors of all. With G anchors on all processes, the term of a process
is `processes / G * sum of its l_i`. The mean of the terms over the processes is then the term of a single process that
holds all anchors, and so are the gradients, of which distributed data parallel training takes the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .info_nce import UnitRows
from .process_group import num_processes
from .transfers import expand_runs, repeat_on_host, to_device


class GatheredRows(NamedTuple):
    """Rows of one stage from all processes.

    Args:
        rows (`UnitRows`): Rows of all processes, sorted by class.
        own_columns (`torch.Tensor` of shape `(N,)`, int64): Positions of the rows of this process among them.
        share (`float`): Weight of the mean over the anchors of this process: processes * own rows / all rows, or 0
            without rows.
    """

    rows: UnitRows
    own_columns: torch.Tensor
    share: float


def gather_rows(stages: Sequence[UnitRows], num_labels: int) -> list[GatheredRows]:
    """Gather the rows of every stage from all processes; the gradient of a row flows back to its process.

    All processes must call this function, even those without rows, because its operations are collective: gathering
    the class sizes (for which the host waits) and the rows, and summing their gradients in the backward pass.

    Args:
        stages (`Sequence[UnitRows]`): Rows of this process, one entry per stage; their number may differ
            between processes.
        num_labels (`int`): Number of classes.
    """
    sizes = _class_sizes_of_all(stages, num_labels)  # (processes, S, K)
    most = sizes.sum(2).amax(0).clamp_min(1).tolist()  # per stage, since a collective operation needs equal sizes
    padded = [
        F.pad(rows.features, (0, 0, 0, num_rows - len(rows.features)))
        for rows, num_rows in zip(stages, most, strict=True)
    ]
    gathered = _AllGather.apply(torch.cat([rows.flatten() for rows in padded]))
    stage_buffers = gathered.split([rows.numel() for rows in padded], dim=1)
    return [
        _sort_by_class(buffer.reshape(-1, rows.shape[1]), sizes[:, stage])
        for stage, (buffer, rows) in enumerate(zip(stage_buffers, padded, strict=True))
    ]


def _class_sizes_of_all(stages: Sequence[UnitRows], num_labels: int) -> torch.Tensor:
    """Gather the class sizes of all stages and processes: (processes, S, K) int64, on the host."""
    sizes = torch.zeros(len(stages), num_labels, dtype=torch.int64)
    for stage, rows in zip(sizes, stages, strict=True):
        stage[list(rows.class_sizes)] = torch.tensor(list(rows.class_sizes.values()), dtype=torch.int64)
    gathered = sizes.new_empty(num_processes() * sizes.numel(), device=stages[0].features.device)
    dist.all_gather_into_tensor(gathered, to_device(sizes.flatten(), gathered.device))
    return gathered.view(-1, *sizes.shape).cpu()


def _sort_by_class(padded_rows: torch.Tensor, sizes: torch.Tensor) -> GatheredRows:
    """Sort the rows of one stage by class, then by process.

    Args:
        padded_rows (`torch.Tensor` of shape `(processes * rows with padding, D)`):
            Rows of one process after the other, each sorted by class.
        sizes (`torch.Tensor` of shape `(processes, K)`, int64): Number of rows of every class on every process; on the
            host.
    """
    processes, num_labels = sizes.shape
    offsets = torch.arange(processes)[:, None] * (len(padded_rows) // processes)
    first = offsets + sizes.cumsum(1) - sizes  # (processes, K): first row of a class in `padded_rows`
    run_sizes = sizes.T.flatten()  # (K * processes,), class by class
    target = (run_sizes.cumsum(0) - run_sizes).view(num_labels, processes)  # first row in the result
    order = expand_runs(first.T.flatten(), run_sizes)
    own = dist.get_rank()
    own_columns = expand_runs(target[:, own], sizes[own])
    per_class = sizes.sum(0)
    labels = repeat_on_host(range(num_labels), per_class.tolist())
    device = padded_rows.device
    order, labels = to_device(torch.stack([order, labels]), device)
    rows = UnitRows(
        padded_rows[order], labels, {label: size for label, size in enumerate(per_class.tolist()) if size > 0}
    )
    share = processes * len(own_columns) / max(len(labels), 1)
    return GatheredRows(rows, to_device(own_columns, device), share)


class _AllGather(torch.autograd.Function):
    """Differentiable gather of a buffer (L,) of every process: (processes, L); backward sums gradients of all."""

    @staticmethod
    def forward(ctx, buffer: torch.Tensor) -> torch.Tensor:
        gathered = buffer.new_empty(num_processes() * len(buffer))
        dist.all_gather_into_tensor(gathered, buffer)
        return gathered.view(-1, len(buffer))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gathered_grad: torch.Tensor) -> torch.Tensor:
        grad = gathered_grad.new_empty(gathered_grad.shape[1])
        dist.reduce_scatter_tensor(grad, gathered_grad.flatten())
        return grad
