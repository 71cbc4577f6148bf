"""Roboflow, "Semantic Segmentation Masks": images, masks and _classes.csv side by side in the folder of every split.

The pixels of a mask are those of its image, so there is no question of edges and centers.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import numpy as np

from ..data.image_files import is_image, visible_entries
from ..data.labels import LabelMapping, is_raw_value
from ..errors import UsageError, as_usage_error
from .export import (
    Export,
    ExportedImage,
    Size,
    by_name,
    class_name,
    find_background,
    left_over,
    left_over_in,
    read_mask,
    read_text,
    split_of,
    whole_number,
)

_CLASSES, _MASK = "_classes.csv", "_mask"


def is_export(source: Path) -> bool:
    """Return whether a folder, or one below it, has a list of classes."""
    return bool(_folders(source))


def read_export(source: Path, image_dir: Path | None, keep_crowds: bool) -> Export:
    """Read an export. It always contains the images, and no crowd regions."""
    if image_dir is not None:
        raise UsageError("`image_dir`: an export of Roboflow contains its images; leave `image_dir` out.")
    folders = _folders(source)
    if not folders:
        raise UsageError(f"{source} has no {_CLASSES}, nor has any folder in it.")
    values = {folder: _read_classes(folder / _CLASSES) for folder in folders}
    classes = list(dict.fromkeys(name for names in values.values() for name in names.values()))
    images = []
    for folder, names in values.items():
        mapping = LabelMapping({value: classes.index(name) for value, name in names.items()})
        paths = [path for path in visible_entries(folder) if is_image(path)]
        named = by_name(paths, folder)
        masks = {name.removesuffix(_MASK): path for name, path in named.items() if name.endswith(_MASK)}
        shown = {name: path for name, path in named.items() if not name.endswith(_MASK)}
        if without := sorted({*masks} - {*shown}):
            raise UsageError(f"{masks[without[0]]}: the image of this mask, {without[0]!r}, is not beside it.")
        images += [
            ExportedImage(
                path.name,
                path,
                split_of(folder.name) if folder != source else None,
                partial(_draw, masks[stem], mapping) if stem in masks else None,
                source=str(masks.get(stem, path)),
            )
            for stem, path in shown.items()
        ]
    beside = [path for path in visible_entries(source, "*/*") if is_image(path) and path.parent not in folders]
    left = [*left_over_in({*folders} - {source}, images), *left_over(beside, images)]
    left = [path for path in left if not path.stem.endswith(_MASK)]
    return Export(classes, images, find_background(classes), left_over=left)


def _folders(source: Path) -> list[Path]:
    return [path.parent for path in (source / _CLASSES, *visible_entries(source, f"*/{_CLASSES}")) if path.is_file()]


def _read_classes(path: Path) -> dict[int, str]:
    """Read the names of classes by pixel value, from lines like "1, car" after the names of the columns."""
    with as_usage_error(csv.Error, prefix=f"{path} cannot be read: "):
        rows = [row for row in csv.reader(read_text(path).splitlines(), skipinitialspace=True) if any(row)]
    names: dict[int, str] = {}
    for number, row in enumerate(rows[1:], 2):
        source = f"{path}, line {number}"
        value = whole_number(row[0].strip())
        if not is_raw_value(value) or len(row) != 2:
            raise UsageError(f"{source}: a line must be like '1, car', got {', '.join(row)!r:.60}.")
        if value in names:
            raise UsageError(f"{source}: the value {value} is listed twice.")
        names[value] = class_name(row[1], f"{source}: the class")
    return names


def _draw(mask: Path, mapping: LabelMapping, size: Size) -> np.ndarray:
    return mapping(read_mask(mask, by_color=False), str(mask))
