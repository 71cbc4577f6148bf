"""Data sets that a `dataset.yaml` in their folder describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import UsageError, first_line
from .classes import default_palette
from .file_source import FileSource
from .labels import MAX_CLASSES, MAX_RAW_VALUE, Color, is_raw_value
from .specs import DatasetSpec
from .split_layout import LAYOUT_KEYS, read_layout

FOLDER = "folder"
DESCRIPTION = "dataset.yaml"
_KEYS = {
    *("classes", "label_values", "label_colors", "ignored", "palette", "groups", "name", "license"),
    *LAYOUT_KEYS,
}


def read_folder_spec(data_dir: str | Path | None) -> DatasetSpec:
    """Read `dataset.yaml`: classes, label values or colors, ignored values, palette, groups, files, name, license.

    Raises:
        UsageError: If the file is missing or not valid; the message names the key.
    """
    if data_dir is None:
        raise UsageError(f"`dataset='{FOLDER}'` needs `data_dir`, the folder with {DESCRIPTION}.")
    path = Path(data_dir) / DESCRIPTION
    if not path.is_file():
        raise UsageError(
            f"The file {path} does not exist; it must list `classes:` and `splits:` (see docs/data.md). `msctr "
            "import` writes one from the export of a labeling tool."
        )
    description = _read_yaml(path)
    if not isinstance(description, dict):
        raise UsageError(f"{path} must contain `classes:` and `splits:`.")
    if unknown := sorted(set(map(str, description)) - _KEYS):
        raise UsageError(f"{path}: unknown keys {unknown}; choose from {sorted(_KEYS)}.")
    classes = _read_classes(description, path)
    label_values = _read_label_values(description, classes, path)
    ignored = _read_ignored(description, label_values, path)
    return DatasetSpec(
        name=FOLDER,
        classes=classes,
        palette=_read_palette(description, classes, path),
        source=FileSource((read_layout(description, path),)),
        label_values={raw: label for raw, label in label_values.items() if raw not in ignored},
        ignored=ignored,
        groups=_read_groups(description, classes, path),
        title=_read_title(description, path),
        license=_read_license(description, path),
        described_in=str(data_dir),
    )


class _Loader(yaml.SafeLoader):
    """Loader that refuses a key that is given twice, of which YAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping from distinct keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> Any:
    try:
        return _Loader(path.read_text(encoding="utf-8-sig")).get_single_data()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error
    # besides its own exceptions, PyYAML raises those of Python: for a 13th month, a wrong tag, nesting without an end
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


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


def _read_label_values(description: dict[str, Any], classes: list[str], path: Path) -> dict[int | Color, int]:
    if "label_values" in description and "label_colors" in description:
        raise UsageError(f"{path}: give `label_values:` or `label_colors:`, not both.")
    key = "label_colors" if "label_colors" in description else "label_values"
    mapping = description.get(key, dict(enumerate(classes)))
    if not isinstance(mapping, dict) or not mapping:
        raise UsageError(f"{path}: `{key}:` must map raw values to class names, got {mapping!r}.")
    values: dict[int | Color, int] = {}
    for raw, name in mapping.items():
        if name not in classes:
            raise UsageError(f"{path}: `{key}:` names the class {name!r}, which `classes:` does not list.")
        value = _raw_value(raw, key == "label_colors", key, path)
        if value in values:
            raise UsageError(f"{path}: `{key}:` lists {value} twice.")
        values[value] = classes.index(name)
    return values


def _read_ignored(
    description: dict[str, Any], label_values: dict[int | Color, int], path: Path
) -> frozenset[int | Color]:
    """Read the raw values without a class; they are of the kind of the `label_values`."""
    listed = description.get("ignored", [])
    if not isinstance(listed, list):
        raise UsageError(f"{path}: `ignored:` must be a list of raw values, such as [255], got {listed!r}.")
    by_color = any(isinstance(value, tuple) for value in label_values)
    ignored = frozenset(_raw_value(value, by_color, "ignored", path) for value in listed)
    explicit = "label_values" in description or "label_colors" in description
    if explicit and (both := sorted(ignored & set(label_values))):
        raise UsageError(
            f"{path}: `ignored:` lists {both[0]}, which `label_{'colors' if by_color else 'values'}:` maps."
        )
    return ignored


def _raw_value(value: Any, by_color: bool, key: str, path: Path) -> int | Color:
    """Parse a raw label: 7 -> 7; "128,0,0" -> (128, 0, 0)."""
    color = _color(value)
    if by_color and color is not None:
        return color
    if not by_color and is_raw_value(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        wanted = 'colors like "128,0,0"' if by_color else f"integers from 0 to {MAX_RAW_VALUE}"
    elif color is not None:
        wanted = "integers (colors are listed under `label_colors:`)"
    else:
        raise UsageError(f'{path}: `{key}:`: a raw label must be an integer or a color like "128,0,0", got {value!r}.')
    raise UsageError(f"{path}: `{key}:`: these raw labels must be {wanted}, got {value!r}.")


def _color(value: Any) -> Color | None:
    """Parse "128,0,0"; return `None` for anything else."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 3 for part in parts):
        return None
    red, green, blue = (int(part) for part in parts)
    return (red, green, blue) if max(red, green, blue) < 256 else None


def _read_palette(description: dict[str, Any], classes: list[str], path: Path) -> list[Color]:
    palette = default_palette(classes)
    colors = description.get("palette") or {}
    if not isinstance(colors, dict):
        raise UsageError(f"{path}: `palette:` must map class names to colors, got {colors!r}.")
    for name, value in colors.items():
        if name not in classes:
            raise UsageError(f"{path}: `palette:` names the class {name!r}, which `classes:` does not list.")
        color = _color(",".join(map(str, value)) if isinstance(value, list) else value)
        if color is None:
            raise UsageError(f"{path}: `palette:`: a color is [128, 0, 0] or the like, got {value!r} for {name!r}.")
        palette[classes.index(name)] = color
    return palette


def _read_groups(description: dict[str, Any], classes: list[str], path: Path) -> dict[str, list[int]]:
    groups = description.get("groups") or {}
    if not isinstance(groups, dict):
        raise UsageError(f"{path}: `groups:` must map names of groups to lists of classes, got {groups!r}.")
    for group, names in groups.items():
        if not isinstance(group, str) or not isinstance(names, list) or not names:
            raise UsageError(
                f"{path}: `groups:`: the name of a group must be a string and its classes a list, got {group!r}: "
                f"{names!r}."
            )
        if unknown := [name for name in names if name not in classes]:
            raise UsageError(
                f"{path}: `groups:`: the group {group!r} names {unknown}, which `classes:` does not list."
            )
    return {group: [classes.index(name) for name in dict.fromkeys(names)] for group, names in groups.items()}


def _read_license(description: dict[str, Any], path: Path) -> str:
    terms = description.get("license")
    if isinstance(terms, (list, dict)):
        raise UsageError(f"{path}: `license:` must be text, got {terms!r}.")
    return str(terms or "")
