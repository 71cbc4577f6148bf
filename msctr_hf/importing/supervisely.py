"""Supervisely: a project with meta.json, and img/ and ann/ in the folder of every data set; bitmaps and polygons.

A coordinate of a polygon means the center of the pixel in which it lies, and the outline belongs to an object, as in
Supervisely's own drawing: its fraction, which only files with subpixels have, is dropped. Interiors of a polygon are
holes, to which their outline belongs.
"""

from __future__ import annotations

import base64
import re
import zlib
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.image_files import is_image, visible_entries
from ..data.labels import Color
from ..errors import UsageError
from .drawing import DrawnObject, Patch, cut_out, draw_objects, fill_polygons, pixels_of
from .export import (
    Export,
    ExportedImage,
    Size,
    class_name,
    composed,
    entry,
    left_over_in,
    pair_points,
    read_json,
    split_of,
    with_background,
)

_META, _IMAGES, _ANNOTATIONS = "meta.json", "img", "ann"


def is_export(source: Path) -> bool:
    """Return whether a folder has the description of a project, and images with annotations."""
    return (source / _META).is_file() and bool(_datasets(source))


def _datasets(source: Path) -> list[Path]:
    return [path.parent for path in _image_folders(source) if (path.parent / _ANNOTATIONS).is_dir()]


def _image_folders(source: Path) -> list[Path]:
    return [path for path in visible_entries(source, f"**/{_IMAGES}") if path.is_dir()]


def read_export(source: Path, image_dir: Path | None, keep_crowds: bool) -> Export:
    """Read a project, which contains its images; data sets with the name of a split are this split."""
    if image_dir is not None:
        raise UsageError("`image_dir`: a project of Supervisely contains its images; leave `image_dir` out.")
    if not _datasets(source):
        raise UsageError(f"{source} has no folder with {_IMAGES}/ and {_ANNOTATIONS}/.")
    colors = _read_classes(source / _META)
    classes, background = with_background(colors)
    images = []
    for dataset in _datasets(source):
        parts = dataset.relative_to(source).parts
        split = split_of(parts[0]) if parts else None
        files = {composed(path.name): path for path in visible_entries(dataset / _IMAGES) if is_image(path)}
        documents = {composed(path.stem): path for path in visible_entries(dataset / _ANNOTATIONS, "*.json")}
        if without := sorted({*documents} - {*files}):
            raise UsageError(f"{documents[without[0]]}: the image {without[0]!r} is not in {dataset / _IMAGES}.")
        for name, path in files.items():
            draw, size = _read_document(documents[name], classes, background) if name in documents else (None, None)
            place = "/".join([*parts[1 if split else 0 :], path.name])
            images.append(ExportedImage(place, path, split, draw, size, str(documents.get(name, path))))
    known = {name: color for name, color in colors.items() if color is not None}
    return Export(classes, images, background, known, left_over_in(_image_folders(source), images))


def _read_classes(path: Path) -> dict[str, Color | None]:
    """Read the classes of a project and their colors, like "#D0021B"."""
    colors: dict[str, Color | None] = {}
    for number, each in enumerate(entry(read_json(path), "classes", list, str(path)), 1):
        name = class_name(each.get("title") if isinstance(each, dict) else None, f"{path}: the class {number}")
        color = str(each.get("color"))
        is_color = re.fullmatch(r"#[0-9a-fA-F]{6}", color)
        colors[name] = (int(color[1:3], 16), int(color[3:5], 16), int(color[5:], 16)) if is_color else None
    return colors


def _read_document(path: Path, classes: list[str], background: int) -> tuple[Any, Size]:
    """Return the function that draws the labels of an image, `None` without objects, and the size of the image."""
    document = read_json(path)
    objects = []
    for number, each in enumerate(entry(document, "objects", list, str(path)), 1):
        source = f"{path}, object {number}"
        name = class_name(each.get("classTitle") if isinstance(each, dict) else None, f"{source}: the class")
        if name not in classes:
            raise UsageError(f"{source}: the class {name!r} is not listed in {_META}.")
        objects.append((classes.index(name), each, source))
    listed = entry(document, "size", dict, str(path))
    size = entry(listed, "width", int, str(path)), entry(listed, "height", int, str(path))
    return (partial(_draw, objects, background) if objects else None), size


def _draw(objects: list[tuple[int, dict[str, Any], str]], background: int, size: Size) -> np.ndarray:
    return draw_objects(
        [DrawnObject(label, _patch(each, size, source)) for label, each, source in objects], size, background
    )


def _patch(figure: dict[str, Any], size: Size, source: str) -> Patch:
    kind = figure.get("geometryType")
    if kind == "bitmap":
        return _decode(entry(figure, "bitmap", dict, source), size, source)
    if kind != "polygon":
        raise UsageError(f"{source} is a {kind}; bitmaps and polygons say which pixels belong to an object.")
    points = entry(figure, "points", dict, source)
    exterior = fill_polygons([_outline(points.get("exterior"), source)], size, centers=True)
    interiors = [_outline(each, source) for each in entry({"interior": [], **points}, "interior", list, source)]
    return cut_out(exterior, fill_polygons(interiors, size, centers=True), size) if interiors else exterior


def _outline(listed: Any, source: str) -> np.ndarray:
    return pixels_of(pair_points(listed, source))


def _decode(bitmap: dict[str, Any], size: Size, source: str) -> Patch:
    """Decode a PNG, compressed once more and in base64, whose first pixel is at its origin."""
    try:
        data = zlib.decompress(base64.b64decode(entry(bitmap, "data", str, source), validate=True))
        with Image.open(BytesIO(data)) as image:
            pixels = np.asarray(image)
    except UsageError:
        raise
    except (ValueError, zlib.error, OSError, SyntaxError):  # Pillow raises the last one for broken PNGs
        raise UsageError(f"{source}: the bitmap cannot be read; it must be a compressed PNG in base64.") from None
    mask = (pixels[..., -1] if pixels.ndim == 3 else pixels).astype(
        bool
    )  # the web page writes it as the alpha of RGBA
    origin = entry(bitmap, "origin", list, source)
    if len(origin) != 2 or not all(isinstance(value, int) for value in origin):
        raise UsageError(f"{source}: the origin of a bitmap must be two integers, got {origin!r:.60}.")
    left, top = origin
    if left < 0 or top < 0 or left + mask.shape[1] > size[0] or top + mask.shape[0] > size[1]:
        raise UsageError(f"{source}: the bitmap does not lie within the {size[0]}x{size[1]} pixels of the image.")
    return Patch(mask, left, top)
