"""Scores of a network on a data set, at the resolution of the labels and over all processes."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from PIL import Image

from ..data.loaders import evaluation_loader
from ..progress import progress
from .boundary_iou import BoundaryIoU
from .finite import NotFiniteError
from .mean_iou import ConfusionMatrix, nanmean, ratio
from .predictor import Predictor
from .visualization import fitted_size, viewable

CONFUSIONS_LISTED = 10
KEPT_WIDTH = 480  # pixels; the worst images are kept small, since they are only displayed


@dataclass(order=True)
class ScoredImage:
    """Score of an image, with small copies of image, labels and prediction if it is displayed."""

    mean_iou: float
    image_id: str
    shown: tuple[Image.Image, np.ndarray, np.ndarray] | None = field(default=None, compare=False)


@dataclass
class Scores:
    """Counts and scores of a whole data set.

    Args:
        confusion (`ConfusionMatrix`): Counts of all pixels.
        boundary (`BoundaryIoU`, *optional*): Counts of the pixels near outlines.
        images (`list[ScoredImage]`): Mean IoU of every image, lowest first.
        worst (`list[ScoredImage]`): Images with the lowest mean IoU, with small copies.
    """

    confusion: ConfusionMatrix
    boundary: BoundaryIoU | None
    images: list[ScoredImage]
    worst: list[ScoredImage]

    def results(self, id2label: Mapping[int, str], groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Return the scores in a form that JSON can store: fractions, classes by name, `None` for absent classes."""
        scores = self.confusion.scores()
        if self.boundary is not None:
            boundary_scores = self.boundary.scores()
            scores |= {"mean_boundary_iou": nanmean(boundary_scores), "per_category_boundary_iou": boundary_scores}
        results = results_by_name(scores, id2label) | {
            "images": len(self.images),
            "largest_confusions": largest_confusions(self.confusion, id2label),
        }
        return results | ({"groups": group_scores(self.confusion, groups)} if groups else {})


