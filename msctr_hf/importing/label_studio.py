"""Label Studio, export "JSON": tasks with brush masks and polygons; the images are in a folder of their own.

Coordinates of polygons are percents of the width and height, edges between pixels: the first pixel of ten extends
from 0 to 10. Brush masks have the pixels of the image, and are packed by rle-pack (github.com/thi-ng/umbrella).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from ..data.image_files import is_image, visible_entries
from ..errors import UsageError
from .drawing import DrawnObject, Patch, draw_objects, fill_polygons
from .export import (
    Export,
    ExportedImage,
    ImageFiles,
    Size,
    class_name,
    entry,
    pair_points,
    read_json,
    read_size,
    with_background,
)

_CHANNELS = 4  # red, green, blue, and the alpha that says where the brush was
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # Label Studio puts this before the names of uploaded files
_KINDS = ("brushlabels", "polygonlabels")

Region = tuple[str, dict[str, Any], str]  # name of the class, entry of the export, words for it in messages


def is_export(source: Path) -> bool:
    """Return whether a file, or one in a folder, lists tasks with annotations."""
    return any(_is_document(read_json(path)) for path in _json_files(source))


def _json_files(source: Path) -> list[Path]:
    return [source] if source.is_file() and source.suffix.lower() == ".json" else visible_entries(source, "*.json")


def _is_document(document: Any) -> bool:
    return (
        isinstance(document, list)
        and bool(document)
        and all(isinstance(task, dict) and {"data", "annotations"} <= {*task} for task in document)
    )


def read_export(source: Path, image_dir: Path | None, keep_crowds: bool) -> Export:
    """Read the tasks of an export, which has no splits and no crowd regions."""
    documents = {path: document for path in _json_files(source) if _is_document(document := read_json(path))}
    if not documents:
        raise UsageError(f"{source} has no JSON file with tasks that have `data` and `annotations`.")
    files = ImageFiles(image_dir or (source.parent if source.is_file() else source))
    found: list[tuple[Path, list[Region], str]] = []
    for path, document in documents.items():
        names = [f"{path}, task {task.get('id', f'at position {number}')}" for number, task in enumerate(document)]
        described = [_read_regions(task, name) for task, name in zip(document, names, strict=True)]
        tag = _read_tag(region for regions in described for region in regions)
        for task, regions, name in zip(document, described, names, strict=True):
            found.append((_find_image(task, tag, files, name), regions, name))
    classes, background = with_background(sorted({name for _, regions, _ in found for name, *_ in regions}))
    images = [
        ExportedImage(
            image.relative_to(files.folder).as_posix(),
            image,
            None,
            partial(_draw, regions, classes, background) if regions else None,
            _read_size(regions),
            source=name,
        )
        for image, regions, name in found
    ]
    return Export(classes, images, background, left_over=files.left_over(images), notes=files.notes())


def _read_tag(regions: Iterable[Region]) -> str | None:
    """Return the name, in the labeling setup, of the only image on which the regions of a file are; refuse several."""
    tags = {region.get("to_name"): source for _, region, source in regions}
    if len(tags) > 1:
        listed = ", ".join(f"{tag!r} in {source}" for tag, source in tags.items())
        raise UsageError(
            f"The regions belong to several images of a task (`to_name`): {listed}; label each image in a task of its "
            "own, or delete the regions of all but one."
        )
    return next(iter(tags), None)


def _find_image(task: dict[str, Any], tag: str | None, files: ImageFiles, source: str) -> Path:
    """Find the image of a task, which names it by an address, a path of the server or one of this machine."""
    data = entry(task, "data", dict, source)
    paths = {key: _path_of(value) for key, value in data.items() if isinstance(value, str)}
    paths = {key: path for key, path in paths.items() if is_image(Path(path))}
    if len(paths) > 1:  # such as a column with the name of the file beside it
        paths = {key: path for key, path in paths.items() if key == (tag if tag in paths else "image")}
    if len(paths) != 1:
        raise UsageError(f"{source}: `data` must name one image, or one as 'image', got {data!r:.60}.")
    (listed,) = paths.values()
    name = listed.rpartition("/")[2]
    if (uploaded := _UPLOADED.fullmatch(name)) and not files.has(name):
        return files.find(f"/{uploaded[1]}", source)
    return files.find(listed, source)


def _path_of(address: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError:  # a text of another column, such as "see //[1]"
        return ""
    return unquote(f"/{parts.query[2:]}" if parts.query.startswith("d=") else parts.path)


def _read_regions(task: dict[str, Any], source: str) -> list[Region]:
    """Read the regions of the only annotation of a task that was not canceled."""
    listed = entry(task, "annotations", list, source)
    annotations = [each for each in listed if not isinstance(each, dict) or not each.get("was_cancelled")]
    if len(annotations) > 1:
        raise UsageError(f"{source} has {len(annotations)} annotations; delete all but one of them.")
    regions: list[Region] = []
    for number, region in enumerate(entry(annotations[0], "result", list, source) if annotations else [], 1):
        name = f"{source}, region {number}"
        kind = entry(region, "type", str, name)
        if not kind.endswith("labels"):  # answers to questions, relations, and brush strokes beside their labels
            continue
        if kind not in _KINDS:
            raise UsageError(
                f"{name} is one of {kind}; brush masks and polygons say which pixels belong to an object."
            )
        labels = entry(entry(region, "value", dict, name), kind, list, name)
        if len(labels) != 1:
            raise UsageError(f"{name} has {len(labels)} classes but needs one.")
        if region.get("image_rotation"):
            raise UsageError(
                f"{name} was drawn on an image that was rotated in Label Studio; rotate its file instead."
            )
        regions.append((class_name(labels[0], f"{name}: the class"), region, name))
    return regions


def _read_size(regions: list[Region]) -> Size | None:
    """Read the size of the image, which the first region with a size says for those without."""
    read = [(read_size(region, "original_width", "original_height", name), name) for _, region, name in regions]
    sizes = [(size, name) for size, name in read if size is not None]
    if regions and not sizes:
        raise UsageError(f"{regions[0][2]}: 'original_width' and 'original_height' are missing, as in all regions.")
    for (width, height), name in sizes:
        if (width, height) != sizes[0][0]:
            raise UsageError(
                f"{name} was drawn on an image of {width}x{height} pixels, but the first region of the task on one of "
                f"{sizes[0][0][0]}x{sizes[0][0][1]}."
            )
    return sizes[0][0] if sizes else None


def _draw(regions: list[Region], classes: list[str], background: int, size: Size) -> np.ndarray:
    objects = [DrawnObject(classes.index(name), _patch(region, size, source)) for name, region, source in regions]
    return draw_objects(objects, size, background)


def _patch(region: dict[str, Any], size: Size, source: str) -> Patch:
    value = region["value"]
    if region["type"] == "brushlabels":
        return Patch.of(_unpack(entry(value, "rle", list, source), size, source))
    return fill_polygons([pair_points(value.get("points"), source) * np.array(size) / 100], size)


def _unpack(packed: list[Any], size: Size, source: str) -> np.ndarray:
    """Unpack a brush mask to (H, W) bool.

    The bits are: the number of values (32), their width less 1 (5), four widths less 1 of lengths (4 each); then,
    until all values are there: whether a run follows (1), which width its length has (2), the length less 1, and one
    value, which is repeated, or as many values as the length says.
    """
    width, height = size
    count = width * height * _CHANNELS
    if not all(isinstance(byte, int) and 0 <= byte < 256 for byte in packed):
        raise UsageError(f"{source}: `rle` must be a list of bytes.")
    bits = np.unpackbits(np.array(packed, dtype=np.uint8))
    place = 0

    def read(number: int) -> int:
        nonlocal place
        place += number
        if place > len(bits):
            raise UsageError(f"{source}: the mask ends before all pixels of the image are there.")
        return int("0" + "".join(map(str, bits[place - number : place].tolist())), 2)

    if (found := read(32)) != count:
        raise UsageError(f"{source}: the mask has {found // _CHANNELS} pixels, but the image {width * height}.")
    word = read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(count, dtype=bool)  # whether a value is not 0
    filled = 0
    while filled < count:
        is_run = read(1)
        length = read(lengths[read(2)]) + 1
        if is_run:
            values[filled : filled + length] = read(word) > 0
        else:
            literal = bits[place : place + length * word]
            if len(literal) < length * word or filled + length > count:
                raise UsageError(f"{source}: the mask ends before all pixels of the image are there.")
            values[filled : filled + length] = literal.reshape(length, word).any(axis=1)
            place += length * word
        filled += length
    return values.reshape(height, width, _CHANNELS)[:, :, -1]
