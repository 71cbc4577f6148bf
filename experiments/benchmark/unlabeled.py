"""Benchmark a training step with images without labels: what a teacher and the contrast cost."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from msctr_hf.commands.train import command_line
from msctr_hf.training.average import build_average
from msctr_hf.training.devices import keep_freed_memory
from msctr_hf.training.mean_teacher import MeanTeacher

from .contrast import blob_labels
from .measuring import Step, median_seconds, peak_megabytes, ratio
from .step import Setting, TrainingStep

CONFIDENT_SHARE = 0.7  # of the pixels of the teacher
SUPERVISED = "ce"


class Case(NamedTuple):
    """Objective of a step: its mode, whether unlabeled images join, and whether they are contrasted."""

    mode: str
    has_teacher: bool = False
    pseudo_labels: bool = False


CASES = {
    SUPERVISED: Case("ce"),
    "teacher": Case("ce", has_teacher=True),
    "teacher, contrast on labels": Case("ms_cs", has_teacher=True),
    "teacher, contrast on labels and pseudo-labels": Case("ms_cs", has_teacher=True, pseudo_labels=True),
}


def unlabeled(config: str, setting: Setting, repetitions: int | None) -> list[dict[str, Any]]:
    """Measure training steps without and with as many unlabeled images as labeled ones, in turns.

    A step with a teacher has its forward pass, the mixing, the pass of the unlabeled images and the update of the
    average too. The labels of the teacher are replaced by fixed ones, since one with random weights would find a
    single class and be sure of nothing.

    Args:
        config (`str`): YAML file of a network; its backbone starts from random weights.
        setting (`Setting`): Batch of labeled images, crop, device and precision.
        repetitions (`int`, *optional*): Number of measured rounds; 7 by default.
    """
    recipe = command_line().parse(["--config", config, "--backbone_weights", "none"])
    if setting.device.type == "cpu":
        keep_freed_memory()
    small = setting._replace(batch_size=2, crop_size=(64, 64))
    memory, steps = {}, {}
    for name in CASES:
        arguments = ((recipe, name, setting), (recipe, name, small))
        memory[name] = peak_megabytes(whole_step, *arguments, setting.device)
        steps[name] = whole_step(recipe, name, setting)
    seconds = median_seconds(steps, repetitions or 7, setting.device)
    return [_row(name, setting, seconds, memory) for name in CASES]


def _row(name: str, setting: Setting, seconds: dict[str, float], memory: dict[str, float]) -> dict[str, Any]:
    return {
        "step": name,
        "labeled images": setting.batch_size,
        "unlabeled images": setting.batch_size if CASES[name].has_teacher else 0,
        "step ms": 1000 * seconds[name],
        "time / ce": ratio(1000 * seconds[name], 1000 * seconds[SUPERVISED], unit="ms"),
        "MB": memory[name],
        "memory / ce": ratio(memory[name], memory[SUPERVISED], unit="MB"),
    }


class _FixedLabels(MeanTeacher):
    """Teacher whose forward pass is done, but whose labels are fixed."""

    labels: torch.Tensor
    confidence: torch.Tensor

    def _predict(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        super()._predict(pixel_values)
        return self.labels, self.confidence


class UnlabeledStep(TrainingStep):
    """Training step whose batch has images without labels too, if its case has a teacher."""

    def __init__(self, recipe: tuple, name: str, setting: Setting):
        case = CASES[name]
        *others, settings = recipe
        super().__init__((*others, {**settings, "contrastive_pseudo_labels": case.pseudo_labels}), case.mode, setting)
        self.teacher, self.average, self.count = None, None, 0
        if case.has_teacher:
            network: Any = self.model
            self.average = build_average(network, 0.99, setting.device)
            self.teacher = self._build_teacher(setting)

    def _build_teacher(self, setting: Setting) -> MeanTeacher:
        device, precision = setting.device, setting.precision
        size, shape = setting.crop_size, (setting.batch_size, *setting.crop_size)
        batch = {
            "weak_pixel_values": torch.randn(setting.batch_size, 3, *size, device=device),
            "strong_pixel_values": torch.randn(setting.batch_size, 3, *size, device=device),
            "is_valid": torch.ones(shape, dtype=torch.bool, device=device),
            "mix_box": torch.tensor([[0, 0, size[0], size[1] // 2]] * setting.batch_size, device=device),
            "image_id": torch.zeros(setting.batch_size, 1, dtype=torch.uint8, device=device),
        }
        accelerator: Any = SimpleNamespace(
            autocast=lambda: torch.autocast(device.type, dtype=precision, enabled=precision is not None)
        )
        batches = (each for each in itertools.repeat(batch))
        network = self.average.module
        teacher = _FixedLabels(accelerator, network, batches, "cutmix", channels_last=setting.channels_last)
        teacher.labels = blob_labels(setting.batch_size, size, device, network.config.num_labels)
        is_sure = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < CONFIDENT_SHARE
        teacher.confidence = is_sure.float().to(device)
        return teacher

    def forward(self) -> torch.Tensor:
        """Compute the loss of the batch."""
        taught = {} if self.teacher is None else self.teacher.next_batch()[0].arguments()
        precision = self.setting.precision
        with torch.autocast(self.setting.device.type, dtype=precision, enabled=precision is not None):
            return self.model(self.pixel_values, labels=self.labels, **taught).loss

    def update(self) -> None:
        """Update the weights, and their average if there is one."""
        super().update()
        self.count += 1
        if self.average is not None:
            self.average.update(self.model, self.count)


def whole_step(recipe: tuple, name: str, setting: Setting) -> Step:
    """Build a step of forward pass, backward pass and update."""
    step = UnlabeledStep(recipe, name, setting)

    def run() -> None:
        step.forward().backward()
        step.update()

    return run
