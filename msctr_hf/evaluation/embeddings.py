"""Figures of embeddings: pixels by class for every stage, and the similarity of all pixels to one.

They need matplotlib and scikit-learn, or umap-learn.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from ..data.channels import size_of
from ..errors import UsageError, as_usage_error
from ..models.image_processing_msctr import pad
from ..progress import progress
from .embedding_maps import Axis, EmbeddingTile, embedding_network
from .finite import finite_outputs, naming_the_image
from .predictor import Predictor
from .visualization import MAX_ASPECT

METHODS = ("tsne", "umap")
_POINT_SIZE, _INCHES = 6, 4.5


@dataclass(frozen=True)
class StageEmbeddings:
    """Features of sampled pixels of one stage.

    Args:
        stage (`int`): Backbone stage; 1 is the finest.
        features (`np.ndarray` of shape `(N, D)`): Rows of length 1.
        labels (`np.ndarray` of shape `(N,)`): Classes of the pixels.
    """

    stage: int
    features: np.ndarray
    labels: np.ndarray

    def silhouette(self) -> float:
        """Measure how well classes are separated, in [-1, 1], by the mean silhouette coefficient of cosine distances.

        It is computed from the features, not from points in the plane, and is NaN with a single class, or one pixel of
        each. It needs scikit-learn.
        """
        from sklearn.metrics import silhouette_score

        if not 1 < len(np.unique(self.labels)) < len(self.labels):
            return float("nan")
        return float(silhouette_score(self.features, self.labels, metric="cosine"))


def choose_sample(dataset: Dataset, image_id: str | None) -> dict[str, Any]:
    """Return the sample with an image id, or the first by default.

    Raises:
        UsageError: If the data set has no such image.
    """
    if image_id is None:
        return dataset[0]
    image_ids = dataset.with_format(None)["image_id"][:]
    if image_id not in image_ids:
        close = difflib.get_close_matches(image_id, image_ids, n=3) or image_ids[:3]
        raise UsageError(f"`image_id`: the data set has no image {image_id!r}; it has {', '.join(close)}, ...")
    return dataset[image_ids.index(image_id)]


@torch.no_grad()
def stage_features(
    predictor: Predictor, image: Image.Image | np.ndarray, features: str = "projection"
) -> dict[int, EmbeddingTile]:
    """Compute unit features of an image for every stage, finest first, each as one tile with the places of its cells.

    The image is padded as for a prediction; cells that lie in the padding only are left out.

    Args:
        predictor (`Predictor`): Network with its image processor.
        image (`Image` or `np.ndarray` of shape `(H, W, N)`): Image, as the `predictor` takes it.
        features (`str`): Features of `embed`: `"projection"`, `"decode_head"` or `"backbone"`.

    Raises:
        UsageError: If the network has no such features, or features are not finite.
    """
    network = embedding_network(predictor.model)
    with as_usage_error(ValueError):
        network.embedding_stages(features)
    dtype = next(network.parameters()).dtype
    pixel_values, preparation = predictor.prepare([image]).to(dtype), predictor.preparation
    size, (image_width, image_height) = pixel_values.shape[-2:], size_of(image)
    height, width = (-(-side // preparation.size_divisor) * preparation.size_divisor for side in size)
    padded = height, width
    maps = network.stage_embeddings(pad(pixel_values, padded, preparation.padding_mode), features)
    of_image = {}
    for stage, stage_map in maps.items():
        rows, columns = (Axis(*sides) for sides in zip(size, padded, ([0], [0]), stage_map.shape[-2:], strict=True))
        parts = rows.cells_of(0), columns.cells_of(0)
        of_image[stage] = EmbeddingTile(
            finite_outputs(stage_map[0, :, *parts].float(), dtype, "features"),
            *parts,
            *(rows.pixels_of(image_height), columns.pixels_of(image_width)),
            (rows.extent_of(image_height), columns.extent_of(image_width)),
        )
    return of_image


def collect_embeddings(
    predictor: Predictor,
    samples: Dataset | Sequence[dict[str, Any]],
    num_labels: int,
    pixels_per_class: int,
    seed: int = 0,
    features: str = "projection",
) -> list[StageEmbeddings]:
    """Sample pixels of every class from images, with their features.

    Args:
        predictor (`Predictor`): Network with its image processor.
        samples (`datasets.Dataset` or `Sequence[dict]`): Rows {image, label, image_id}, which are read one by one.
        num_labels (`int`): Number of classes.
        pixels_per_class (`int`): Largest number of pixels per class and stage; images contribute about equally.
        seed (`int`): Seed of the sampling.
        features (`str`): Features of `embed`, as for `stage_features`.
    """
    random = np.random.default_rng(seed)
    share = -(-pixels_per_class // len(samples))
    drawn: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for sample in progress(samples, title="projecting", unit="image"):
        image, labels = sample["image"], np.asarray(sample["label"])
        with naming_the_image(sample["image_id"]):
            tiles = stage_features(predictor, image, features)
        for stage, tile in tiles.items():
            pixel_labels = tile.labels_of_cells(labels, image).ravel()
            rows = tile.embeddings.flatten(1).T.cpu().numpy()
            for label in range(num_labels):
                places = np.flatnonzero(pixel_labels == label)
                chosen = random.permutation(places)[:share]
                drawn.setdefault(stage, []).append((rows[chosen], np.full(len(chosen), label)))
    return [_limit(stage, parts, pixels_per_class, random) for stage, parts in drawn.items()]


def _limit(stage: int, parts: list, pixels_per_class: int, random: np.random.Generator) -> StageEmbeddings:
    features, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = [random.permutation(np.flatnonzero(labels == label))[:pixels_per_class] for label in np.unique(labels)]
    places = np.concatenate(kept) if kept else np.array([], dtype=int)
    return StageEmbeddings(stage, features[places], labels[places])


def to_plane(features: np.ndarray, method: str = "tsne", seed: int = 0) -> np.ndarray:
    """Map unit rows (N, D) to points (N, 2) by t-SNE or UMAP, so that similar rows stay close together.

    Raises:
        UsageError: If the method is unknown or not installed, or there are fewer than 4 rows.
    """
    if len(features) < 4:
        raise UsageError(f"{len(features)} pixels are too few for a figure; use more images.")
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise UsageError("`method='umap'` needs umap-learn: pip install umap-learn, or use tsne.") from None
        return UMAP(n_neighbors=min(15, len(features) - 1), metric="cosine", random_state=seed).fit_transform(features)
    if method != "tsne":
        raise UsageError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}.")
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UsageError("`method='tsne'` needs scikit-learn: pip install scikit-learn.") from None
    # squared distances of unit rows are 2 - 2 cos, so the nearest row is the most similar
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(features)


def embedding_figure(
    stages: Sequence[StageEmbeddings],
    points: Sequence[np.ndarray],
    class_names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Any:
    """Draw the pixels of every stage as points colored by class, as a matplotlib figure."""
    figure = _new_figure(len(stages))
    axes = np.atleast_1d(figure.subplots(1, len(stages)))
    for axis, stage, places in zip(axes, stages, points, strict=True):
        colors = np.asarray(palette)[stage.labels] / 255
        axis.scatter(places[:, 0], places[:, 1], s=_POINT_SIZE, c=colors, linewidths=0)
        title = f"stage {stage.stage}: {len(places)} pixels, silhouette {stage.silhouette():.2f}"
        axis.set(title=title, xticks=[], yticks=[])
    present = sorted(set(np.concatenate([stage.labels for stage in stages]).tolist()))
    dots = [
        axes[0].scatter([], [], color=np.asarray(palette[label]) / 255, label=class_names[label]) for label in present
    ]
    figure.legend(handles=dots, loc="outside lower center", ncols=min(len(present), 3 * len(stages)), fontsize=8)
    return figure


def similarity_maps(
    features: dict[int, EmbeddingTile], pixel: tuple[int, int], size: tuple[int, int], across: bool = True
) -> dict[int, np.ndarray]:
    """Compute the cosine similarity between one pixel and every pixel of every stage.

    Args:
        features (`dict`): Unit features by stage, finest first, as `stage_features` returns them.
        pixel (`tuple[int, int]`): Row and column in the image.
        size (`tuple[int, int]`): Height and width of the image.
        across (`bool`): Whether to compare all stages with the pixel of the finest stage, which requires projections,
            since these share a space; otherwise every stage is compared with its own pixel.

    Returns:
        `dict[int, np.ndarray]`: stage -> cosines (H, W), where every pixel of the image has that of its cell.

    Raises:
        UsageError: If the pixel is outside the image.
    """
    if not all(0 <= place < side for place, side in zip(pixel, size, strict=True)):
        raise UsageError(f"`pixel` {pixel[0]} {pixel[1]} is outside the image of {size[0]} rows, {size[1]} columns.")
    maps = {}
    for stage, tile in features.items():
        compared = next(iter(features.values())) if across else tile
        (row,), (column,) = (compared.cells_at([place], axis) for axis, place in enumerate(pixel))
        cosines = torch.einsum("c,chw->hw", compared.embeddings[:, row, column].float(), tile.embeddings.float())
        rows, columns = (tile.cells_at(np.arange(side), axis) for axis, side in enumerate(size))
        maps[stage] = cosines.cpu().numpy()[np.ix_(rows, columns)]
    return maps


def similarity_figure(image: Image.Image, pixel: tuple[int, int], maps: dict[int, np.ndarray]) -> Any:
    """Draw the image with the pixel marked, and a map of cosines per stage, as a matplotlib figure."""
    figure = _new_figure(len(maps) + 1, min(image.height / image.width, MAX_ASPECT))
    axes = figure.subplots(1, len(maps) + 1)
    axes[0].imshow(image)
    axes[0].set(title="image", xticks=[], yticks=[])
    axes[0].plot(pixel[1], pixel[0], "+", color="white", markersize=14, markeredgewidth=3)
    axes[0].plot(pixel[1], pixel[0], "+", color="red", markersize=12, markeredgewidth=1.5)
    for axis, (stage, cosines) in zip(axes[1:], maps.items(), strict=True):
        extent = (0, image.width, image.height, 0)
        shown = axis.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r", extent=extent, interpolation="nearest")
        axis.set(title=f"stage {stage}: cosine", xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes, shrink=0.8)
    return figure


def ask_for_pixel(image: Image.Image) -> tuple[int, int]:
    """Show an image, wait for a click, and return the row and column of the pixel.

    Raises:
        UsageError: If no display is available, or the window was closed.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise UsageError("`click` needs matplotlib: pip install matplotlib.") from None
    if pyplot.get_backend().lower() in ("agg", "pdf", "svg", "ps", "cairo", "template"):
        raise UsageError("`click` needs a display; give `pixel` instead.")
    pyplot.imshow(image)
    pyplot.title("click on a pixel")
    clicks = pyplot.ginput(1, timeout=0)
    pyplot.close()
    if not clicks:
        raise UsageError("`click`: the window was closed without a click.")
    return int(clicks[0][1]), int(clicks[0][0])


def _new_figure(panels: int, aspect: float = 1.0) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("Figures need matplotlib: pip install matplotlib.") from None
    return Figure(figsize=(_INCHES * panels, _INCHES * aspect + 1), layout="constrained")
