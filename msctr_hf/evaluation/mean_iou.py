"""Mean intersection over union (IoU) from one confusion matrix, as a metric of `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import datasets
import evaluate
import numpy as np

_BYTE = 256
_DENSE_PAIRS = 1 << 22  # up to this many possible pairs of values are counted without sorting
_LARGEST = 1 << 31  # no label is larger
_MANY_PAIRS = 1 << 18  # beyond this, equal pairs of different images are merged
_REDUCED = 255  # what `reduce_labels` makes of 0

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # references, predictions, numbers of pixels: (N,) int64
_NO_PAIRS: Pairs = (np.zeros(0, dtype=np.int64),) * 3


class ConfusionMatrix:
    """Counts of the (reference, prediction) pairs of pixels; rows are references, columns predictions.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*): Reference value that is not counted; `None` counts all.
    """

    def __init__(self, num_labels: int, ignore_index: int | None = 255):
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.matrix = np.zeros((num_labels, num_labels), dtype=np.int64)

    def update(self, prediction: Any, reference: Any) -> None:
        """Add one pair of label maps of integers and of equal shape.

        Raises:
            ValueError: If the shapes differ, or a value is not an integer or not a class; nothing is counted then.
        """
        self.add_pairs(*count_pairs(prediction, reference))

    def add_pairs(self, references: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> None:
        """Add pairs of values, each with the number of its pixels.

        Args:
            references, predictions, counts (`np.ndarray` of shape `(N,)`, int64): As `count_pairs` returns them.

        Raises:
            ValueError: If a value is not a class; nothing is counted then. The ignore index may be predicted where it
                is the reference.
        """
        counted = np.full(references.shape, True) if self.ignore_index is None else references != self.ignore_index
        self._refuse_others("prediction", predictions[counted | (predictions != self.ignore_index)])
        self._refuse_others("reference", references[counted])
        np.add.at(self.matrix, (references[counted], predictions[counted]), counts[counted])

    def _refuse_others(self, name: str, values: np.ndarray) -> None:
        others = values[(values < 0) | (values >= self.num_labels)]
        if others.size:
            raise ValueError(
                f"A {name} has values in {others.min()}..{others.max()}, outside the {self.num_labels} classes."
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


def count_pairs(prediction: Any, reference: Any) -> Pairs:
    """Count the pixels of every pair of values in two label maps of integers and of equal shape.

    Returns:
        `tuple` of `np.ndarray` of shape `(N,)`, int64: references, predictions and numbers of pixels of the N pairs.

    Raises:
        ValueError: If the shapes differ or a value is not an integer.
    """
    prediction, reference = _integers("prediction", prediction), _integers("reference", reference)
    if prediction.shape != reference.shape:
        raise ValueError(
            f"Prediction and reference must have the same shape, got {prediction.shape} and {reference.shape}."
        )
    if not prediction.size:
        return _NO_PAIRS
    lowest, highest = (
        [_in_range(name, int(bound(each))) for name, each in (("reference", reference), ("prediction", prediction))]
        for bound in (np.min, np.max)
    )
    if min(lowest) >= 0 and max(highest) < _BYTE:  # several times faster than integers of 64 bits
        keys = reference.astype(np.uint16)
        lowest, width = [0, 0], highest[1] + 1
        keys *= np.uint16(width)
        keys += prediction.astype(np.uint8, copy=False)
    else:
        width = highest[1] - lowest[1] + 1
        keys = (reference.astype(np.int64) - lowest[0]) * width + (prediction.astype(np.int64) - lowest[1])
    dense = (highest[0] - lowest[0] + 1) * width <= _DENSE_PAIRS
    found, counts = _occurrences(keys.ravel(), dense)
    return found // width + lowest[0], found % width + lowest[1], counts


def _occurrences(keys: np.ndarray, dense: bool) -> tuple[np.ndarray, np.ndarray]:
    if not dense:
        return np.unique(keys, return_counts=True)
    counts = np.bincount(keys)
    found = np.flatnonzero(counts)
    return found, counts[found]


def _integers(name: str, values: Any) -> np.ndarray:
    """Convert an array, an image, a list or a tensor on any device to an array of integers."""
    values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if values.size and values.dtype.kind not in "biu":
        raise ValueError(
            f"A {name} must be a map of classes, got values of type {values.dtype}; take the argmax of probabilities, "
            "or convert whole numbers to integers."
        )
    return values


def _in_range(name: str, value: int) -> int:
    if abs(value) >= _LARGEST:
        raise ValueError(f"A {name} has values in {value}..{value}, which no label has.")
    return value


@dataclass(frozen=True)
class _Arguments:
    """Arguments of the stock metric; `Args` of `MeanIoU` describes them."""

    num_labels: int | None = None
    ignore_index: int | None = 255
    nan_to_num: float | None = None
    label_map: Mapping[int, int] | None = None
    reduce_labels: bool = False

    def __post_init__(self):
        if self.num_labels is not None and not (isinstance(self.num_labels, Integral) and self.num_labels >= 1):
            raise ValueError(f"`num_labels` must be a number of classes, at least 1, got {self.num_labels!r}.")
        if self.ignore_index is not None and not isinstance(self.ignore_index, Integral):
            raise ValueError(f"`ignore_index` must be an integer or None, got {self.ignore_index!r}.")
        if self.nan_to_num is not None and not isinstance(self.nan_to_num, Real):
            raise ValueError(f"`nan_to_num` must be a number or None, got {self.nan_to_num!r}.")
        if self.label_map is not None and not _maps_integers(self.label_map):
            raise ValueError(f"`label_map` must map integers to integers, got {self.label_map!r}.")
        if not isinstance(self.reduce_labels, (bool, np.bool_)):
            raise ValueError(f"`reduce_labels` must be True or False, got {self.reduce_labels!r}.")

    def confusion(self, pairs: Pairs) -> ConfusionMatrix:
        """Build the confusion matrix of pairs, with their references mapped and reduced."""
        references, predictions, counts = pairs
        confusion = ConfusionMatrix(int(self.num_labels), self.ignore_index)  # type: ignore[arg-type]
        confusion.add_pairs(self._mapped(references), predictions, counts)
        return confusion

    def _mapped(self, references: np.ndarray) -> np.ndarray:
        mapped = references.copy()
        for old, new in (self.label_map or {}).items():  # all entries refer to the original values
            mapped[references == old] = new
        if self.reduce_labels:
            mapped = np.where((mapped == 0) | (mapped == _REDUCED), _REDUCED, mapped - 1)
        return mapped


def _maps_integers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(each, Integral) for pair in value.items() for each in pair)


class MeanIoU(evaluate.Metric):
    """Metric of `evaluate` that computes the mean IoU offline, from counts of pixels instead of stored images.

    It takes the arguments of the metric `mean_iou` of `evaluate`, here or, for one computation, in `compute`. With
    `num_labels` given here, values that are not a class are refused when they are added; otherwise in `compute`.

    Args:
        num_labels (`int`, *optional*): Number of classes, which `compute` needs if it is not given here.
        ignore_index (`int`, *optional*): Reference value that is not counted; `None` counts all.
        nan_to_num (`float`, *optional*): Score that replaces NaN in the results, after the means are computed.
        label_map (`Mapping[int, int]`, *optional*): Reference value -> value that replaces it; all entries refer to
            the original values.
        reduce_labels (`bool`): Whether reference 0 becomes 255 and every other, except 255, one less, after
            `label_map`.

    Raises:
        ValueError: If an argument is not valid.

    Example:
        metric = MeanIoU(num_labels=19)  # or evaluate.load("msctr_hf/evaluation/mean_iou.py", num_labels=19)
        metric.add_batch(predictions=[prediction], references=[reference])  # int maps (H, W) of equal sizes
        metric.compute()["mean_iou"]
    """

    def __init__(
        self,
        num_labels: int | None = None,
        ignore_index: int | None = 255,
        nan_to_num: float | None = None,
        label_map: Mapping[int, int] | None = None,
        reduce_labels: bool = False,
        **kwargs: Any,
    ):
        if kwargs.get("num_process", 1) != 1:
            raise ValueError(
                f"`num_process` must be 1, got {kwargs['num_process']}: gather the label maps of all processes first."
            )
        super().__init__(**kwargs)
        self.arguments = _Arguments(num_labels, ignore_index, nan_to_num, label_map, reduce_labels)
        # the arguments of `compute` change the meaning of references, so the original values are counted
        self._pairs = _NO_PAIRS

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean intersection over union of classes.",
            citation="",
            inputs_description="predictions, references: lists of int label maps (H, W); num_labels, ignore_index, "
            "nan_to_num, label_map, reduce_labels.",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def add(
        self,
        *,
        prediction: Any = None,
        reference: Any = None,
        predictions: Any = None,
        references: Any = None,
    ) -> None:
        """Add one pair of label maps (H, W), under the names of `evaluate`: singular, or plural as in `add_batch`.

        Raises:
            ValueError: As `add_batch`.
        """
        prediction, reference = (
            plural if singular is None else singular
            for singular, plural in ((prediction, predictions), (reference, references))
        )
        if prediction is None or reference is None:
            raise ValueError("`add` needs `prediction` and `reference`.")
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Add pairs of label maps (H, W) of integers.

        Raises:
            ValueError: If a map does not contain integers, sizes or numbers of maps differ or, with `num_labels` given
                to `MeanIoU`, a value is not a class; no pair of the batch is counted then.
        """
        pairs = _count_batch(predictions, references)
        if self.arguments.num_labels is not None:
            self.arguments.confusion(pairs)  # refuses values that are not a class
        self._pairs = _join([self._pairs, pairs])

    def compute(self, *, predictions: Any = None, references: Any = None, **arguments: Any) -> dict[str, Any]:
        """Return the scores of all added pairs, with the keys of `mean_iou` of `evaluate`, and reset the metric.

        Args:
            predictions, references (*optional*): Further pairs of label maps, as for `add_batch`.
            **arguments: Arguments of `MeanIoU` that replace those given there, in this call only.

        Raises:
            TypeError: If an argument has another name.
            ValueError: If an argument or a value of a map is not valid, or there are no pairs. A call that is refused
                changes nothing.
        """
        names = [field.name for field in fields(_Arguments)]
        if unknown := [name for name in arguments if name not in names]:
            choices = ", ".join(f"`{name}`" for name in ("predictions", "references", *names))
            raise TypeError(f"`{unknown[0]}` is not an argument of `compute`; choose from {choices}.")
        used, pairs = replace(self.arguments, **arguments), self._pairs
        if used.num_labels is None:
            raise ValueError("`num_labels`, the number of classes, must be given to `MeanIoU` or to `compute`.")
        if predictions is not None or references is not None:
            pairs = _join([pairs, _count_batch(predictions, references)])
        if not pairs[0].size:
            raise ValueError("There are no label maps to score: add some, or give `predictions` and `references`.")
        scores = used.confusion(pairs).scores()
        self._pairs = _NO_PAIRS
        if used.nan_to_num is None:
            return scores
        return {name: _without_nan(score, used.nan_to_num) for name, score in scores.items()}


