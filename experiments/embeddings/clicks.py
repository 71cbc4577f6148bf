"""Searches by clicks: which pixels of other images have the class of a clicked pixel.

A click is a pixel of a class, drawn by seed. All other images of a set are searched for pixels whose cosine with it
reaches a threshold, as `msctr find` does. The score of a click is the IoU of these pixels with those of its class,
over all searched images together, without unlabeled pixels; that of a class is the mean over its clicks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.finding import Query, cosines_of_pixels, embed_image, embed_query
from msctr_hf.progress import progress

THRESHOLDS = [step / 64 for step in range(64)]  # exact in float32, as their products with 64 are
NUM_CLICKS = 200
NUM_IMAGES = 100  # of the set that chooses the threshold
MIN_AREA = 200  # pixels of a class in an image, for a click there
_CLICKS_AT_ONCE = 20


@dataclass(frozen=True)
class Click:
    """Pixel that is clicked.

    Args:
        image (`int`): Place of its image in the data set.
        row, column (`int`): Place in the image.
        label (`int`): Class of the pixel.
    """

    image: int
    row: int
    column: int
    label: int


def draw_clicks(labels: Mapping[int, np.ndarray], num_classes: int, seed: int) -> list[Click]:
    """Draw `NUM_CLICKS` pixels, of all classes in turn: first an image that shows the class, then a pixel in it.

    Args:
        labels (`Mapping[int, np.ndarray]` of shapes `(H, W)`): Place of an image -> train ids, larger where ignored.
        num_classes (`int`): Number of classes; one that fewer than two images show gets no click.
        seed (`int`): Seed.
    """
    random = np.random.default_rng(seed)
    areas = {place: np.bincount(image.ravel(), minlength=num_classes) for place, image in labels.items()}
    shown = {label: [place for place in labels if areas[place][label] >= MIN_AREA] for label in range(num_classes)}
    classes = [label for label in shown if len(shown[label]) > 1]
    clicks = []
    for number in range(NUM_CLICKS):
        label = classes[number % len(classes)]
        place = shown[label][random.integers(len(shown[label]))]
        rows, columns = np.nonzero(labels[place] == label)
        pixel = random.integers(len(rows))
        clicks.append(Click(place, int(rows[pixel]), int(columns[pixel]), label))
    return clicks


def score_clicks(
    embedder: Embedder, dataset: Any, labels: Mapping[int, np.ndarray], clicks: Sequence[Click], num_classes: int
) -> dict[str, dict[int, list[float]]]:
    """Search the images for every click, and score it at every threshold.

    Args:
        embedder (`Embedder`): Network and features.
        dataset: Data set with a column `image`.
        labels (`Mapping[int, np.ndarray]` of shapes `(H, W)`): Place of an image that is searched -> train ids.
        clicks (`Sequence[Click]`): Clicks; that in an image is not searched in this image.
        num_classes (`int`): Number of classes.

    Returns:
        `dict`: `"iou"` and `"background"` (share of the labeled pixels of other classes that are found), both class ->
        mean over its clicks at every threshold.
    """
    queries = torch.cat(
        [embed_query(embedder, Query(dataset[click.image]["image"], (click.row, click.column))) for click in clicks]
    )
    steps = len(THRESHOLDS)
    # labeled pixels by click, whether they have its class, and the number of thresholds that their cosine reaches
    counts = np.zeros((len(clicks), 2, steps + 1), np.int64)
    for place in progress(list(labels), title="searching", unit="image"):
        embeddings, size, extent = embed_image(embedder, dataset[place]["image"])
        cosines = torch.einsum("qd,dhw->qhw", queries, embeddings.float())
        of_image = torch.tensor(labels[place])
        elsewhere = [number for number, click in enumerate(clicks) if click.image != place]
        for start in range(0, len(elsewhere), _CLICKS_AT_ONCE):
            part = elsewhere[start : start + _CLICKS_AT_ONCE]
            of_pixels = cosines_of_pixels(cosines[part], size, extent)
            reached = (of_pixels * steps).floor_().clamp_(-1, steps - 1).to(torch.int16) + 1
            for number, of_click in zip(part, reached, strict=True):
                kinds = torch.where(of_image == clicks[number].label, of_click + steps + 1, of_click)
                kinds = kinds.masked_fill_(of_image >= num_classes, 2 * steps + 2)
                counts[number] += np.bincount(kinds.flatten(), minlength=2 * steps + 3)[:-1].reshape(2, -1)
    found = counts[..., ::-1].cumsum(axis=-1)[..., -2::-1]  # that reach at least so many thresholds, without zero
    wrong, right = found[:, 0], found[:, 1]
    others, of_class = counts.sum(axis=-1).T[..., None]
    iou, background = right / (of_class + wrong), wrong / others
    by_class = {
        label: [number for number, click in enumerate(clicks) if click.label == label]
        for label in sorted({click.label for click in clicks})
    }
    return {
        name: {label: scores[numbers].mean(axis=0).tolist() for label, numbers in by_class.items()}
        for name, scores in (("iou", iou), ("background", background))
    }
