"""LabelMe: a JSON file beside each image, with polygons, rectangles, circles and masks.

A coordinate means the center of the pixel in which it lies, and the outline belongs to an object, as in LabelMe's own
conversion to masks: its fraction is dropped. The labels `_background_` and `__ignore__` mean background and ignored
pixels.
"""

from __future__ import annotations

import base64
from binascii import Error as Base64Error
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data.image_files import files_below
from ..data.images import read_raw_labels
from ..data.labels import IGNORE_INDEX
from ..errors import UsageError, as_usage_error
from .drawing import DrawnObject, Patch, draw_objects, fill_polygons, pixels_of
from .export import (
    BACKGROUND,
    Export,
    ExportedImage,
    ImageFiles,
    Size,
    class_name,
    entry,
    existing,
    is_coordinate,
    pair_points,
    read_json,
    read_size,
    read_text,
    split_of,
    with_background,
)

_BACKGROUND, _IGNORED = "_background_", "__ignore__"
_POLYGONS = ("polygon", "oriented_rectangle")
_CIRCLE_POINTS = 360


def is_export(source: Path) -> bool:
    """Return whether the first JSON file of a folder lists the shapes of an image."""
    return any(_is_document(read_json(path)) for path in _json_files(source)[:1])


def _json_files(source: Path) -> list[Path]:
    return [path for path in files_below(source).files if path.suffix.lower() == ".json"] if source.is_dir() else []


def _is_document(document: Any) -> bool:
    return isinstance(document, dict) and {"shapes", "imagePath"} <= {*document}


def read_export(source: Path, image_dir: Path | None, keep_crowds: bool) -> Export:
    """Read all JSON files below a folder; images beside them without one have no annotation."""
    documents = {path: _read_document(path) for path in _json_files(source)}
    if not documents:
        raise UsageError(f"{source} has no JSON files.")
    shapes = {path: _read_shapes(document, path) for path, document in documents.items()}
    found = sorted({name for each in shapes.values() for name, *_ in each} - {_BACKGROUND, _IGNORED})
    classes, background = with_background([*_listed_classes(source / "labels.txt"), *found])
    labels = {name: number for number, name in enumerate(classes)}
    labels = {_BACKGROUND: background, _IGNORED: IGNORE_INDEX, **labels}
    files = ImageFiles(image_dir or source)
    below = {_real(path): path for path in files.paths}
    listed = {path: entry(document, "imagePath", str, str(path)) for path, document in documents.items()}
    required = _required_folders(listed, source, files)
    images = {}
    for path, document in documents.items():
        place = path.parent.relative_to(source).parts
        beside = _beside(path, listed[path]) if image_dir is None else None
        if beside is not None:
            image = below.get(beside, beside)
        else:
            image = files.find(listed[path], str(path), place[::-1], required[path.parent])
        if image in images:
            raise UsageError(f"{path}: the image {image} has another JSON file, too.")
        size = read_size(document, "imageWidth", "imageHeight", str(path))  # written since the end of 2018
        draw = partial(_draw, shapes[path], labels, background) if shapes[path] else None
        images[image] = _exported(image, files, place, draw, size, str(path))
    for image in files.paths:
        if image not in images:
            place = image.parent.relative_to(files.folder).parts
            images[image] = _exported(image, files, place, None, None, str(image))
    return Export(classes, [images[image] for image in sorted(images)], background, notes=files.notes())


def _read_document(path: Path) -> Any:
    """Read a JSON file without the copy of the image in it, since all files together may exceed the memory."""
    document = read_json(path)
    if isinstance(document, dict):
        document.pop("imageData", None)
    return document


def _listed_classes(path: Path) -> list[str]:
    """Read the classes in the order of labels.txt, from which LabelMe offers them, if there is this file."""
    names = [line.strip() for line in read_text(path).splitlines()] if path.is_file() else []
    return [BACKGROUND if name == _BACKGROUND else name for name in names if name and name != _IGNORED]


def _required_folders(listed: dict[Path, str], source: Path, files: ImageFiles) -> dict[Path, str | None]:
    """Return the folder that must contain the images of the JSON files, by the folder of these."""
    names: dict[Path, list[str]] = {}
    for path, name in listed.items():
        names.setdefault(path.parent, []).append(name)
    return {folder: files.required_folder(folder.relative_to(source).parts[::-1], names[folder]) for folder in names}


