"""Polygon files of ultralytics: data.yaml, folders of images, and a text file with polygons for each image.

Coordinates are shares of the width and height, edges between pixels: the first pixel of ten extends from 0 to 0.1.
Every line is one object, and has one polygon.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..data.image_files import files_below, is_image, name_some, visible_entries
from ..errors import UsageError, as_usage_error
from .drawing import DrawnObject, draw_objects, fill_polygons
from .export import (
    Export,
    ExportedImage,
    Size,
    class_name,
    existing,
    left_over,
    left_over_in,
    polygon_points,
    read_text,
    split_of,
    whole_number,
    with_background,
)

_SPLITS = ("train", "validation", "test")
_TOLERANCE = 0.01  # beyond the image, for coordinates that were rounded or drawn over its border


def is_export(source: Path) -> bool:
    """Return whether a file, or one in a folder, describes classes and splits as ultralytics does."""
    described = [each for each in map(_read_yaml, _files(source)) if isinstance(each, dict)]
    return any("names" in each and any(_split_of_key(key) for key in each) for each in described)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix in (".yaml", ".yml") else []
    return [path for path in visible_entries(source, "*.y*ml") if path.name != "dataset.yaml"]


def _read_yaml(path: Path) -> Any:
    with as_usage_error(yaml.YAMLError, ValueError, prefix=f"{path} is not valid YAML: "):
        return yaml.safe_load(read_text(path))


def read_export(source: Path, image_dir: Path | None, keep_crowds: bool) -> Export:
    """Read an export. It names the folders of the images itself, and has no crowd regions."""
    if image_dir is not None:
        raise UsageError("`image_dir`: data.yaml names the folders of the images; leave `image_dir` out.")
    files = [path for path in _files(source) if isinstance(_read_yaml(path), dict)]
    if len(files) != 1:
        raise UsageError(f"{source} must have one file data.yaml, but has {len(files)}; name the file instead.")
    path, description = files[0], _read_yaml(files[0])
    if "kpt_shape" in description:
        raise UsageError(
            f"{path} describes poses (`kpt_shape`); boxes and points do not say which pixels belong to an object, but "
            "polygons do."
        )
    names = _read_names(description.get("names"), path)
    classes, background = with_background(names.values())
    labels = {number: classes.index(name) for number, name in names.items()}
    images, notes = [], []
    for split, key in _keys(description, path).items():
        for place in _places(description[key]):
            folder = _resolve(description, place, path, key)
            if folder is None and split == "test":
                notes.append(f"`{key}` of {path} names {place}, which does not exist; there is no test split.")
                continue
            if folder is None:
                raise UsageError(f"{path}: `{key}` names {place}, but {path.parent / place} does not exist.")
            listed = _list_images(folder, path.parent)
            if folder.is_dir():
                _refuse_left_labels(folder, [image for _, image in listed])
            for name, image in listed:
                text = _label_file(image)
                lines = _read_lines(text) if text.is_file() else []
                draw = partial(_draw, lines, labels, background) if lines else None
                images.append(ExportedImage(name, image, split, draw, source=str(text if lines else image)))
    if not images:
        raise UsageError(f"{path} names no folder with images in `train`, `val` or `test`.")
    if not any(image.draw for image in images):
        raise UsageError(f"No image of {path} has labels; {_label_file(images[0].path)} should be one of their files.")
    _refuse_other_images(description, path, images)
    roots = [path.parent, _resolve(description, ".", path, "path") or path.parent]
    left = left_over_in(_image_folders(images, path, roots), images)
    return Export(classes, images, background, left_over=left, notes=notes)


def _split_of_key(key: Any) -> str | None:
    return split_of(key) if isinstance(key, str) else None


def _keys(description: dict[str, Any], path: Path) -> dict[str, str]:
    """Return the key of every split that has images; refuse two of one split. CVAT takes the name of the subset."""
    keys: dict[str, str] = {}
    for split in _SPLITS:
        found = [key for key, places in description.items() if _split_of_key(key) == split and places]
        if len(found) > 1:
            raise UsageError(
                f"{path}: {' and '.join(found)} are both of the split {split}; list their folders in one."
            )
        if found:
            keys[split] = found[0]
    return keys


def _places(value: Any) -> list[str]:
    return [str(place) for place in (value if isinstance(value, list) else [value]) if place]


def _refuse_other_images(description: dict[str, Any], path: Path, images: list[ExportedImage]) -> None:
    """Refuse a key of no split that names a list or a folder with images of no split."""
    for key, value in description.items():
        if _split_of_key(key) or key in ("path", "names"):
            continue
        for place in _places(value):
            try:
                found = _resolve(description, place, path, key)
                listed = _list_images(found, path.parent) if found and not _is_above(found, path) else []
            except UsageError:  # a text that is no path, or a file that lists something else, such as classes
                continue
            if left := left_over([image for _, image in listed], images):
                raise UsageError(
                    f"{path}: `{key}` names {place}, with {len(left)} images of no split; rename it to train, val or "
                    "test, or remove it."
                )


def _image_folders(images: list[ExportedImage], path: Path, roots: list[Path]) -> set[Path]:
    """Return the folders with the images of all splits: images/ below a root, or else the folders of the images.

    A folder with data.yaml may have anything else, such as the runs of ultralytics.
    """
    folders = {image.path.parent for image in images}
    tops = {
        folder: next((top for top in (folder, *folder.parents) if top.name == "images"), folder) for folder in folders
    }
    chosen = {top if any(_is_above(root, top) for root in roots) else folder for folder, top in tops.items()}
    return {folder for folder in chosen if not _is_above(folder, path)}


def _is_above(folder: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _read_names(names: Any, path: Path) -> dict[int, str]:
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(pairs, dict) or not pairs or not all(isinstance(number, int) for number in pairs):
        raise UsageError(f"{path}: `names` must list the classes, got {names!r:.60}.")
    return {number: class_name(name, f"{path}: the class {number}") for number, name in pairs.items()}


def _resolve(description: dict[str, Any], place: str, path: Path, key: str) -> Path | None:
    """Find a folder or list of images: relative to `path` of the description, or to the folder of the file.

    It is `None` if there is none. Exports of Roboflow start it with "../", although it is beside the file.
    """
    roots = [path.parent / str(description.get("path") or ""), path.parent]
    places = [place, place.removeprefix("../")]
    with as_usage_error(OSError, prefix=f"{path}: `{key}` cannot be found: "):  # a name may be too long
        for candidate in (root / each for root in roots for each in places):
            if (found := existing(candidate)) is not None:
                return found
    return None


def _list_images(folder: Path, root: Path) -> list[tuple[str, Path]]:
    """List images with their names: those below a folder, or those of a text file with one path per line."""
    if folder.is_dir():
        return [(image.relative_to(folder).as_posix(), image) for image in files_below(folder).images]
    images = []
    for number, line in enumerate(read_text(folder).splitlines(), 1):
        listed = line.strip()
        if not listed:
            continue
        with as_usage_error(OSError, prefix=f"{folder}, line {number}: "):  # a name may be too long
            found = (existing(base / name) for name in _spellings(listed) for base in (folder.parent, root))
            image = next((path for path in found if path is not None and path.is_file()), None)
        if image is None or not is_image(image):
            raise UsageError(f"{folder}, line {number}: the image {listed} does not exist below {folder.parent}.")
        images.append((_name_of(image), image))
    return images


def _spellings(listed: str) -> list[str]:
    """Return the paths that a line may mean: CVAT puts "data/" before those of its archive, Windows writes "\\"."""
    names = [listed, listed.replace("\\", "/")]
    return [*names, *(name.removeprefix("data/") for name in names)]


def _name_of(image: Path) -> str:
    """Name a listed image by its path below images/ and, there, below the folder of its split."""
    parts = image.parts
    below = parts[len(parts) - parts[::-1].index("images") :] if "images" in parts[:-1] else parts[-1:]
    return "/".join(below[1:] if len(below) > 1 and split_of(below[0]) else below)


def _refuse_left_labels(folder: Path, images: list[Path]) -> None:
    """Refuse label files without an image, unless they are among the images, where other texts may be."""
    labels = _label_file(folder / "_").parent
    if labels == folder or not labels.is_dir():
        return
    known = {_label_file(image) for image in images}
    texts = [path for path in files_below(labels).files if path.suffix == ".txt" and path.name != "classes.txt"]
    if left := [path for path in texts if path not in known]:
        raise UsageError(
            f"{len(left)} of {len(texts)} label files have no image in {folder}: {name_some(left)}; put the images "
            "there."
        )


def _label_file(image: Path) -> Path:
    """Return the text file of an image: in labels/ instead of the last folder images/ of its path."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    path = Path(*parts).with_suffix(".txt")
    return existing(path) or path


