"""Formats of labeling tools: their names, and how an export without a named format is recognized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from . import coco, coco_panoptic, cvat, label_studio, labelme, roboflow, supervisely, yolo
from .export import Export


@dataclass(frozen=True)
class Format:
    """Format of exports.

    Args:
        title (`str`): Name of the format in its tool.
        is_export (`Callable[[Path], bool]`): Function that recognizes a file or folder.
        read_export (`Callable[[Path, Path | None, bool], Export]`): Function that reads it, with a folder of images
            (`None` for that of the export) and whether crowd regions keep their class.
    """

    title: str
    is_export: Callable[[Path], bool]
    read_export: Callable[[Path, Path | None, bool], Export]


FORMATS = {
    "cvat": Format("CVAT, Segmentation mask 1.1", cvat.is_export, cvat.read_export),
    "coco": Format("COCO instances", coco.is_export, coco.read_export),
    "coco_panoptic": Format("COCO panoptic", coco_panoptic.is_export, coco_panoptic.read_export),
    "roboflow": Format("Roboflow, Semantic Segmentation Masks", roboflow.is_export, roboflow.read_export),
    "labelme": Format("LabelMe JSON", labelme.is_export, labelme.read_export),
    "yolo": Format("polygon files of ultralytics", yolo.is_export, yolo.read_export),
    "label_studio": Format("Label Studio JSON", label_studio.is_export, label_studio.read_export),
    "supervisely": Format("project of Supervisely", supervisely.is_export, supervisely.read_export),
}


def format_names() -> str:
    """List the formats for help and messages."""
    return ", ".join(f"{name} ({each.title})" for name, each in FORMATS.items())


def find_format(name: str | None, source: Path) -> Format:
    """Return the format of a name, or the only one that recognizes the export.

    Raises:
        UsageError: If there is no such format, or none or several recognize the export.
    """
    if name is not None:
        if name not in FORMATS:
            raise UsageError(f"`format` must be one of {format_names()}, got {name!r}.")
        return FORMATS[name]
    recognized = [each for each, kind in FORMATS.items() if kind.is_export(source)]
    if len(recognized) > 1:
        raise UsageError(f"{source} may be {' or '.join(recognized)}; say which in `format`.")
    if not recognized:
        raise UsageError(f"{source} is not recognized as an export of {format_names()}; name its `format`.")
    return FORMATS[recognized[0]]
