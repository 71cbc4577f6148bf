"""COCO instances: polygons and run-length encoded masks, as COCO, CVAT, Label Studio, Roboflow and others write them.

Coordinates of polygons are edges between pixels: the first pixel extends from 0 to 1. Polygons of one annotation are
united; holes exist only in run-length encoded masks and in outlines that cross or touch themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..data.image_files import visible_entries
from ..data.labels import IGNORE_INDEX
from ..errors import UsageError
from .drawing import DrawnObject, Patch, draw_objects, fill_polygons
from .export import (
    Export,
    ExportedImage,
    ImageFiles,
    Size,
    class_name,
    composed,
    entry,
    polygon_points,
    read_json,
    read_size,
    split_of,
    with_background,
)

_KEYS = {"images", "annotations", "categories"}
_LABEL_STUDIO = "Label Studio"  # the contributor of its COCO; that of its brushes to COCO has the size as shown
_OTHER_TASKS = ("person_keypoints", "captions", "panoptic", "image_info", "stuff")


def is_export(source: Path) -> bool:
    """Return whether a file, or one of those in a folder, lists images, annotations of objects, and categories."""
    return any(not is_panoptic(read_json(path)) for path in annotation_files(source))


def is_panoptic(document: dict[str, Any]) -> bool:
    """Return whether annotations refer to PNGs of segments instead of having polygons and masks of their own."""
    return any(isinstance(each, dict) and "segments_info" in each for each in document["annotations"][:1])


def annotation_files(source: Path) -> list[Path]:
    """Find the JSON files of annotations: `source` itself, or those in it, in annotations/ or in its other folders."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".json" and is_document(read_json(source)) else []
    return [path for path in json_files(source) if is_document(read_json(path))]


def json_files(source: Path) -> list[Path]:
    """Find JSON files that may be of COCO instances, in a folder and in those in it."""
    paths = [path for pattern in ("*.json", "*/*.json") for path in visible_entries(source, pattern)]
    return sorted(path for path in paths if not path.name.startswith(_OTHER_TASKS))


def is_document(document: Any) -> bool:
    """Return whether the contents of a JSON file have the keys of COCO."""
    return isinstance(document, dict) and {*document} >= _KEYS and isinstance(document["annotations"], list)


def read_export(source: Path, image_dir: Path | None, keep_crowds: bool) -> Export:
    """Read one file for every split. Crowd regions are ignored unless `keep_crowds`."""
    documents = {path: read_json(path) for path in ([source] if source.is_file() else json_files(source))}
    documents = {path: each for path, each in documents.items() if source.is_file() or is_document(each)}
    if not documents:
        raise UsageError(f"{source} has no JSON file with `images`, `annotations` and `categories`.")
    categories = {path: read_categories(document, path) for path, document in documents.items()}
    classes, background = with_background(name for names in categories.values() for name in names.values())
    splits = read_splits(documents, source)
    files = ImageFiles(image_dir or folder_of(source), without=[] if image_dir else ["annotations"])
    images: list[ExportedImage] = []
    for path, document in documents.items():
        labels = {number: classes.index(name) for number, name in categories[path].items()}
        listed = read_images(document, path)
        info = document.get("info")
        from_shares = isinstance(info, dict) and info.get("contributor") == _LABEL_STUDIO
        annotations: dict[int | str, list[tuple[dict[str, Any], str]]] = {}
        for number, annotation in enumerate(entry(document, "annotations", list, str(path))):
            name = f"{path}, annotation {name_of(annotation, number)}"
            annotations.setdefault(image_of(annotation, name, listed), []).append((annotation, name))
        draws = {
            image_id: partial(_draw, described, labels, background, keep_crowds)
            for image_id, described in annotations.items()
        }
        found = exported_images(listed, path, splits[path], files, folder_of(source), draws)
        images += [replace(image, from_shares=from_shares) for image in found]
    return Export(
        classes,
        images,
        background,
        left_over=files.left_over(images),
        without_split=without_split(splits),
        notes=files.notes(),
        doubtful_crowds=sum(_count_doubtful_crowds(document["annotations"]) for document in documents.values()),
    )


