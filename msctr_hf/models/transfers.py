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
"""Work of the host for a device, and copies between them, for which nobody waits longer than needed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

_MARKS = WeakTensorKeyDictionary()  # tensor -> (its version, event in the queue of its GPU at which it is complete)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to a device, in the order of the work that is queued there.

    For a GPU it is copied through page-locked memory. From ordinary memory, CUDA copies only small tensors (64 KB)
    without waiting for the device, even if it is asked not to wait; the places of 10,000 anchors take 160 KB.
    """
    if device.type == "cuda" and tensor.numel():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def repeat_on_host(values: Sequence[int], times: Sequence[int]) -> torch.Tensor:
    """Repeat integers on the host, each its number of times, on one thread: (N,) int64.

    `repeat_interleave` wakes all threads of PyTorch for a handful of entries: on 16 cores that took 5 to 15 ms a step.
    """
    return torch.from_numpy(np.repeat(np.array(values, dtype=np.int64), np.array(times, dtype=np.int64)))


def expand_runs(starts: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Concatenate `arange(start, start + size)` for all starts and sizes (R,) of the host: (sum of sizes,) int64."""
    return torch.arange(int(sizes.sum())) + repeat_on_host((starts - sizes.cumsum(0) + sizes).tolist(), sizes.tolist())


@torch.compiler.disable  # an event would be a constant of a compiled graph
def mark_complete(tensor: torch.Tensor) -> None:
    """Remember that a tensor is complete once the work is done that is queued on its GPU now; elsewhere, do nothing.

    What is computed from it by `beside_queue` need not wait for the work that is queued later, such as a whole
    forward pass.
    """
    if tensor.is_cuda and not tensor.is_inference():  # an inference tensor has no version
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(tensor.device))
        _MARKS[tensor] = (tensor._version, event)


@contextlib.contextmanager
def beside_queue(*tensors: torch.Tensor) -> Iterator[None]:
    """Compute on the device of some tensors from these alone, beside the work queued since they were marked complete.

    A host that reads a result inside the block then waits for the block, and not for all that is queued: it goes on
    queueing while the device is busy. Without a mark, or after a change of a tensor, the block takes its place in the
    queue. Tensors that are used after the block belong into `hand_over`.
    """
    marks = [_MARKS.get(each, (None, None)) if each.is_cuda else (None, None) for each in tensors]
    if any(event is None or version != each._version for each, (version, event) in zip(tensors, marks, strict=True)):
        yield
        return
    stream = _urgent_stream(tensors[0].device)
    for _, event in marks:
        stream.wait_event(event)
    with torch.cuda.stream(stream):
        yield


def hand_over(tensors: Iterable[torch.Tensor]) -> None:
    """Keep the memory of tensors from a block of `beside_queue` until the queue, which uses them now, is done."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


@functools.cache
def _urgent_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # its small kernels go before those of the forward pass
