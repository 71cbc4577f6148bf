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
"""The processes of a distributed training, seen from the losses."""

from __future__ import annotations

import torch
import torch.distributed as dist


def num_processes() -> int:
    """Return the number of processes that train together, 1 without distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(value: torch.Tensor) -> torch.Tensor:
    """Sum a tensor without gradient over all processes, which must all call this; the host does not wait for it."""
    return _all_reduced(value) if num_processes() > 1 else value


@torch.compiler.disable  # a collective operation of a compiled graph would need its functional form
def _all_reduced(value: torch.Tensor) -> torch.Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total
