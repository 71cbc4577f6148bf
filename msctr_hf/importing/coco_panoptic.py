"""COCO panoptic: a PNG per image whose colors are ids of segments, and a JSON file with the category of each segment.

The pixels of a PNG are those of its image, so there is no question of edges and centers. Pixels without a segment, of
id 0, are ignored, as COCO does.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data.image_files import visible_entries
from ..data.labels import IGNORE_INDEX, Color
from ..errors import UsageError
from .coco import (
    exported_images,
    folder_of,
    image_of,
    is_document,
    is_panoptic,
    label_of,
    read_categories,
    read_images,
    read_splits,
    without_split,
)
from .export import Export, ExportedImage, ImageFiles, Size, entry, existing, find_background, read_json, read_mask


def is_export(source: Path) -> bool:
    """Return whether a file, or one of those in a folder, lists segments of PNGs."""
    return any(is_document(document) and is_panoptic(document) for document in map(read_json, _json_files(source)))


def _json_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix.lower() == ".json" else []
    patterns = ("panoptic*.json", "*/panoptic*.json")
    return sorted(path for pattern in patterns for path in visible_entries(source, pattern))


def read_export(source: Path, image_dir: Path | None, keep_crowds: bool) -> Export:
    """Read one file for every split. Crowd regions are ignored unless `keep_crowds`."""
    documents = {path: document for path in _json_files(source) if is_document(document := read_json(path))}
    if not documents:
        raise UsageError(f"{source} has no file panoptic*.json with `images`, `annotations` and `categories`.")
    categories = {path: read_categories(document, path) for path, document in documents.items()}
    classes = list(dict.fromkeys(name for names in categories.values() for name in names.values()))
    masks = {path: _mask_folder(path) for path in documents}
    splits = read_splits(documents, source)
    files = ImageFiles(
        image_dir or folder_of(source), without=["annotations", *(place.name for place in masks.values())]
    )
    images: list[ExportedImage] = []
    for path, document in documents.items():
        labels = {number: classes.index(name) for number, name in categories[path].items()}
        listed = read_images(document, path)
        draws = {}
        for number, annotation in enumerate(document["annotations"]):
            image_id = image_of(annotation, f"{path}, annotation at position {number}", listed)
            source_of = f"{path}, annotation of image {image_id}"
            ids = _read_segments(annotation, labels, keep_crowds, source_of)
            png = masks[path] / entry(annotation, "file_name", str, source_of)
            draws[image_id] = partial(_draw, existing(png) or png, ids, source_of)
        images += exported_images(listed, path, splits[path], files, folder_of(source), draws)
    colors = _read_colors(documents.values())
    return Export(
        classes,
        images,
        find_background(classes),
        colors,
        files.left_over(images),
        without_split(splits),
        files.notes(),
    )


def _mask_folder(path: Path) -> Path:
    """Find the folder of PNGs: it has the name of the JSON file without its ending."""
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise UsageError(f"{path}: the folder {folder} with its PNGs does not exist; unpack them there.")
    return folder


def _read_colors(documents: Any) -> dict[str, Color]:
    colors = {}
    for category in (each for document in documents for each in document["categories"]):
        color = category.get("color")
        if isinstance(color, list) and len(color) == 3 and all(value in range(256) for value in color):
            colors[category["name"].strip()] = (int(color[0]), int(color[1]), int(color[2]))
    return colors


def _read_segments(annotation: Any, labels: dict[int, int], keep_crowds: bool, source: str) -> dict[int, int]:
    """Read the labels of segments by id."""
    ids = {0: IGNORE_INDEX}
    for segment in entry(annotation, "segments_info", list, source):
        number = entry(segment, "id", int, f"{source}, a segment")
        label = label_of(segment, labels, f"{source}, segment {number}")
        ids[number] = IGNORE_INDEX if segment.get("iscrowd") and not keep_crowds else label
    return ids


def _draw(png: Path, ids: dict[int, int], source: str, size: Size) -> np.ndarray:
    colors = read_mask(png, by_color=True).astype(np.int64)
    present, places = np.unique(colors @ np.array([1, 1 << 8, 1 << 16]), return_inverse=True)
    if unknown := [number for number in present.tolist() if number not in ids]:
        raise UsageError(f"{png} has the segment {unknown[0]}, which {source} does not list.")
    return np.array([ids[number] for number in present.tolist()], dtype=np.uint8)[places].reshape(colors.shape[:2])