def _count_doubtful_crowds(annotations: list[dict[str, Any]]) -> int:
    """Count the crowd regions of a file of Datumaro, the library of CVAT, which marks every mask as one.

    Its annotations have `attributes`, and always do in exports of CVAT; those of COCO do not.
    """
    has_attributes = any("attributes" in annotation for annotation in annotations)
    return sum(bool(annotation.get("iscrowd")) for annotation in annotations) if has_attributes else 0


def read_categories(document: dict[str, Any], path: Path) -> dict[int, str]:
    """Read the names of categories by id."""
    names: dict[int, str] = {}
    for number, category in enumerate(entry(document, "categories", list, str(path))):
        number = entry(category, "id", int, f"{path}, category {name_of(category, number)}")
        if number in names:
            raise UsageError(f"{path}: two categories have the id {number}.")
        names[number] = class_name(category.get("name"), f"{path}: the category {number}")
    return names


def read_images(document: dict[str, Any], path: Path) -> dict[int | str, dict[str, Any]]:
    """Read the entries of images by id, which is text in some data sets, such as Cityscapes."""
    listed: dict[int | str, dict[str, Any]] = {}
    for number, image in enumerate(entry(document, "images", list, str(path))):
        image_id = entry(image, "id", (int, str), f"{path}, image {name_of(image, number)}")
        if image_id in listed:
            raise UsageError(f"{path}: two images have the id {image_id}.")
        listed[image_id] = image
    return listed


def image_of(annotation: Any, source: str, listed: dict[int | str, dict[str, Any]]) -> int | str:
    """Return the id of the image of an annotation; refuse one that is not listed."""
    image_id = entry(annotation, "image_id", (int, str), source)
    if image_id not in listed:
        raise UsageError(f"{source}: the image with the id {image_id} is not listed in `images`.")
    return image_id


def name_of(item: Any, number: int) -> str:
    """Name an entry by its id, or by its position in the list, from 0."""
    has_id = isinstance(item, dict) and "id" in item
    return str(item["id"]) if has_id else f"at position {number}"


def folder_of(source: Path) -> Path:
    """Return the folder of an export, which may be named by its only file."""
    return source.parent if source.is_file() else source


def exported_images(
    listed: dict[int | str, dict[str, Any]],
    path: Path,
    split: str | None,
    files: ImageFiles,
    root: Path,
    draws: Mapping[int | str, Callable[[Size], np.ndarray]],
) -> list[ExportedImage]:
    """Describe the images that a JSON file lists; `draws` are the functions that draw their labels, by id."""
    sources = {image_id: f"{path}, image {image_id}" for image_id in listed}
    names = {image_id: entry(image, "file_name", str, sources[image_id]) for image_id, image in listed.items()}
    near = _folders_near(path, split, root)
    required = files.required_folder(near, names.values())
    images = []
    for image_id, file_name in names.items():
        source = sources[image_id]
        found = files.find(file_name, source, near, required)
        # the name in the data set: that in the export, or the place of the file if that is one of another machine
        relative = PurePosixPath(file_name.replace("\\", "/")).as_posix()  # without "./"
        is_below = composed(found.as_posix()).endswith(f"/{composed(relative)}")
        name = relative.removeprefix("images/") if is_below else found.name
        size = read_size(listed[image_id], "width", "height", source)
        images.append(ExportedImage(name, found, split, draws.get(image_id), size, f"{source} ({file_name})"))
    return images


