"""Regions of an image whose labels are probably wrong, from what its cells say.

h, w = rows and columns of the map of embeddings, whose cells are several pixels wide; N = cells; C = classes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import first_line
from .settings import Size

# A trained network is often too sure: smaller probabilities would not be more evidence, but outweigh all votes.
_LEAST_PROBABILITY = 1e-3


@dataclass(frozen=True)
class Region:
    """Connected pixels of one label that seem to show one other class.

    Args:
        place (`int`): Place of the image in its data set.
        image_id (`str`): Id of the image.
        label (`int`): Train id that the pixels have.
        suggestion (`int`): Train id that they seem to have.
        score (`float`): Suspicion. It grows with the number of pixels, and is therefore comparable only between images
            in which the same objects have about as many.
        top, left (`int`): First row and column of its bounding box.
        mask (`np.ndarray` of shape `(rows, columns)`, bool): Its pixels in the bounding box.
    """

    place: int
    image_id: str
    label: int
    suggestion: int
    score: float
    top: int
    left: int
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """First row and column of the bounding box, and those after its last."""
        return self.top, self.left, self.top + self.mask.shape[0], self.left + self.mask.shape[1]

    @property
    def part(self) -> tuple[slice, slice]:
        """Rows and columns of the bounding box."""
        top, left, bottom, right = self.box
        return slice(top, bottom), slice(left, right)


def suggest_classes(
    labels: np.ndarray, votes: np.ndarray, probabilities: np.ndarray, can_vote: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Suggest a class for every cell, with a score that is above 0 where the label is suspicious.

    The agreement of a cell with a class is the geometric mean of its share of the votes and its probability, both kept
    away from 0. The class with the largest agreement is suggested. The score is the logarithm of its agreement over
    that of the label, but 0 where the label has the most votes or the largest probability: both must object. A class
    that no neighbor could vote for is never suggested, and has the agreement of its probability alone.

    Args:
        labels (`np.ndarray` of shape `(N,)`, int): Train ids.
        votes (`np.ndarray` of shape `(N, C)`): Number of neighbors of every class.
        probabilities (`np.ndarray` of shape `(N, C)`): Probabilities of the network.
        can_vote (`np.ndarray` of shape `(C,)`, bool): Classes of the possible neighbors.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: train ids (N,), int64, and scores (N,), float64.
    """
    cells, num_classes = np.arange(len(labels)), votes.shape[1]
    shares = (votes + 1.0) / (votes.sum(axis=1, keepdims=True) + num_classes)
    log_probabilities = np.log(np.maximum(probabilities, _LEAST_PROBABILITY, dtype=np.float64))
    agreement = (np.log(shares) + log_probabilities) / 2
    of_label = np.where(can_vote[labels], agreement[cells, labels], log_probabilities[cells, labels])
    agreement[:, ~can_vote] = -np.inf
    suggestions = agreement.argmax(axis=1)
    scores = agreement[cells, suggestions] - of_label
    both_object = (votes[cells, labels] < votes.max(axis=1)) & (
        probabilities[cells, labels] < probabilities.max(axis=1)
    )
    return suggestions, np.where(both_object, np.maximum(scores, 0), 0)


class Component(NamedTuple):
    """Connected suspicious cells of one label and one suggestion.

    Args:
        label (`int`): Train id that the cells have.
        suggestion (`int`): Train id that they seem to have.
        part (`tuple[slice, slice]`): Rows and columns of their bounding box in the map (h, w).
        cells (`np.ndarray` of shape `(rows, columns)`, bool): The cells in the bounding box.
    """

    label: int
    suggestion: int
    part: tuple[slice, slice]
    cells: np.ndarray


def find_components(
    labels: np.ndarray, suggestions: np.ndarray, scores: np.ndarray, boundary_width: int
) -> Iterator[Component]:
    """Find the 4-connected suspicious cells of every pair of a label and a suggestion.

    Labels are often inexact along boundaries. Therefore components all of whose cells are within `boundary_width`
    cells of another label are left out; 0 keeps all. After one pass over the map, a component costs as much as its
    bounding box.

    Args:
        labels (`np.ndarray` of shape `(h, w)`, int): Train ids, and other values where ignored.
        suggestions (`np.ndarray` of shape `(h, w)`, int): Suggested train ids.
        scores (`np.ndarray` of shape `(h, w)`): Scores, above 0 where the label is suspicious.
        boundary_width (`int`): Width of boundaries, in cells.

    Yields:
        `Component`: connected cells, in the order of labels, suggestions, and first cells.
    """
    from scipy import ndimage

    size = 2 * boundary_width + 1
    largest, smallest = (extreme(labels, size=size) for extreme in (ndimage.maximum_filter, ndimage.minimum_filter))
    is_suspicious = scores > 0
    numbers = _number_components(labels, suggestions, is_suspicious)
    inside = np.flatnonzero(is_suspicious & (largest == smallest))
    kept, first = np.unique(numbers.ravel()[inside], return_index=True)
    of_label, of_suggestion = (values.ravel()[inside[first]] for values in (labels, suggestions))
    parts = ndimage.find_objects(numbers)
    for place in np.lexsort((kept, of_suggestion, of_label)):
        part = parts[kept[place] - 1]
        yield Component(int(of_label[place]), int(of_suggestion[place]), part, numbers[part] == kept[place])


