"""Benchmarks of evaluation: from logits to classes at the size of the labels."""

from __future__ import annotations

import torch

from ..evaluation.inference import most_probable_classes
from ..models.decode_heads import resize
from .measuring import Step, compare, median_seconds, peak_megabytes, promise

CASES = {  # classes, size of the logits, size of the labels
    "ADE20K": (150, (128, 128), (512, 512)),
    "Cityscapes": (19, (256, 512), (1024, 2048)),
}
SPEED_TARGET = 3.0


def upsampling(repetitions: int | None, device: torch.device) -> list[dict]:
    """Bilinear upsampling and the largest class, in strips of rows and on the whole picture."""
    rows = []
    for name, (num_labels, source, target) in CASES.items():
        ways = {way: (way, num_labels, source, target, device) for way in ("whole", "ours")}
        memory = {
            way: peak_megabytes(upsampling_step, arguments, (way, 3, (8, 8), (32, 32), device), device)
            for way, arguments in ways.items()
        }
        steps = {way: upsampling_step(*arguments) for way, arguments in ways.items()}
        seconds = median_seconds(steps, repetitions or 7, device)
        rows.append({"size of": name, "classes": num_labels} | compare(seconds, memory))
        promise(rows[-1], device, speed=SPEED_TARGET)
    return rows


def upsampling_step(
    way: str, num_labels: int, source: tuple[int, int], target: tuple[int, int], device: torch.device
) -> Step:
    """Classes of one picture from random logits."""
    logits = torch.randn(1, num_labels, *source, device=device)
    if way == "ours":
        return lambda: most_probable_classes([logits], target, align_corners=False)
    return lambda: resize(logits, target, align_corners=False).argmax(dim=1)
