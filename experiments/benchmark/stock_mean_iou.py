"""The algorithm of the metric `mean_iou` of `evaluate`, written again because the original is fetched from the Hub."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np


class StockMeanIoU(evaluate.Metric):
    """Mean IoU from histograms of intersections and areas, which are computed after all images have been stored.

    As in the published metric, `add_batch` stores label maps in a table of `datasets`, ignored pixels are removed
    from both maps, and IoU = intersection / (prediction + reference - intersection).
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean intersection over union.",
            citation="",
            inputs_description="predictions, references: label maps; num_labels, ignore_index.",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _compute(self, predictions: Any, references: Any, num_labels: int, ignore_index: int) -> dict[str, Any]:
        areas = np.zeros((3, num_labels))
        for prediction, reference in zip(predictions, references, strict=True):
            prediction, reference = np.array(prediction), np.array(reference)
            kept = reference != ignore_index
            prediction, reference = prediction[kept], reference[kept]
            for row, values in enumerate((prediction[prediction == reference], prediction, reference)):
                areas[row] += np.histogram(values, bins=num_labels, range=(0, num_labels - 1))[0]
        intersection, predicted, labeled = areas
        with np.errstate(invalid="ignore"):
            iou, accuracy = intersection / (predicted + labeled - intersection), intersection / labeled
        return {
            "mean_iou": np.nanmean(iou),
            "mean_accuracy": np.nanmean(accuracy),
            "overall_accuracy": intersection.sum() / labeled.sum(),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }
