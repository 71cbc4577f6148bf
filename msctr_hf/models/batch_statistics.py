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
"""Statistics of normalization layers, which a pass of other images leaves as they are.

Other buffers take the place of the running statistics meanwhile. Without any, a layer would save fewer tensors for its
gradient, and activation checkpointing, which does not know why, refuses to compute it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_Buffers = dict[str, torch.Tensor | None]


@contextmanager
def unchanged_statistics(network: nn.Module) -> Iterator[None]:
    """Normalize with the statistics of the batch within the block, and keep none of them.

    Layers in training mode neither move their running statistics nor count the batch. The buffers are not touched, so
    the gradients of passes before and after the block stay valid. Layers in evaluation mode, such as frozen ones, work
    as always.
    """
    kept = [(layer, _replace_buffers(layer)) for layer in _tracking(network)]
    try:
        yield
    finally:
        for layer, buffers in kept:
            layer._buffers.update(buffers)


@torch.compiler.disable  # hooks of the host
def unchanged_statistics_in_backward(network: nn.Module, loss: torch.Tensor) -> None:
    """Keep no statistics of passes that are computed again for the gradient of a loss.

    Activation checkpointing does so in the backward pass, when the block of `unchanged_statistics` has ended. Without
    this, the second pass of its images would be kept. Hooks are set whether or not there is such checkpointing: it may
    be switched on in any module, and to ask all modules takes as long as the hooks of the normalization layers.
    """

    def watch(_: torch.Tensor) -> None:
        handles = [handle for layer in _tracking(network) for handle in _keep_nothing_in_backward(layer)]
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(lambda: [handle.remove() for handle in handles])  # at the end of this backward pass

    if loss.requires_grad:
        loss.register_hook(watch)


def _keep_nothing_in_backward(layer: _NormBase) -> tuple[Any, Any]:
    """Replace the statistics of a layer while it is called in a backward pass; return the handles of the hooks.

    Hooks that are left over after an error in the backward pass do nothing in a forward pass.
    """
    kept: _Buffers = {}

    def before(*_: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            kept.update(_replace_buffers(layer))

    def after(*_: Any) -> None:
        layer._buffers.update(kept)
        kept.clear()

    return layer.register_forward_pre_hook(before), layer.register_forward_hook(after, always_call=True)


def _tracking(network: nn.Module) -> list[_NormBase]:
    return [
        layer
        for layer in network.modules()
        if isinstance(layer, _NormBase) and layer.training and layer.track_running_stats
    ]


def _replace_buffers(layer: _NormBase) -> _Buffers:
    """Give a layer buffers of any content for its statistics, which it only writes; return the former ones."""
    former = dict(layer._buffers)
    layer._buffers.update({name: None if each is None else torch.empty_like(each) for name, each in former.items()})
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.zero_()  # without a momentum, a layer divides by this number
    return former