def score_dataset(
    predictor: Predictor,
    dataset: Dataset | IterableDataset,
    *,
    num_labels: int,
    ignore_index: int = 255,
    accelerator: Accelerator,
    batch_size: int = 1,
    num_workers: int = 0,
    with_boundaries: bool = False,
    keep_worst: int = 0,
    on_batch: Callable[[list[dict[str, Any]], list[np.ndarray]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Scores | None:
    """Score a network on a data set, of which every process scores its share of the images.

    Args:
        predictor (`Predictor`): Network with its image processor; it is in evaluation mode during scoring.
        dataset (`datasets.Dataset`): Rows {image, label, image_id}.
        num_labels (`int`): Number of classes.
        ignore_index (`int`): Label that is not counted.
        accelerator (`Accelerator`): Processes that share the images.
        batch_size (`int`): Number of images that are loaded at a time.
        num_workers (`int`): Number of worker processes that load images.
        with_boundaries (`bool`): Whether to also count the pixels near outlines.
        keep_worst (`int`): Number of images with the lowest mean IoU of which small copies are kept.
        on_batch (`Callable`, *optional*): Called with the samples and predictions of every batch of this process.
        should_stop (`Callable`, *optional*): Called after every batch; if it is true in any process, scoring ends.

    Returns:
        `Scores` of all processes; `None` if `should_stop` ended scoring.

    Raises:
        NotFiniteError: If the logits of an image are not finite, in all processes; the message names the image.
    """
    loader = evaluation_loader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    counts = _Counts(num_labels, ignore_index, with_boundaries, keep_worst)
    was_training = predictor.model.training
    predictor.model.eval()
    share = None if isinstance(dataset, IterableDataset) else len(loader.dataset)  # type: ignore[arg-type]
    bar = progress(total=share, title="scoring", unit="image", shown=accelerator.is_main_process)
    fault = None
    try:
        with bar:
            for samples in loader:
                try:
                    predictions = list(predictor([sample["image"] for sample in samples]))
                except NotFiniteError as error:  # raised below, in all processes: otherwise the others would wait
                    fault = f"{', '.join(sample['image_id'] for sample in samples)}: {error}"
                    break
                for sample, prediction in zip(samples, predictions, strict=True):
                    counts.add(sample, prediction)
                if on_batch is not None:
                    on_batch(samples, predictions)
                bar.update(len(samples))
                if should_stop is not None and should_stop():
                    break
    finally:
        predictor.model.train(was_training)
    stopped = should_stop is not None and should_stop()
    everywhere = gather_object([(stopped, fault)])
    if any(stop for stop, _ in everywhere):
        return None
    if faults := [text for _, text in everywhere if text is not None]:
        raise NotFiniteError(faults[0])
    return counts.over_all_processes(accelerator)


class _Counts:
    """Counts and scores of the images of one process."""

    def __init__(self, num_labels: int, ignore_index: int, with_boundaries: bool, keep_worst: int):
        self.confusion = ConfusionMatrix(num_labels, ignore_index)
        self.boundary = BoundaryIoU(num_labels, ignore_index) if with_boundaries else None
        self.keep_worst = keep_worst
        self.images: list[ScoredImage] = []
        # a heap, whose first entry is the best of the worst images and the next to be dropped
        self.worst: list[tuple[float, int, ScoredImage]] = []

    def add(self, sample: dict[str, Any], prediction: np.ndarray) -> None:
        reference = np.asarray(sample["label"])
        confusion = ConfusionMatrix(self.confusion.num_labels, self.confusion.ignore_index)
        confusion.update(prediction, reference)
        self.confusion.matrix += confusion.matrix
        if self.boundary is not None:
            self.boundary.update(prediction, reference)
        mean_iou = confusion.scores()["mean_iou"]
        if mean_iou != mean_iou:  # NaN: all pixels are ignored
            return
        self.images.append(ScoredImage(mean_iou, sample["image_id"]))
        if len(self.worst) < self.keep_worst or (self.worst and mean_iou < -self.worst[0][0]):
            shown = _small(sample["image"], reference, prediction)
            entry = (-mean_iou, -len(self.images), ScoredImage(mean_iou, sample["image_id"], shown))
            (heapq.heappush if len(self.worst) < self.keep_worst else heapq.heapreplace)(self.worst, entry)

    def over_all_processes(self, accelerator: Accelerator) -> Scores:
        self.confusion.matrix = _sum(self.confusion.matrix, accelerator)
        if self.boundary is not None:
            self.boundary.counts = _sum(self.boundary.counts, accelerator)
        worst = sorted(gather_object([scored for _, _, scored in self.worst]))
        return Scores(self.confusion, self.boundary, sorted(gather_object(self.images)), worst[: self.keep_worst])


def _sum(counts: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    return accelerator.reduce(torch.from_numpy(counts).to(accelerator.device), reduction="sum").cpu().numpy()


def _small(
    image: Image.Image | np.ndarray, reference: np.ndarray, prediction: np.ndarray
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    image = viewable(image)
    size = fitted_size(image.size, KEPT_WIDTH)

    def shrink(labels: np.ndarray) -> np.ndarray:
        stored = labels if labels.dtype == np.uint8 else labels.astype(np.int32)  # 8 bits do not hold 256 classes
        return np.asarray(Image.fromarray(stored).resize(size, Image.Resampling.NEAREST))

    small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return small, shrink(reference), shrink(prediction)


def results_by_name(scores: dict[str, Any], id2label: Mapping[int, str]) -> dict[str, Any]:
    """Convert scores to a form that JSON can store: fractions, classes by name, `None` for absent classes."""
    result: dict[str, Any] = {}
    for name, value in scores.items():
        if isinstance(value, np.ndarray):
            result[name] = {id2label[label]: _or_none(entry) for label, entry in enumerate(value.tolist())}
        else:
            result[name] = _or_none(value)
    return result


def largest_confusions(confusion: ConfusionMatrix, id2label: Mapping[int, str]) -> list[dict[str, Any]]:
    """List the most frequent confusions of one class with another, largest share first.

    Args:
        confusion (`ConfusionMatrix`): Counts of all pixels.
        id2label (`Mapping[int, str]`): Names of the classes.

    Returns:
        `list[dict]`: {class, predicted_as, share}; the share is a fraction of all pixels labeled with the class.
    """
    shares = np.nan_to_num(ratio(confusion.matrix, confusion.matrix.sum(axis=1, keepdims=True)))
    np.fill_diagonal(shares, 0)
    order = np.argsort(shares, axis=None)[::-1][:CONFUSIONS_LISTED]
    places = zip(*np.unravel_index(order, shares.shape), strict=True)
    return [
        {"class": id2label[int(row)], "predicted_as": id2label[int(column)], "share": float(shares[row, column])}
        for row, column in places
        if shares[row, column]
    ]


def group_scores(confusion: ConfusionMatrix, groups: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Any]]:
    """Compute the mean IoU of every group of classes, and the IoU of the group merged into one class.

    The merged IoU is the category score of the official evaluation of Cityscapes.
    """
    iou = confusion.scores()["per_category_iou"]
    result = {}
    for name, labels in groups.items():
        members = list(labels)
        both = confusion.matrix[np.ix_(members, members)].sum()
        either = confusion.matrix[members].sum() + confusion.matrix[:, members].sum() - both
        present = iou[members][np.isfinite(iou[members])]
        result[name] = {
            "mean_iou": float(present.mean()) if len(present) else None,
            "merged_iou": _or_none(float(ratio(both, either))),
        }
    return result


CLASS_SCORES = {  # score per class -> (mean score, title)
    "per_category_iou": ("mean_iou", "IoU"),
    "per_category_accuracy": ("mean_accuracy", "accuracy"),
    "per_category_boundary_iou": ("mean_boundary_iou", "boundary"),
}


def iou_table(results: dict[str, Any]) -> str:
    """Format the scores of all classes as lines of text, with the means and the groups below."""
    columns = [column for column in CLASS_SCORES if column in results]
    width = max(10, *(len(name) for name in [*results["per_category_iou"], *results.get("groups", {})]))
    lines = [f"{'class':<{width}}" + "".join(f"  {CLASS_SCORES[column][1]:>8}" for column in columns)]
    for name in results["per_category_iou"]:
        lines.append(f"{name:<{width}}" + "".join(f"  {percent(results[column][name]):>8}" for column in columns))
    means = (results[CLASS_SCORES[column][0]] for column in columns)
    lines.append(f"{'mean':<{width}}" + "".join(f"  {percent(mean):>8}" for mean in means))
    for name, scores in results.get("groups", {}).items():
        lines.append(
            f"{name:<{width}}  {percent(scores['mean_iou']):>8}  as one class {percent(scores['merged_iou'])}"
        )
    return "\n".join(lines)


def _or_none(value: float) -> float | None:
    return None if value != value else float(value)  # NaN


def percent(value: float | None) -> str:
    """Format a fraction as a percentage; `None` means an absent class."""
    return "absent" if value is None else f"{100 * value:.2f} %"
