"""Guard against numbers that are not finite: the device skips the step, and the host learns of it one step later.

The host does not wait for the device. A GPU works through a queue that the host fills; if the host read the loss of
every step to check that it is finite, the queue would run empty and the GPU would idle until the host fills it again.
So the decision is made on the device, its flags are copied to the host in the background, and the host reads them when
the next step is in the queue. The forward pass of a skipped step has updated the statistics of the normalization
layers, which may no longer be finite, so these are copied before every step and restored on the device as well: what
comes after a skipped step never sees them, whenever the host learns of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..data.loaders import image_ids
from .devices import SHARDED


class Faulty(NamedTuple):
    """Cause of a skipped step: the terms that were not finite and the images of the step, over all processes."""

    terms: list[str]
    images: list[str]


class Verdict(NamedTuple):
    """Outcome of one step, equal in all processes: why it was skipped, if it was, and whether to stop."""

    step: int
    faulty: Faulty | None
    stop: bool


class Outcome(NamedTuple):
    """Result of `StepGuard.check` for the training loop."""

    stop: bool  # a signal told one of the processes to stop; true in all processes after the same step


class TooManySkippedSteps(Exception):
    """Exception for too many skipped steps in a row.

    Args:
        verdict (`Verdict`): Outcome of the last step.
        in_a_row (`int`): Number of skipped steps in a row.
    """

    def __init__(self, verdict: Verdict, in_a_row: int):
        super().__init__(f"{in_a_row} steps in a row were skipped, up to step {verdict.step}")
        self.verdict = verdict
        self.in_a_row = in_a_row


@dataclass
class _PendingFlags:
    """Flags of a step that are being copied to the host, with the data to report a skipped step."""

    step: int
    flags: torch.Tensor
    arrived: torch.cuda.Event | None
    terms: dict[str, torch.Tensor]
    images: list[torch.Tensor]


class _Statistics:
    """Buffers of a network of one dtype, with a copy of them.

    The copy is one tensor, so that a choice between it and the buffers takes one kernel instead of one per buffer.
    """

    def __init__(self, buffers: list[torch.Tensor]):
        self.buffers = buffers
        self._before, self._after = torch.cat([buffer.detach().flatten() for buffer in buffers]).repeat(2, 1)
        self._parts = [self._split(copy) for copy in (self._before, self._after)]

    def _split(self, copy: torch.Tensor) -> list[torch.Tensor]:
        parts = copy.split([buffer.numel() for buffer in self.buffers])
        return [part.view(buffer.shape) for part, buffer in zip(parts, self.buffers, strict=True)]

    @torch.no_grad()
    def save(self) -> None:
        torch._foreach_copy_(self._parts[0], self.buffers)

    @torch.no_grad()
    def restore_if(self, faulty: torch.Tensor) -> None:
        """Restore what was saved if a flag on the device is not 0; the host does not wait for it."""
        torch._foreach_copy_(self._parts[1], self.buffers)
        torch.where(faulty > 0, self._before, self._after, out=self._after)
        torch._foreach_copy_(self.buffers, self._parts[1])


class StepGuard:
    """Guard that keeps numbers that are not finite out of weights, optimizer and statistics, and counts skipped steps.

    Args:
        accelerator (`Accelerator`): Processes, which skip a step together.
        optimizer: Optimizer from `Accelerator.prepare`; a fused one skips without waiting for the host.
        network (`nn.Module`): Network whose buffers are restored.
        max_skipped (`int`, *optional*): Number of skipped steps in a row that raises `TooManySkippedSteps`.
        report (`Callable`, *optional*): Called with the outcome of every skipped step.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: Any,
        network: nn.Module,
        *,
        max_skipped: int | None = None,
        report: Callable[[Verdict], None] | None = None,
    ):
        self.accelerator = accelerator
        self.optimizer = optimizer
        self.max_skipped = max_skipped
        self.report = report
        self.skipped_in_a_row = 0
        inner = optimizer.optimizer
        self.skips_on_device = (
            getattr(inner, "_step_supports_amp_scaling", False) and accelerator.distributed_type not in SHARDED
        )
        if self.skips_on_device:
            _start_momentum(inner)
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for buffer in network.buffers():
            if all(stride or size < 2 for size, stride in zip(buffer.shape, buffer.stride(), strict=True)):
                by_dtype.setdefault(buffer.dtype, []).append(buffer)  # an expanded tensor cannot be written to
        self.statistics = [_Statistics(buffers) for buffers in by_dtype.values()]
        self._pending: deque[_PendingFlags] = deque()
        self._begin()

    def _begin(self) -> None:
        self._not_finite = torch.zeros((), device=self.accelerator.device)
        self._terms: dict[str, torch.Tensor] = {}
        self._images: list[torch.Tensor] = []

    def before_forward(self) -> None:
        """Copy the normalization statistics before the first batch of a step, to restore them if it is skipped."""
        if not self._images:
            for statistics in self.statistics:
                statistics.save()

    def add_batch(self, terms: dict[str, torch.Tensor], image_id: torch.Tensor) -> None:
        """Check the loss of a batch on the device; a step may have several batches."""
        self._not_finite = self._not_finite + (~terms["loss"].isfinite()).float()
        self._terms = {name: self._terms[name] + terms[name] for name in terms} if self._terms else dict(terms)
        self._images.append(image_id)

    def update(self, step: int, grad_norm: torch.Tensor | None, *, stop: bool) -> None:
        """Update the weights, or restore the statistics if a loss or the gradient is not finite in any process.

        Args:
            step (`int`): Number of the step.
            grad_norm (`torch.Tensor`, *optional*): Norm of the whole gradient, if the launcher reports it.
            stop (`bool`): Whether this process was told to stop.
        """
        flags = torch.zeros(2, device=self.accelerator.device)  # (not finite, told to stop)
        flags[0] = self._not_finite
        if isinstance(grad_norm, torch.Tensor):
            flags[0] += (~grad_norm.detach().isfinite()).float()
        if stop:
            flags[1] = 1.0
        if self.accelerator.num_processes > 1:
            # one small exchange for both flags: processes must skip and stop at the same step, or they would deadlock
            flags = self.accelerator.reduce(flags, reduction="sum")
        flags = (flags > 0).float()
        self._step_unless(flags[0])
        for statistics in self.statistics:
            statistics.restore_if(flags[0])
        self._pending.append(_PendingFlags(step, *_to_host(flags), self._terms, self._images))
        self._begin()

    def _step_unless(self, faulty: torch.Tensor) -> None:
        inner = self.optimizer.optimizer
        if self.accelerator.scaler is not None:  # the scaler of fp16 skips the step itself, and lowers its scale
            self.optimizer.step()
        elif self.skips_on_device:
            # by these attributes a gradient scaler makes fused kernels skip a step
            inner.grad_scale, inner.found_inf = None, faulty
            self.optimizer.step()
        elif not faulty.item():
            self.optimizer.step()

    def check(self, *, wait: bool) -> Outcome:
        """Read the outcome of the previous step; must be called after every step.

        Args:
            wait (`bool`): Whether to wait for the outcome of this step too: for log lines and checkpoints, which wait
                for the device anyway and must include every step.

        Raises:
            TooManySkippedSteps: If `max_skipped` steps in a row were skipped.
        """
        verdicts = list(self.verdicts(include_newest=wait))
        if any(verdict.stop or verdict.faulty for verdict in verdicts):
            # The report or checkpoint that follows must include all steps so far. The flags are sums over all
            # processes, so all of them come here after the same step, and none waits for others that do not come.
            verdicts += self.verdicts(include_newest=True)
        for verdict in verdicts:
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if verdict.faulty else 0
            if verdict.faulty and self.report is not None:
                self.report(verdict)
            if verdict.faulty and self.skipped_in_a_row == self.max_skipped:
                raise TooManySkippedSteps(verdict, self.skipped_in_a_row)
        return Outcome(stop=any(verdict.stop for verdict in verdicts))

    def verdicts(self, *, include_newest: bool) -> Iterator[Verdict]:
        """Yield the outcomes of steps that were not read yet; for the newest one, the host must wait."""
        while len(self._pending) > (0 if include_newest else 1):
            pending = self._pending.popleft()
            if pending.arrived is not None:
                pending.arrived.synchronize()
            faulty, stop = pending.flags.tolist()
            yield Verdict(pending.step, self._describe(pending) if faulty else None, bool(stop))

    def _describe(self, pending: _PendingFlags) -> Faulty:
        terms = [name for name, value in pending.terms.items() if not value.isfinite()]
        images = [name for part in pending.images for name in image_ids(part)]
        everywhere = gather_object([(terms, images)])
        culprits = [names for broken, names in everywhere if broken] or [names for _, names in everywhere]
        return Faulty(
            terms=sorted({name for broken, _ in everywhere for name in broken}) or ["gradient"],
            images=[name for names in culprits for name in names],
        )


def _to_host(flags: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    if flags.device.type != "cuda":
        return flags, None
    host = torch.empty(flags.shape, pin_memory=True).copy_(flags, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Initialize momentum with zeros: a fused SGD whose first step is skipped would leave it uninitialized."""
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if optimizer.state[parameter].get("momentum_buffer") is None:  # it may have been restored
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