def _read_lines(path: Path) -> list[tuple[str, list[str]]]:
    """Read the words of every line that is not empty, with the words for the line in messages."""
    lines = read_text(path).splitlines()
    return [(f"{path}, line {number}", line.split()) for number, line in enumerate(lines, 1) if line.strip()]


def _draw(lines: list[tuple[str, list[str]]], labels: dict[int, int], background: int, size: Size) -> np.ndarray:
    objects = []
    for source, words in lines:
        number = whole_number(words[0])
        if number not in labels:
            raise UsageError(
                f"{source}: the class {words[0]:.60} is not listed in `names`, which has {sorted(labels)}."
            )
        if len(words) == 5:
            raise UsageError(
                f"{source} has four numbers, a box or a polygon of two points; polygons of three or more points are "
                "needed."
            )
        with as_usage_error(ValueError, prefix=f"{source}: a coordinate is not a number: "):
            flat = [float(word) for word in words[1:]]
        shares = polygon_points(flat, source)
        if shares.min() < -_TOLERANCE or shares.max() > 1 + _TOLERANCE:
            raise UsageError(f"{source}: coordinates must be shares of the image, from 0 to 1, got {flat!r:.60}.")
        objects.append(DrawnObject(labels[number], fill_polygons([shares * np.array(size)], size)))
    return draw_objects(objects, size, background)