def read_splits(paths: Collection[Path], source: Path) -> dict[Path, str | None]:
    """Return the split of every JSON file: the one that its name means, or its folder below that of the export.

    A part of the name of one of several files may mean it, but only the last part of that of a single file: test may
    be a part of it by chance.
    """
    root, splits = folder_of(source), {}
    for path in paths:
        parts = _parts(path) if len(paths) > 1 else [path.stem.rpartition("_")[2]]
        named = {split for part in parts if (split := split_of(part)) is not None}
        splits[path] = named.pop() if len(named) == 1 else split_of(path.parent.name) if path.parent != root else None
    return splits


def without_split(splits: Mapping[Path, str | None]) -> list[Path]:
    """Return the files that do not say of which split their images are, if there are several files."""
    return [path for path, split in splits.items() if split is None] if len(splits) > 1 else []


def _folders_near(path: Path, split: str | None, root: Path) -> list[str]:
    """Name the folders that may have the images of a JSON file: CVAT's has the name of the subset, as the file has.

    Those that mean a split mean that of the file.
    """
    parts = _parts(path)
    names = [path.stem.partition("_")[2], *(part for part in parts if split_of(part)), parts[-1]]
    names += [path.parent.name] if path.parent != root else []
    return [name for name in names if name not in ("", "annotations") and split_of(name) in (None, split)]


def _parts(path: Path) -> list[str]:
    return re.split(r"[_.-]", path.stem)  # "train2017" of instances_train2017.json


def label_of(annotation: dict[str, Any], labels: dict[int, int], source: str) -> int:
    """Return the label of an annotation; refuse a category that is not listed."""
    category = entry(annotation, "category_id", int, source)
    if category not in labels:
        raise UsageError(f"{source}: the category {category} is not listed in `categories`.")
    return labels[category]


def _draw(
    annotations: Sequence[tuple[dict[str, Any], str]],
    labels: dict[int, int],
    background: int,
    keep_crowds: bool,
    size: Size,
) -> np.ndarray:
    objects = []
    for annotation, source in annotations:
        label, is_crowd = label_of(annotation, labels, source), bool(annotation.get("iscrowd"))
        patch = _patch(annotation.get("segmentation"), size, source)
        objects.append(DrawnObject(IGNORE_INDEX if is_crowd and not keep_crowds else label, patch, is_crowd))
    return draw_objects(objects, size, background)


def _patch(segmentation: Any, size: Size, source: str) -> Patch:
    """Draw the segmentation of an annotation, a list of polygons or a run-length encoded mask."""
    if isinstance(segmentation, dict):
        return Patch.of(_decode(segmentation, size, source))
    if not isinstance(segmentation, list) or not segmentation:
        raise UsageError(
            f"{source} has no `segmentation`; a box alone does not say which pixels belong to the object."
        )
    return fill_polygons([polygon_points(polygon, source) for polygon in segmentation], size)


def _decode(encoded: dict[str, Any], size: Size, source: str) -> np.ndarray:
    """Decode a run-length encoded mask to (H, W) bool: runs of 0 and 1 in turn, column by column."""
    width, height = size
    if encoded.get("size") != [height, width]:
        raise UsageError(f"{source}: the mask has the size {encoded.get('size')}, but the image {[height, width]}.")
    counts = encoded.get("counts")
    runs = _runs_of_text(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise UsageError(f"{source}: the `counts` of a mask must be run lengths or text, got {counts!r:.60}.")
    if sum(runs) != width * height:  # pycocotools would return what was in the memory before
        raise UsageError(
            f"{source}: the run lengths add up to {sum(runs)} pixels, but the image has {width * height}."
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _runs_of_text(text: str) -> list[int] | None:
    """Decode run lengths from the text of pycocotools; return `None` if it is something else.

    A character is a group of 5 bits, lowest first, plus 32 if more follow, plus 48. The first group that none follows
    has the sign in its highest bit. From the fourth run on, a number is the difference to the run two before it.
    """
    runs: list[int] = []
    value = shift = 0
    for code in text.encode():
        if not 48 <= code < 48 + 64:
            return None
        group = code - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        value -= (group >> 4 & 1) << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if shift == 0 else None
