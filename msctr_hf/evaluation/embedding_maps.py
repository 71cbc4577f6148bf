"""Embeddings of the pixels of images of any size, whole or by sliding windows.

D = channels; h, w = rows and columns of the map of embeddings, whose cells are several pixels wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..data.channels import size_of
from ..errors import as_usage_error
from ..models.contrastive_adapter import ContrastiveAdapter
from ..models.image_processing_msctr import pad
from ..models.pixel_embeddings import FORMER_FEATURES
from .finite import finite_outputs
from .inference import window_starts
from .predictor import Predictor
from .settings import Size


class EmbeddingTile(NamedTuple):
    """Part of the embeddings of an image.

    Args:
        embeddings (`torch.Tensor` of shape `(D, rows, columns)`): Unit vectors, float32 by default.
        rows, columns (`slice`): Place of the part in the map of the image.
        pixel_rows (`np.ndarray` of shape `(h,)`): Pixel row of the image at the center of every row of its whole map.
        pixel_columns (`np.ndarray` of shape `(w,)`): Likewise, the pixel columns.
        extent (`tuple[int, int]`): Rows and columns of pixels that the whole map covers; its last cells may reach
            beyond the image.
    """

    embeddings: torch.Tensor
    rows: slice
    columns: slice
    pixel_rows: np.ndarray
    pixel_columns: np.ndarray
    extent: Size

    def cells_at(self, pixels: Sequence[int] | np.ndarray, axis: int) -> np.ndarray:
        """Return the cells of the whole map in which rows (axis 0) or columns (axis 1) of the image are."""
        centers = (self.pixel_rows, self.pixel_columns)[axis]
        return np.asarray(pixels) * len(centers) // self.extent[axis]

    def labels_of_cells(self, labels: np.ndarray, image: Image.Image | np.ndarray) -> np.ndarray:
        """Return the labels at the center of every cell of the whole map, (h, w); they may have another size."""
        width, height = size_of(image)
        rows, columns = self.pixel_rows * labels.shape[0] // height, self.pixel_columns * labels.shape[1] // width
        return labels[np.ix_(rows, columns)]


class Embedder:
    """Network that embeds the pixels of images, on the path of `Predictor` from images to pixel values.

    With a sliding window, every cell of the map has the embedding from the window whose center is nearest, where most
    of its surroundings are visible. Scales and mirror images are not used. A model of transformers gives projections
    if its projection head was saved next to it, and hidden states otherwise.

    Args:
        predictor (`Predictor`): Network with its image processor, and the settings of windows and batches.
        features (`str`): Features of `embed`: `"projection"`, `"decode_head"` or `"backbone"`.
        stage (`int`, *optional*): Stage, from 1, the finest; by default all stages together.

    Raises:
        UsageError: If the network has no such features, or no such stage.
    """

    def __init__(self, predictor: Predictor, features: str = "projection", stage: int | None = None):
        self.predictor = predictor
        self.network = embedding_network(predictor.model)
        self.features, self.stage = FORMER_FEATURES.get(features, features), stage
        with as_usage_error(ValueError):
            self.network.embedding_stages(features, stage)

    @torch.no_grad()
    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        """Embed an image: (D, h, w), unit vectors, float32, on the device of the network."""
        return self.whole(image).embeddings

    @torch.no_grad()
    def whole(
        self,
        image: Image.Image | np.ndarray,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> EmbeddingTile:
        """Embed an image, and return its whole map as one tile, with the places of its cells in the image.

        Args:
            image (`Image` or `np.ndarray` of shape `(H, W, N)`): Image, as the network takes it.
            dtype (`torch.dtype`): Type of the map, to which every window is converted by itself.
            device (`torch.device` or `str`, *optional*): Where the map is; on the device of the network by default.
        """
        whole = None
        for tile in self.tiles(image):
            if whole is None:
                size = len(tile.pixel_rows), len(tile.pixel_columns)
                at = tile.embeddings.device if device is None else device
                whole = torch.empty((len(tile.embeddings), *size), dtype=dtype, device=at)
            whole[:, tile.rows, tile.columns] = tile.embeddings.to(whole.device, dtype)
        return tile._replace(embeddings=whole, rows=slice(0, size[0]), columns=slice(0, size[1]))

    @torch.no_grad()
    def tiles(self, image: Image.Image | np.ndarray) -> Iterator[EmbeddingTile]:
        """Yield the embeddings of an image window by window, so that no more than a batch of them is in memory."""
        pixel_values = self.predictor.prepare([image])[0]
        settings, preparation = self.predictor.settings, self.predictor.preparation
        size, (image_width, image_height) = pixel_values.shape[-2:], size_of(image)
        if settings.window_size is not None:
            window, strides = settings.window_size, settings.stride
        else:  # a single window, which the padding makes larger than the image
            divisor = preparation.size_divisor
            height, width = (-(-side // divisor) * divisor for side in size)
            window = strides = height, width
        tops, lefts = (window_starts(*side) for side in zip(size, window, strides, strict=True))
        places = [(top, left) for top in range(len(tops)) for left in range(len(lefts))]
        for start in range(0, len(places), settings.batch_size):
            batch = places[start : start + settings.batch_size]
            crops = [
                pad(_crop(pixel_values, tops[top], lefts[left], window), window, preparation.padding_mode)
                for top, left in batch
            ]
            maps = self._embed(torch.stack(crops))
            # the same for all batches, since all windows have one size
            rows, columns = (Axis(*sides) for sides in zip(size, window, (tops, lefts), maps.shape[-2:], strict=True))
            in_image = rows.pixels_of(image_height), columns.pixels_of(image_width)
            extent = rows.extent_of(image_height), columns.extent_of(image_width)
            for (top, left), embeddings in zip(batch, maps, strict=True):
                of_rows, of_columns = rows.cells_of(top), columns.cells_of(left)
                inside = embeddings[:, rows.in_window(top)][:, :, columns.in_window(left)]
                yield EmbeddingTile(inside, of_rows, of_columns, *in_image, extent)

    def embed_cells(
        self, image: Image.Image | np.ndarray, choose: Callable[[EmbeddingTile], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embed some cells of an image.

        Args:
            image (`Image` or `np.ndarray` of shape `(H, W, N)`): Image, as the network takes it.
            choose (`Callable`): Function of the first tile, with the places of all cells in the image, which returns
                the chosen ones as places in the flattened map, (N,).

        Returns:
            `tuple[np.ndarray, np.ndarray]`: unit vectors (N, D), float32, and rows and columns in the image (N, 2).
        """
        rows = columns = embeddings = None
        for tile in self.tiles(image):
            if embeddings is None:
                cells = choose(tile)
                rows, columns = np.divmod(cells, len(tile.pixel_columns))
                pixels = np.stack([tile.pixel_rows[rows], tile.pixel_columns[columns]], axis=1)
                embeddings = np.empty((len(cells), len(tile.embeddings)), np.float32)
            inside = np.flatnonzero(_is_in(rows, tile.rows) & _is_in(columns, tile.columns))
            row, column = (
                torch.from_numpy(places[inside] - part.start)
                for places, part in ((rows, tile.rows), (columns, tile.columns))
            )
            embeddings[inside] = tile.embeddings[:, row, column].T.cpu().numpy()
        return embeddings, pixels

    def _embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        parameter = next(self.network.parameters())
        pixel_values = pixel_values.to(parameter.device, parameter.dtype)
        embeddings = self.network.embed(pixel_values, self.features, self.stage).float()
        return finite_outputs(embeddings, parameter.dtype, "features")


