"""CVAT, "Segmentation mask 1.1": masks in the colors of labelmap.txt, in the folders of PASCAL VOC.

The pixels of a mask are those of its image, so there is no question of edges and centers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.image_files import files_below, visible_entries
from ..data.labels import Color, LabelMapping
from ..errors import UsageError
from .export import (
    Export,
    ExportedImage,
    ImageFiles,
    Size,
    by_name,
    class_name,
    composed,
    find_background,
    read_mask,
    read_text,
    split_of,
    whole_number,
)

_LABEL_MAP, _MASKS, _LISTS = "labelmap.txt", "SegmentationClass", "ImageSets/Segmentation"


def is_export(source: Path) -> bool:
    """Return whether a folder has masks of classes and the list of their colors."""
    return (source / _MASKS).is_dir() and (source / _LABEL_MAP).is_file()


def read_export(source: Path, image_dir: Path | None, keep_crowds: bool) -> Export:
    """Read an export; `image_dir` is needed if it was made without images. There are no crowd regions."""
    colors = _read_label_map(source / _LABEL_MAP)
    classes = list(colors)
    files = ImageFiles(image_dir or _image_folder(source))
    images = by_name(files.paths, files.folder)
    if not (source / _MASKS).is_dir():
        raise UsageError(f"The folder {source / _MASKS} does not exist.")
    masks = by_name(files_below(source / _MASKS).images, source / _MASKS)
    listed = _read_lists(source / _LISTS)
    for name, place in {
        **dict.fromkeys(masks, _MASKS),
        **{name: place for name, (_, place) in listed.items()},
    }.items():
        if name not in images:
            raise UsageError(
                f"{source / place}: the image {name!r} is not in {files.folder}; put it there, export again with "
                "images, or name the folder of the images in `image_dir`."
            )
    chosen = [
        ExportedImage(
            path.relative_to(files.folder).as_posix(),
            path,
            listed.get(name, (None, ""))[0],
            partial(_draw, masks[name], path, colors) if name in masks else None,
            source=str(masks.get(name, path)),
        )
        for name, path in images.items()
        if not listed or name in listed or name in masks
    ]
    return Export(classes, chosen, find_background(classes), colors, files.left_over(chosen))


def _image_folder(source: Path) -> Path:
    if not (source / "JPEGImages").is_dir():
        raise UsageError(
            f"{source} has no folder JPEGImages, since the export was made without images; export again with images, "
            "or name their folder in `image_dir`."
        )
    return source / "JPEGImages"


def _read_label_map(path: Path) -> dict[str, Color]:
    """Read lines like "car:128,0,0::": a class, its color, and two fields that are not used."""
    colors: dict[str, Color] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        source = f"{path}, line {number}"
        name, *rest = line.rsplit(":", 3)
        parts = rest[0].split(",") if rest else []
        values = [value for part in parts if (value := whole_number(part.strip())) is not None and value < 256]
        if len(parts) != 3 or len(values) != 3:
            raise UsageError(f"{source}: a line must be like 'car:128,0,0::', got {line!r:.60}.")
        red, green, blue = values
        if class_name(name, f"{source}: the class") in colors:
            raise UsageError(f"{source}: the class {name.strip()!r} is listed twice.")
        if (red, green, blue) in colors.values():
            raise UsageError(f"{source}: the color {red},{green},{blue} is that of another class, too.")
        colors[name.strip()] = (red, green, blue)
    return colors


def _read_lists(folder: Path) -> dict[str, tuple[str | None, str]]:
    """Read the images that the lists of subsets name: the split of each, and its list, relative to the export."""
    listed: dict[str, tuple[str | None, str]] = {}
    for path in visible_entries(folder, "*.txt"):
        for line in read_text(path).splitlines():
            if name := line.strip().strip('"'):  # a name with spaces is in quotation marks
                listed[composed(name)] = (split_of(path.stem), f"{_LISTS}/{path.name}")
    return listed


def _draw(mask: Path, image: Path, colors: dict[str, Color], size: Size) -> np.ndarray:
    with Image.open(mask) as header:
        is_gray = header.mode in ("L", "1")
    raw = read_mask(mask, by_color=not is_gray)
    if is_gray:  # a value counts the lines of labelmap.txt
        return LabelMapping({number: number for number in range(len(colors))})(raw, str(mask))
    return LabelMapping({color: number for number, color in enumerate(colors.values())})(raw, str(mask))
