"""Mean intersection over union from one confusion matrix, as a metric of `evaluate`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np


class ConfusionMatrix:
    """Counts of (reference, prediction) pairs; rows are references.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`): Reference value that does not count.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255):
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.matrix = np.zeros((num_labels, num_labels), dtype=np.int64)

    def update(self, prediction: Any, reference: Any) -> None:
        """Count one pair of label maps of equal shape.

        Raises:
            ValueError: If shapes differ, or a value is no class.
        """
        prediction, reference = np.asarray(prediction), np.asarray(reference)
        if prediction.shape != reference.shape:
            raise ValueError(f"A prediction of shape {prediction.shape} meets a reference of {reference.shape}.")
        valid = reference != self.ignore_index
        reference, counted = reference[valid].astype(np.int64), prediction[valid].astype(np.int64)
        for name, values in (("prediction", prediction), ("reference", reference)):
            if values.size and (values.min() < 0 or values.max() >= self.num_labels):
                raise ValueError(
                    f"A {name} holds {int(values.min())}..{int(values.max())}, outside the {self.num_labels} classes."
                )
        pairs = np.bincount(reference * self.num_labels + counted, minlength=self.num_labels**2)
        self.matrix += pairs.reshape(self.matrix.shape)

    def scores(self) -> dict[str, Any]:
        """IoU and accuracy; NaN for classes in neither, which no mean counts."""
        correct = np.diag(self.matrix).astype(np.float64)
        references, predictions = self.matrix.sum(axis=1), self.matrix.sum(axis=0)
        iou = _ratio(correct, references + predictions - correct)
        accuracy = _ratio(correct, references)
        return {
            "mean_iou": _nanmean(iou),
            "mean_accuracy": _nanmean(accuracy),
            "overall_accuracy": float(_ratio(correct.sum(), self.matrix.sum())),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }


class MeanIoU(evaluate.Metric):
    """Mean IoU that keeps a confusion matrix and no pictures, and needs no network.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`): Reference value that does not count.

    Example:
        metric = MeanIoU(num_labels=19)
        metric.add_batch(predictions=[prediction], references=[reference])  # int maps (H, W) of equal sizes
        metric.compute()["mean_iou"]
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, **kwargs: Any):
        super().__init__(**kwargs)
        self.confusion = ConfusionMatrix(num_labels, ignore_index)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean intersection over union of classes.",
            citation="",
            inputs_description="predictions, references: lists of int label maps (H, W).",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Count one pair of label maps (H, W)."""
        self.confusion.update(prediction, reference)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Count pairs of label maps (H, W); predictions outside the classes are an error."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.confusion.update(prediction, reference)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Scores of all that was added, which is then forgotten; the keys are those of the stock `mean_iou`."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        scores = self.confusion.scores()
        self.confusion = ConfusionMatrix(self.confusion.num_labels, self.confusion.ignore_index)
        return scores


def _ratio(part: Any, whole: Any) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.divide(part, whole)


def _nanmean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