def _beside(path: Path, listed: str) -> Path | None:
    """Look for an image at its path, which is relative to the JSON file."""
    image = path.parent / listed.replace("\\", "/")
    with as_usage_error(OSError, prefix=f"{path}: the image cannot be found: "):  # a name may be too long
        found = existing(image)
        return _real(found) if found is not None and found.is_file() else None


def _real(path: Path) -> Path:
    """Return the path without links to folders and without "..", by which the same file has one name."""
    return path.parent.resolve() / path.name


def _exported(
    image: Path, files: ImageFiles, place: tuple[str, ...], draw: Any, size: Size | None, source: str
) -> ExportedImage:
    split = split_of(place[0]) if place else None
    parts = image.relative_to(files.folder).parts if image.is_relative_to(files.folder) else (image.name,)
    parts = parts[1:] if split and parts[0] == place[0] else parts
    return ExportedImage("/".join(parts), image, split, draw, size, source)


def _read_shapes(document: Any, path: Path) -> list[tuple[str, dict[str, Any], str]]:
    """Read the name of the class of every shape, the shape, and the words for it in messages."""
    shapes = []
    for number, shape in enumerate(entry(document, "shapes", list, str(path)), 1):
        source = f"{path}, shape {number}"
        name = class_name(shape.get("label") if isinstance(shape, dict) else None, f"{source}: the class")
        shapes.append((name, shape, source))
    return shapes


def _draw(
    shapes: list[tuple[str, dict[str, Any], str]], labels: dict[str, int], background: int, size: Size
) -> np.ndarray:
    objects = [DrawnObject(labels[name], _patch(shape, size, source)) for name, shape, source in shapes]
    return draw_objects(objects, size, background)


def _patch(shape: dict[str, Any], size: Size, source: str) -> Patch:
    kind = shape.get("shape_type") or "polygon"
    listed = entry(shape, "points", list, source)
    if kind in _POLYGONS:
        return fill_polygons([pixels_of(pair_points(listed, source))], size, centers=True)
    if kind not in ("rectangle", "circle", "mask"):
        raise UsageError(
            f"{source} is a {kind}, which has no area; LabelMe's polygons, rectangles, circles and masks can be "
            "imported. Remove the shape, or draw it as one of these."
        )
    (x0, y0), (x1, y1) = _two_points(listed, f"{source}, a {kind}")
    if kind == "mask":
        return _decode(shape.get("mask"), round(x0), round(y0), size, source)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = pixels_of(np.array([[min(x0, x1), min(y0, y1)], [max(x0, x1), max(y0, y1)]]))
        corners = np.array([[x0, y0], [x1 + 1, y0], [x1 + 1, y1 + 1], [x0, y1 + 1]])
        return fill_polygons([corners], size)  # both corners belong to it, even if they are one pixel
    angles = np.linspace(0, 2 * np.pi, _CIRCLE_POINTS, endpoint=False)
    outline = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.hypot(x1 - x0, y1 - y0)
    return fill_polygons([pixels_of(outline + np.array([x0, y0]))], size, centers=True)


def _two_points(listed: list[Any], source: str) -> np.ndarray:
    """Return two points; a rectangle of newer versions has its four corners, of which the first and third suffice."""
    chosen = [listed[0], listed[2]] if len(listed) == 4 else listed
    valid = len(chosen) == 2 and all(
        isinstance(point, list) and len(point) == 2 and all(map(is_coordinate, point)) for point in chosen
    )
    if not valid:
        raise UsageError(f"{source}: two points of two numbers are needed, got {listed!r:.60}.")
    return np.array(chosen, dtype=np.float64)


def _decode(encoded: Any, left: int, top: int, size: Size, source: str) -> Patch:
    """Decode the mask of a shape, a PNG in base64, whose first pixel is at `left`, `top`."""
    if not isinstance(encoded, str):
        raise UsageError(f"{source}: the mask must be a PNG in base64, got {encoded!r:.60}.")
    with as_usage_error(Base64Error, ValueError, prefix=f"{source}: the mask is not in base64: "):
        data = base64.b64decode(encoded, validate=True)
    mask = read_raw_labels({"path": f"{source}: the mask", "bytes": data}, by_color=False).astype(bool)
    if left < 0 or top < 0 or left + mask.shape[1] > size[0] or top + mask.shape[0] > size[1]:
        raise UsageError(f"{source}: the mask does not lie within the {size[0]}x{size[1]} pixels of the image.")
    return Patch(mask, left, top)
