"""Mean intersection over union (IoU) from one confusion matrix, as a metric of `evaluate`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

_BYTE = 256


class ConfusionMatrix:
    """Counts of the (reference, prediction) pairs of pixels; rows are references, columns predictions.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`): Reference value that is not counted.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255):
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.matrix = np.zeros((num_labels, num_labels), dtype=np.int64)

    def update(self, prediction: Any, reference: Any) -> None:
        """Add one pair of label maps of equal shape.

        Raises:
            ValueError: If the shapes differ, or a value is not a class.
        """
        prediction, reference = np.asarray(prediction), np.asarray(reference)
        if prediction.shape != reference.shape:
            raise ValueError(
                f"Prediction and reference must have the same shape, got {prediction.shape} and {reference.shape}."
            )
        if not prediction.size:
            return
        if prediction.min() < 0 or prediction.max() >= self.num_labels:
            self._refuse("prediction", prediction)
        small = self.num_labels <= _BYTE and reference.min() >= 0 and reference.max() < _BYTE
        self.matrix += self._count_bytes(prediction, reference) if small else self._count(prediction, reference)

    def _count_bytes(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Count all pairs of bytes, then drop those with ignored references: several times faster than masking."""
        pairs = reference.astype(np.uint16)
        pairs *= np.uint16(self.num_labels)
        pairs += prediction.astype(np.uint8, copy=False)
        counts = np.bincount(pairs.ravel(), minlength=_BYTE * self.num_labels).reshape(_BYTE, self.num_labels)
        if 0 <= self.ignore_index < _BYTE:
            counts[self.ignore_index] = 0
        if counts[self.num_labels :].any():
            self._refuse("reference", reference[reference != self.ignore_index])
        return counts[: self.num_labels]

    def _count(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        valid = reference != self.ignore_index
        reference, counted = reference[valid].astype(np.int64), prediction[valid].astype(np.int64)
        if reference.size and (reference.min() < 0 or reference.max() >= self.num_labels):
            self._refuse("reference", reference)
        pairs = np.bincount(reference * self.num_labels + counted, minlength=self.num_labels**2)
        return pairs.reshape(self.matrix.shape)

    def _refuse(self, name: str, values: np.ndarray) -> None:
        raise ValueError(
            f"A {name} has values in {int(values.min())}..{int(values.max())}, outside the {self.num_labels} classes."
        )

    def scores(self) -> dict[str, Any]:
        """Return IoU and accuracy; classes absent from both are NaN and excluded from the means."""
        correct = np.diag(self.matrix).astype(np.float64)
        references, predictions = self.matrix.sum(axis=1), self.matrix.sum(axis=0)
        iou = ratio(correct, references + predictions - correct)
        accuracy = ratio(correct, references)
        return {
            "mean_iou": nanmean(iou),
            "mean_accuracy": nanmean(accuracy),
            "overall_accuracy": float(ratio(correct.sum(), self.matrix.sum())),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }


class MeanIoU(evaluate.Metric):
    """Metric of `evaluate` that computes the mean IoU offline, from a confusion matrix instead of stored images.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`): Reference value that is not counted.

    Example:
        metric = MeanIoU(num_labels=19)  # or evaluate.load("msctr_hf/evaluation/mean_iou.py", num_labels=19)
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
        """Add one pair of label maps (H, W)."""
        self.confusion.update(prediction, reference)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add pairs of label maps (H, W); a prediction that is not a class is an error."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.confusion.update(prediction, reference)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return the scores of all added pairs, with the keys of `mean_iou` of `evaluate`, and reset the metric."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        scores = self.confusion.scores()
        self.confusion = ConfusionMatrix(self.confusion.num_labels, self.confusion.ignore_index)
        return scores


def ratio(part: Any, whole: Any) -> np.ndarray:
    """Divide, where 0 / 0 is NaN without a warning."""
    with np.errstate(invalid="ignore"):
        return np.divide(part, whole)


def nanmean(values: np.ndarray) -> float:
    """Average the values that are not NaN; return NaN if all are, without a warning."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