def _number_components(labels: np.ndarray, suggestions: np.ndarray, is_suspicious: np.ndarray) -> np.ndarray:
    """Number the 4-connected suspicious cells of equal pairs, from 1, in the order of their first cells.

    Between neighbors of the map, a finer one has a cell that joins them where they belong together. Thus a single pass
    serves all pairs.
    """
    from scipy import ndimage

    joined = np.zeros([2 * side - 1 for side in labels.shape], dtype=bool)
    joined[::2, ::2] = is_suspicious
    for axis, between in enumerate((joined[1::2, ::2], joined[::2, 1::2])):
        before, after = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        between[...] = is_suspicious[before] & is_suspicious[after]
        for values in (labels, suggestions):
            between &= values[before] == values[after]
    return np.ascontiguousarray(ndimage.label(joined)[0][::2, ::2])


def pixels_of_cells(
    component: Component, size: Size, extent: Size, labels: np.ndarray
) -> tuple[int, int, np.ndarray] | None:
    """Return the pixels in the cells of a component that have its label.

    Args:
        component (`Component`): The cells.
        size (`tuple[int, int]`): Rows and columns of the map that they are in.
        extent (`tuple[int, int]`): Rows and columns of pixels that the map covers, as in `EmbeddingTile`.
        labels (`np.ndarray` of shape `(H, W)`): Labels of the pixels.

    Returns:
        `tuple[int, int, np.ndarray]`: first row and column of the bounding box and its pixels, bool; `None` if there
        are none.
    """
    cell_of = []  # only the pixels of the box are looked at: its first row and column, and the cell of every pixel
    for side, of_cells, covered, part in zip(labels.shape, size, extent, component.part, strict=True):
        first, stop = (min(side, -(-place * covered // of_cells)) for place in (part.start, part.stop))
        cell_of.append((first, np.arange(first, stop) * of_cells // covered - part.start))
    (top, rows), (left, columns) = cell_of
    has_label = labels[top : top + len(rows), left : left + len(columns)] == component.label
    mask = component.cells[np.ix_(rows, columns)] & has_label
    if not mask.any():
        return None
    in_rows, in_columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    inside = mask[in_rows[0] : in_rows[-1] + 1, in_columns[0] : in_columns[-1] + 1]
    return int(top + in_rows[0]), int(left + in_columns[0]), inside


def save_regions(path: Path, regions: Sequence[Region], key: str = "") -> None:
    """Write regions, and a key that says what they belong to, to a file, which is complete or not there."""
    arrays = {
        "key": np.array(key),
        "places": np.array([region.place for region in regions], dtype=np.int64),
        "image_ids": np.array([region.image_id for region in regions], dtype=str),
        "pairs": np.array([(region.label, region.suggestion) for region in regions], dtype=np.int64).reshape(-1, 2),
        "scores": np.array([region.score for region in regions], dtype=np.float64),
        "boxes": np.array([region.box for region in regions], dtype=np.int64).reshape(-1, 4),
        "masks": np.packbits(np.concatenate([np.zeros(0, bool), *(region.mask.ravel() for region in regions)])),
    }
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        partial.replace(path)
    finally:
        with suppress(OSError):  # it has been renamed, or nothing could be written
            partial.unlink()


def load_regions(path: Path) -> tuple[list[Region], str]:
    """Read what `save_regions` wrote.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file}
        boxes = arrays["boxes"].tolist()
        sizes = [(bottom - top, right - left) for top, left, bottom, right in boxes]
        stops = np.cumsum([0, *(rows * columns for rows, columns in sizes)])
        pixels = np.unpackbits(arrays["masks"], count=int(stops[-1])).astype(bool)
        masks = [
            pixels[start:stop].reshape(size) for start, stop, size in zip(stops[:-1], stops[1:], sizes, strict=True)
        ]
        columns = [arrays[name].tolist() for name in ("places", "image_ids", "pairs", "scores")]
        key = str(arrays["key"])
    except (KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"it is damaged ({first_line(error)})") from error
    regions = [
        Region(place, image_id, label, suggestion, score, top, left, mask)
        for place, image_id, (label, suggestion), score, (top, left, *_), mask in zip(
            *columns, boxes, masks, strict=True
        )
    ]
    return regions, key
