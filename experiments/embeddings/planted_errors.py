"""Errors that are planted into labels, to measure which of them a check of labels finds.

An object is a 4-connected component of one class. Of all objects of a data set a share is drawn, and divided into

- swapped: the object gets another class, drawn from all others;
- shifted: the object is moved by `SHIFT` pixels in one of eight directions, what it leaves bare gets the class of its
  largest neighbor;
- erased: the object gets the class of its largest neighbor.

The largest neighbor is the class with the most pixels that touch the object. Pixels that are ignored stay so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage

from msctr_hf.evaluation.label_regions import Region

KINDS = ("swapped", "shifted", "erased")
MIN_AREA = 200  # pixels of an object
SHARE = 0.05
SHIFT = 10
FIRST_PAGE = 50
_DIRECTIONS = [direction for direction in product((-1, 0, 1), repeat=2) if direction != (0, 0)]


@dataclass(frozen=True)
class PlantedError:
    """Error in the labels of one image.

    Args:
        image_id (`str`): Id of the image.
        kind (`str`): One of `KINDS`.
        changed (`np.ndarray` of shape `(H, W)`, bool): Pixels whose label is wrong.
    """

    image_id: str
    kind: str
    changed: np.ndarray


def plant_errors(
    labels: Mapping[str, np.ndarray], num_classes: int, seed: int
) -> tuple[dict[str, np.ndarray], list[PlantedError]]:
    """Plant errors into a share of all objects of at least `MIN_AREA` pixels, a third of every kind.

    Args:
        labels (`Mapping[str, np.ndarray]` of shapes `(H, W)`, uint8): Image id -> train ids, larger where ignored.
        num_classes (`int`): Number of classes.
        seed (`int`): Seed of the drawn objects, kinds, classes and directions.

    Returns:
        `tuple`: image id -> labels with errors, of the images that have any; the errors that changed a pixel.
    """
    random = np.random.default_rng(seed)
    objects = [(image_id, *found) for image_id in labels for found in _objects(labels[image_id], num_classes)]
    drawn = random.permutation(len(objects))[: round(SHARE * len(objects))]
    wrong: dict[str, np.ndarray] = {}
    errors = []
    for number, place in enumerate(drawn):
        image_id, label, where, inside = objects[place]
        before = labels[image_id]
        mask = np.zeros(before.shape, bool)
        mask[where] = inside
        kind = KINDS[number % len(KINDS)]
        after = wrong.setdefault(image_id, before.copy())
        untouched = after == before  # an object is not changed twice
        if kind == "swapped":
            target, values = mask, (label + random.integers(1, num_classes)) % num_classes
        elif kind == "erased":
            target, values = mask, _largest_neighbor(before, mask, num_classes)
        else:
            moved = _moved(mask, _DIRECTIONS[random.integers(len(_DIRECTIONS))])
            target, values = mask ^ moved, np.where(moved, label, _largest_neighbor(before, mask, num_classes))
        target = target & untouched & (before < num_classes)
        after[target] = np.broadcast_to(values, before.shape)[target]
        changed = target & (after != before)
        if changed.any():
            errors.append(PlantedError(image_id, kind, changed))
    return wrong, errors


def found_by(regions: Sequence[Region], errors: Sequence[PlantedError]) -> list[int | None]:
    """Find the error that every region shows, in the order of the regions.

    A region shows an error of its image if it covers at least half of the wrong pixels, and has at most three times
    their area. An error is shown once, by the first such region.

    Args:
        regions (`Sequence[Region]`): Regions, the most suspicious first.
        errors (`Sequence[PlantedError]`): Errors.

    Returns:
        `list[int | None]`: place of the error in `errors`, for every region.
    """
    of_image: dict[str, list[int]] = {}
    for place, error in enumerate(errors):
        of_image.setdefault(error.image_id, []).append(place)
    found: list[int | None] = []
    shown: set[int] = set()
    for region in regions:
        places = [place for place in of_image.get(region.image_id, []) if place not in shown]
        hit = next((place for place in places if _shows(region, errors[place].changed)), None)
        found.append(hit)
        shown.update([] if hit is None else [hit])
    return found


def measure(found: Sequence[int | None], num_errors: int) -> dict[str, float]:
    """Compute the precision among the first `FIRST_PAGE` regions, and the recall among as many as there are errors."""
    first = found[:FIRST_PAGE]
    return {
        "precision_at_50": sum(hit is not None for hit in first) / FIRST_PAGE,
        "recall": sum(hit is not None for hit in found[:num_errors]) / num_errors,
    }


def _objects(labels: np.ndarray, num_classes: int) -> Iterator[tuple[int, tuple[slice, ...], np.ndarray]]:
    """Yield class, bounding box and mask of every object that is large enough."""
    for label in range(num_classes):
        components, _ = ndimage.label(labels == label)
        for number, where in enumerate(ndimage.find_objects(components), start=1):
            inside = components[where] == number
            if inside.sum() >= MIN_AREA:
                yield label, where, inside


def _largest_neighbor(labels: np.ndarray, mask: np.ndarray, num_classes: int) -> int:
    """Return the class of the most pixels around an object, or that of the object if no class is around it."""
    around = labels[ndimage.binary_dilation(mask) & ~mask]
    counts = np.bincount(around[around < num_classes], minlength=num_classes)
    return int(counts.argmax()) if counts.any() else int(labels[mask][0])


def _moved(mask: np.ndarray, direction: Sequence[int]) -> np.ndarray:
    """Move a mask by `SHIFT` pixels; what leaves the image is lost."""
    return ndimage.shift(mask, [SHIFT * step for step in direction], order=0, cval=0)


def _shows(region: Region, changed: np.ndarray) -> bool:
    covered, area = (changed[region.part] & region.mask).sum(), changed.sum()
    return bool(2 * covered >= area and region.area <= 3 * area)