def embedding_network(model: Any) -> Any:
    """Return a network with the methods of `PixelEmbeddings`: the model itself, or a model of transformers adapted.

    Raises:
        UsageError: If the model has no hidden states that can be embedded, or its projection head is damaged.
    """
    if hasattr(model, "embedding_stages"):
        return model
    with as_usage_error(ValueError):
        return ContrastiveAdapter.with_saved_head(model)


def _crop(pixel_values: torch.Tensor, top: int, left: int, window: tuple[int, ...]) -> torch.Tensor:
    return pixel_values[:, top : top + window[0], left : left + window[1]]


def _is_in(places: np.ndarray, part: slice) -> np.ndarray:
    return (places >= part.start) & (places < part.stop)


class Axis:
    """Cells of a map along one side of an image, each with the window that it is taken from.

    Args:
        side (`int`): Length of the side, in pixels.
        window (`int`): Length of a window.
        starts (`list[int]`): First pixels of the windows.
        cells_per_window (`int`): Number of cells in a window.
    """

    def __init__(self, side: int, window: int, starts: list[int], cells_per_window: int):
        self.side, self.window, self.starts, self.cells_per_window = side, window, starts, cells_per_window
        cells = np.arange(-(-side * cells_per_window // window))
        # The last cell of an image may be cut off: its center is moved inside.
        self.pixels = np.minimum((2 * cells + 1) * window // (2 * cells_per_window), side - 1)
        distances = np.abs(2 * self.pixels[:, None] + 1 - (2 * np.array(starts) + window))
        self.windows = distances.argmin(axis=1)

    def cells_of(self, window: int) -> slice:
        """Return the cells, which are neighbors, that are taken from a window."""
        first, stop = np.searchsorted(self.windows, [window, window + 1])
        return slice(int(first), int(stop))

    def in_window(self, window: int) -> torch.Tensor:
        """Return the places of these cells in the map of the window."""
        pixels = self.pixels[self.cells_of(window)] - self.starts[window]
        return torch.from_numpy(pixels * self.cells_per_window // self.window)

    def pixels_of(self, side: int) -> np.ndarray:
        """Return the pixels at the centers of the cells in an image that was resized from a side of this length."""
        return (2 * self.pixels + 1) * side // (2 * self.side)

    def extent_of(self, side: int) -> int:
        """Return the length that all cells cover in an image that was resized from a side of this length."""
        return round(len(self.pixels) * self.window * side / (self.cells_per_window * self.side))