def _join(parts: Sequence[Pairs]) -> Pairs:
    """Concatenate counts of pairs, and add up those of equal pairs if there are many."""
    references, predictions, counts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if counts.size <= _MANY_PAIRS:
        return references, predictions, counts
    keys, places = np.unique((references << 32) + predictions, return_inverse=True)
    totals = np.zeros(keys.shape, dtype=np.int64)
    np.add.at(totals, places, counts)
    references = (keys + _LARGEST) >> 32  # predictions may be negative
    return references, keys - (references << 32), totals


def _count_batch(predictions: Any, references: Any) -> Pairs:
    """Count the pixels of every pair of values (reference, prediction) in all maps of a batch."""
    if predictions is None or references is None:
        raise ValueError(f"`{'predictions' if predictions is None else 'references'}` must be given too.")
    predictions, references = list(predictions), list(references)
    if len(predictions) != len(references):
        raise ValueError(
            f"`predictions` and `references` must have the same length, got {len(predictions)} and {len(references)}."
        )
    return _join([_NO_PAIRS, *map(count_pairs, predictions, references)])


def _without_nan(score: Any, replacement: float) -> Any:
    replaced = np.nan_to_num(score, nan=replacement)
    return replaced if isinstance(score, np.ndarray) else float(replaced)


def ratio(part: Any, whole: Any) -> np.ndarray:
    """Divide, where 0 / 0 is NaN without a warning."""
    with np.errstate(invalid="ignore"):
        return np.divide(part, whole)


def nanmean(values: np.ndarray) -> float:
    """Average the values that are not NaN; return NaN if all are, without a warning."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
