"""Scores of a network over a data set, at the labels' own resolution and over all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from tqdm.auto import tqdm

from ..data.batches import evaluation_loader
from .mean_iou import ConfusionMatrix
from .predictor import Predictor


def score_dataset(
    predictor: Predictor,
    dataset: Dataset,
    *,
    num_labels: int,
    ignore_index: int = 255,
    accelerator: Accelerator,
    batch_size: int = 1,
    num_workers: int = 0,
    on_batch: Callable[[list[dict[str, Any]], list[np.ndarray]], None] | None = None,
) -> ConfusionMatrix:
    """Confusion matrix of a network over a data set, summed over all processes.

    Args:
        predictor (`Predictor`): The network; it is set to evaluation mode and back.
        dataset (`datasets.Dataset`): Rows {image, label, image_id}; every process takes its share.
        num_labels (`int`): Number of classes.
        ignore_index (`int`): Label that does not count.
        accelerator (`Accelerator`): The processes taking part.
        batch_size, num_workers (`int`): Of the loader.
        on_batch (`Callable`, *optional*): Called with the samples and predictions of every batch of this process.
    """
    loader = evaluation_loader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    confusion = ConfusionMatrix(num_labels, ignore_index)
    was_training = predictor.model.training
    predictor.model.eval()
    try:
        for samples in tqdm(loader, desc="validation", leave=False, disable=not accelerator.is_local_main_process):
            predictions = list(predictor([sample["image"] for sample in samples]))
            for sample, prediction in zip(samples, predictions, strict=True):
                confusion.update(prediction, np.asarray(sample["label"]))
            if on_batch is not None:
                on_batch(samples, predictions)
    finally:
        predictor.model.train(was_training)
    matrix = torch.from_numpy(confusion.matrix).to(accelerator.device)
    confusion.matrix = accelerator.reduce(matrix, reduction="sum").cpu().numpy()
    return confusion


def results_by_name(scores: dict[str, Any], id2label: dict[int, str]) -> dict[str, Any]:
    """Scores as JSON can hold them: fractions, classes by name, `None` for absent classes."""
    result: dict[str, Any] = {}
    for name, value in scores.items():
        if isinstance(value, np.ndarray):
            result[name] = {id2label[label]: _or_none(entry) for label, entry in enumerate(value.tolist())}
        else:
            result[name] = _or_none(value)
    return result


def iou_table(results: dict[str, Any]) -> str:
    """Per-class IoU and accuracy as lines of text, with the means below."""
    width = max(10, *(len(name) for name in results["per_category_iou"]))
    lines = [f"{'class':<{width}}  {'IoU':>7}  {'accuracy':>8}"]
    for name, iou in results["per_category_iou"].items():
        lines.append(f"{name:<{width}}  {_percent(iou):>7}  {_percent(results['per_category_accuracy'][name]):>8}")
    lines.append(f"{'mean':<{width}}  {_percent(results['mean_iou']):>7}  {_percent(results['mean_accuracy']):>8}")
    return "\n".join(lines)


def _or_none(value: float) -> float | None:
    return None if value != value else float(value)  # NaN


def _percent(value: float | None) -> str:
    return "absent" if value is None else f"{100 * value:.2f} %"
