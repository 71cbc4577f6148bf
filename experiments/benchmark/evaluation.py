"""Benchmark evaluation: from logits to classes at the size of the labels, and from classes to mean IoU."""

from __future__ import annotations

import numpy as np
import torch

from msctr_hf.evaluation.inference import most_probable_classes
from msctr_hf.evaluation.mean_iou import MeanIoU
from msctr_hf.models.decode_heads import resize

from .measuring import Step, add_targets, compare, median_seconds, peak_megabytes
from .stock_mean_iou import StockMeanIoU

CASES = {  # number of classes, size of the logits, size of the labels
    "ADE20K": (150, (128, 128), (512, 512)),
    "Cityscapes": (19, (256, 512), (1024, 2048)),
}
SPEED_TARGET = 3.0
METRIC_SPEED_TARGET = 30.0
METRIC_IMAGES = 8  # number of images for the metric, which gets them in batches of 4


def upsampling(repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare bilinear upsampling and argmax in strips of rows with upsampling and argmax of whole images."""
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
        add_targets(rows[-1], device, speed=SPEED_TARGET)
    return rows


def upsampling_step(
    way: str, num_labels: int, source: tuple[int, int], target: tuple[int, int], device: torch.device
) -> Step:
    """Build a step that upsamples random logits of one image and takes the most probable classes."""
    logits = torch.randn(1, num_labels, *source, device=device)
    if way == "ours":
        return lambda: most_probable_classes([logits], target, align_corners=False)
    return lambda: resize(logits, target, align_corners=False).argmax(dim=1)


def metric(repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare mean IoU by `add_batch` and `compute` with the stock metric of `evaluate`."""
    rows = []
    for name, (num_labels, _, size) in CASES.items():
        steps = {way: metric_step(way, num_labels, size) for way in ("stock", "ours")}
        seconds = median_seconds(steps, repetitions or 5, device)
        rows.append({"size of": name, "classes": num_labels, "images": METRIC_IMAGES} | compare(seconds))
        add_targets(rows[-1], device, speed=METRIC_SPEED_TARGET)
    return rows


def metric_step(way: str, num_labels: int, size: tuple[int, int]) -> Step:
    """Build a step that scores predictions which are correct at about four of five pixels."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, num_labels, (METRIC_IMAGES, -(-size[0] // 16), -(-size[1] // 16)), dtype=np.uint8)
    references = blocks.repeat(16, axis=1).repeat(16, axis=2)[:, : size[0], : size[1]].copy()
    noise = random.integers(0, num_labels, references.shape, dtype=np.uint8)
    predictions = np.where(random.random(references.shape, dtype=np.float32) < 0.8, references, noise)
    references[:, : size[0] // 20] = 255

    def torchmetrics_step() -> torch.Tensor:
        from torchmetrics.classification import MulticlassJaccardIndex

        score = MulticlassJaccardIndex(num_labels, ignore_index=255, validate_args=False)
        for start in range(0, METRIC_IMAGES, 4):
            part = slice(start, start + 4)
            score.update(torch.from_numpy(predictions[part]), torch.from_numpy(references[part]))
        return score.compute()

    def step() -> dict:
        score = MeanIoU(num_labels) if way == "ours" else StockMeanIoU()
        options = {} if way == "ours" else {"num_labels": num_labels, "ignore_index": 255}
        for start in range(0, METRIC_IMAGES, 4):
            score.add_batch(predictions=predictions[start : start + 4], references=references[start : start + 4])
        return score.compute(**options)

    return torchmetrics_step if way == "torchmetrics" else step
