"""Data sets that a `dataset.yaml` in their folder describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import UsageError, first_line
from .classes import voc_palette
from .file_source import FileSource, Layout, PairedFiles
from .labels import MAX_CLASSES, Color
from .specs import DatasetSpec

FOLDER = "folder"
DESCRIPTION = "dataset.yaml"
_KEYS = {"classes", "label_values", "label_colors", "ignored", "palette", "groups", "splits", "name", "license"}


def read_folder_spec(data_dir: str | Path | None) -> DatasetSpec:
    """Read `dataset.yaml`: classes, label values or colors, ignored values, palette, groups, splits, name, license.

    Raises:
        UsageError: If the file is missing or not valid; the message names the key.
    """
    if data_dir is None:
        raise UsageError(f"`dataset='{FOLDER}'` needs `data_dir`, the folder with {DESCRIPTION}.")
    path = Path(data_dir) / DESCRIPTION
    if not path.is_file():
        raise UsageError(f"The file {path} does not exist; it must list `classes:` and `splits:` (see docs/data.md).")
    try:
        description = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(description, dict):
        raise UsageError(f"{path} must contain `classes:` and `splits:`.")
    if unknown := sorted(set(map(str, description)) - _KEYS):
        raise UsageError(f"{path}: unknown keys {unknown}; choose from {sorted(_KEYS)}.")
    classes = _read_classes(description, path)
    ignored = frozenset(_raw_value(value, path) for value in description.get("ignored", []))
    return DatasetSpec(
        name=FOLDER,
        classes=classes,
        palette=_read_palette(description, classes, path),
        source=FileSource((_read_splits(description, path),)),
        label_values=_read_label_values(description, classes, ignored, path),
        ignored=ignored,
        groups=_read_groups(description, classes, path),
        title=_read_title(description, path),
        license=str(description.get("license") or ""),
    )


def _read_title(description: dict[str, Any], path: Path) -> str:
    title = description.get("name", "")
    if not isinstance(title, str) or len(title.splitlines()) > 1:
        raise UsageError(f"{path}: `name:` must be one line of text, got {title!r}.")
    return title.strip()


def _read_classes(description: dict[str, Any], path: Path) -> list[str]:
    classes = description.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or len(classes) < 2:
        raise UsageError(f"{path}: `classes:` must list the names of two classes or more, got {classes!r}.")
    if len(set(classes)) != len(classes):
        raise UsageError(f"{path}: `classes:` names a class twice.")
    if len(classes) > MAX_CLASSES:
        raise UsageError(f"{path}: {len(classes)} classes are more than {MAX_CLASSES}.")
    return classes


def _read_label_values(
    description: dict[str, Any], classes: list[str], ignored: frozenset[int | Color], path: Path
) -> dict[int | Color, int]:
    if "label_values" in description and "label_colors" in description:
        raise UsageError(f"{path}: give `label_values:` or `label_colors:`, not both.")
    key = "label_colors" if "label_colors" in description else "label_values"
    by_position = {value: name for value, name in enumerate(classes) if value not in ignored}
    mapping = description.get(key, by_position)
    if not isinstance(mapping, dict) or not mapping:
        raise UsageError(f"{path}: `{key}:` must map raw values to class names, got {mapping!r}.")
    for name in mapping.values():
        if name not in classes:
            raise UsageError(f"{path}: `{key}:` names the class {name!r}, which `classes:` does not list.")
    values = {_raw_value(raw, path): classes.index(name) for raw, name in mapping.items()}
    if any(isinstance(value, tuple) != (key == "label_colors") for value in values):
        raise UsageError(f"{path}: keys of `{key}:` must be {'colors' if key == 'label_colors' else 'integers'}.")
    if both := sorted(set(values) & ignored):
        raise UsageError(
            f"{path}: `{key}:` maps {both} to classes, and `ignored:` lists them too; remove them from one."
        )
    return values


def _raw_value(value: Any, path: Path) -> int | Color:
    """Parse a raw label: 7 -> 7; "128,0,0" -> (128, 0, 0)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    parts = str(value).split(",")
    if len(parts) == 3 and all(part.strip().isdigit() and int(part) < 256 for part in parts):
        red, green, blue = (int(part) for part in parts)
        return red, green, blue
    raise UsageError(f'{path}: a raw label must be an integer or a color like "128,0,0", got {value!r}.')


def _read_palette(description: dict[str, Any], classes: list[str], path: Path) -> list[Color]:
    palette = voc_palette(len(classes))
    for name, color in (description.get("palette") or {}).items():
        if name not in classes:
            raise UsageError(f"{path}: `palette:` names the class {name!r}, which `classes:` does not list.")
        color = _raw_value(",".join(map(str, color)) if isinstance(color, list) else color, path)
        if not isinstance(color, tuple):
            raise UsageError(f"{path}: the color of {name!r} must be three values, got {color!r}.")
        palette[classes.index(name)] = color
    return palette


def _read_groups(description: dict[str, Any], classes: list[str], path: Path) -> dict[str, list[int]]:
    groups = description.get("groups") or {}
    if not isinstance(groups, dict):
        raise UsageError(f"{path}: `groups:` must map names of groups to lists of classes, got {groups!r}.")
    for group, names in groups.items():
        if not isinstance(group, str) or not isinstance(names, list) or not names:
            raise UsageError(
                f"{path}: the name of a group must be a string and its classes a list, got {group!r}: {names!r}."
            )
        if unknown := sorted(set(names) - set(classes)):
            raise UsageError(f"{path}: the group {group!r} names {unknown}, which `classes:` does not list.")
    return {group: [classes.index(name) for name in names] for group, names in groups.items()}


def _read_splits(description: dict[str, Any], path: Path) -> Layout:
    splits = description.get("splits")
    if not isinstance(splits, dict) or not splits:
        raise UsageError(f"{path}: `splits:` must name the folders of train, validation or test.")
    for split, folders in splits.items():
        if split not in ("train", "validation", "test"):
            raise UsageError(f"{path}: a split is train, validation or test, not {split!r}.")
        needed = {"images"} if split == "test" else {"images", "labels"}  # labels of a test split may be secret
        if not isinstance(folders, dict) or not needed <= set(folders) <= {"images", "labels"}:
            raise UsageError(f"{path}: split {split} must have `images:` and `labels:`, got {folders!r}.")
        for folder in folders.values():
            if Path(folder).is_absolute() or ".." in Path(folder).parts:
                raise UsageError(f"{path}: {folder} must be inside the folder of the data set.")
    return {split: (PairedFiles(folders["images"], folders.get("labels")),) for split, folders in splits.items()}
