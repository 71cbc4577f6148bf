"""Benchmark a whole training step: the time of its phases, and what the contrast adds."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from msctr_hf.commands.train import command_line
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.training.devices import FUSED_DEVICES, keep_freed_memory, optimize_layout
from msctr_hf.training.network import build_network
from msctr_hf.training.optimization import build_optimizer

from .contrast import blob_labels
from .data import seconds_per_crop
from .measuring import Step, clock, peak_megabytes, per_second, ratio
from .reference import StraightforwardContrast

STRAIGHTFORWARD = "ms_cs, straightforward"  # projects whole maps and computes full matrices
MODES = ("ce", "ms", "ms_cs", STRAIGHTFORWARD)
PHASES = ("forward", "loss", "backward", "optimizer")


class Setting(NamedTuple):
    """Batch, crop, device and precision of a training step."""

    batch_size: int
    crop_size: Sequence[int]
    device: torch.device
    precision: torch.dtype | None = None
    compile: bool = False
    channels_last: bool = False


def training_step(config: str, setting: Setting, repetitions: int | None) -> list[dict]:
    """Measure the phases of a training step in all modes, and compare their totals with the step without contrast.

    `data` is the time in which one worker makes the batch from PNGs of 1024x2048; in training this runs in parallel
    with the step. `loss` is everything after the logits: cross entropy, projection, sampling, contrast; in a compiled
    network it is part of `forward`.

    Args:
        config (`str`): YAML file of a network; its backbone starts from random weights.
        setting (`Setting`): Batch, crop, device and precision.
        repetitions (`int`, *optional*): Number of measured steps; 3 by default.
    """
    recipe = command_line().parse(["--config", config, "--backbone_weights", "none"])
    if setting.device.type == "cpu":
        keep_freed_memory()
    small = setting._replace(batch_size=2, crop_size=(64, 64))
    memory: dict[str, float] = {}
    steps: dict[str, TrainingStep] = {}
    for mode in MODES:
        if not setting.compile:
            arguments = ((recipe, mode, setting), (recipe, mode, small))
            memory[mode] = peak_megabytes(whole_step, *arguments, setting.device)
        steps[mode] = TrainingStep(recipe, mode, setting)
    rounds = [{mode: step.run() for mode, step in steps.items()} for _ in range((repetitions or 3) + 1)][1:]
    with tempfile.TemporaryDirectory() as folder:
        data = setting.batch_size * seconds_per_crop(Path(folder), setting.crop_size, repetitions or 3)
    seconds = {
        mode: {phase: statistics.median(each[mode][phase] for each in rounds) for phase in PHASES} for mode in MODES
    }
    return [_row(mode, setting, data, seconds, memory) for mode in MODES]


def _row(
    mode: str, setting: Setting, data: float, seconds: dict[str, dict[str, float]], memory: dict[str, float]
) -> dict[str, Any]:
    step, step_of_ce = (1000 * sum(seconds[each].values()) for each in (mode, "ce"))
    return {
        "mode": mode,
        "images": setting.batch_size,
        "data ms": 1000 * data,
        **{f"{phase} ms": 1000 * time for phase, time in seconds[mode].items()},
        "step ms": step,
        "images/s": per_second(setting.batch_size, step),
        "time / ce": ratio(step, step_of_ce, unit="ms"),
        "MB": memory.get(mode),
        "memory / ce": ratio(memory[mode], memory["ce"], unit="MB") if memory else None,
    }


class TrainingStep:
    """A network with its optimizer and a batch of random images, and the time of every phase of its step."""

    def __init__(self, recipe: tuple, mode: str, setting: Setting):
        torch.manual_seed(0)
        model_arguments, data_arguments, arguments, _, settings = recipe
        spec = get_dataset_spec(data_arguments.dataset, data_arguments.data_dir)
        device, size = setting.device, setting.crop_size
        settings = {**settings, "contrastive_mode": mode.partition(",")[0]}
        network = build_network(model_arguments, settings, spec).to(device).train()
        if mode == STRAIGHTFORWARD:
            network.contrastive_loss = StraightforwardContrast(network.contrastive_loss, network.projection_head)
        bf16 = setting.precision == torch.bfloat16
        network = optimize_layout(network, device, channels_last=setting.channels_last, bf16=bf16)
        self.optimizer = build_optimizer(network, arguments, fused=device.type in FUSED_DEVICES)
        images = torch.randn(setting.batch_size, 3, *size, device=device)
        layout = torch.channels_last if setting.channels_last else torch.contiguous_format
        self.pixel_values = images.contiguous(memory_format=layout)
        self.labels = blob_labels(setting.batch_size, size, device, len(spec.classes))
        self.logits_at = 0.0
        if setting.compile:
            self.model = torch.compile(network)
        else:
            self.model = network
        self.decode_head = network.decode_head
        self.setting = setting
        network.contrastive_weight.set_step(0, 1)  # a recipe may have a schedule

    def _record_time(self, *_: Any) -> None:
        self.logits_at = clock(self.setting.device)

    def forward(self) -> torch.Tensor:
        """Compute the loss of the batch."""
        precision = self.setting.precision
        with torch.autocast(self.setting.device.type, dtype=precision, enabled=precision is not None):
            return self.model(self.pixel_values, labels=self.labels).loss

    def update(self) -> None:
        """Update the weights."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self) -> dict[str, float]:
        """Run one step and return the seconds of its phases, between which the host waits for the device."""
        device, self.logits_at = self.setting.device, 0.0
        start = clock(device)
        if self.setting.compile:
            loss = self.forward()
        else:
            # The decode head is the last module before the loss. The hook goes again: other steps must not wait.
            with self.decode_head.register_forward_hook(self._record_time):
                loss = self.forward()
        end_of_forward = clock(device)
        loss.backward()
        end_of_backward = clock(device)
        self.update()
        logits_at = self.logits_at or end_of_forward
        times = (start, logits_at, end_of_forward, end_of_backward, clock(device))
        return {phase: end - begin for phase, begin, end in zip(PHASES, times, times[1:], strict=False)}


def whole_step(recipe: tuple, mode: str, setting: Setting) -> Step:
    """Build a step of forward pass, backward pass and update, to measure its memory."""
    step = TrainingStep(recipe, mode, setting)

    def run() -> None:
        step.forward().backward()
        step.update()

    return run
