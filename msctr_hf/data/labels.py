"""From the pixels of a label file to train ids, once and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

IGNORE_INDEX = 255
MAX_CLASSES = IGNORE_INDEX  # train ids are stored in 8 bits
Color = tuple[int, int, int]

_ID_MODES = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_COLOR_MODES = {"RGB", "RGBA"}
_RAW_VALUES = 1 << 16
_UNLISTED = 256


@dataclass(frozen=True)
class LabelMapping:
    """Raw label values, or colours, to train ids.

    Args:
        values (`Mapping`): Raw value or RGB colour -> train id.
        ignored (`frozenset`, *optional*): Raw values that become 255; `None`: every value not listed.
    """

    values: Mapping[int | Color, int]
    ignored: frozenset[int | Color] | None = frozenset()

    @property
    def by_color(self) -> bool:
        """Whether labels are told by colour."""
        return any(isinstance(value, tuple) for value in self.values)

    @cached_property
    def _targets(self) -> dict[int | Color, int]:
        return {**dict.fromkeys(self.ignored or (), IGNORE_INDEX), **self.values}

    @cached_property
    def _table(self) -> np.ndarray:
        """Train id of every raw value below 65,536."""
        table = np.full(_RAW_VALUES, _UNLISTED, dtype=np.int16)
        for value, train_id in self._targets.items():
            table[value] = train_id
        return table

    @cached_property
    def _colors(self) -> tuple[np.ndarray, np.ndarray]:
        """Listed colours as ascending integers, and their train ids."""
        by_key = {_key(color): train_id for color, train_id in self._targets.items() if isinstance(color, tuple)}
        return np.array(sorted(by_key)), np.array([by_key[key] for key in sorted(by_key)], dtype=np.int16)

    def __call__(self, raw: np.ndarray, file: str) -> np.ndarray:
        """Map raw labels (H, W), or colours (H, W, 3), to train ids (H, W) uint8, 255 where ignored.

        Raises:
            ValueError: If a value is not listed; `file` is named.
        """
        train_ids = self._look_up_colors(raw) if self.by_color else self._look_up_values(raw)
        unlisted = train_ids == _UNLISTED
        if unlisted.any():
            if self.ignored is not None:
                raise ValueError(self._complaint(raw[unlisted], file))
            train_ids[unlisted] = IGNORE_INDEX
        return train_ids.astype(np.uint8)

    def _look_up_values(self, raw: np.ndarray) -> np.ndarray:
        if raw.dtype == np.bool_ or raw.dtype.itemsize <= 2:
            return self._table[raw.astype(np.uint16)]
        in_table = (raw >= 0) & (raw < _RAW_VALUES)
        return np.where(in_table, self._table[np.where(in_table, raw, 0)], _UNLISTED)

    def _look_up_colors(self, raw: np.ndarray) -> np.ndarray:
        keys, train_ids = self._colors
        wanted = raw.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        positions = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return np.where(keys[positions] == wanted, train_ids[positions], _UNLISTED)

    def _complaint(self, unlisted: np.ndarray, file: str) -> str:
        found = np.unique(unlisted, axis=0).tolist()
        kind = "colours" if self.by_color else "values"
        return (
            f"{file}: label {kind} {found[:8]} belong to no class (known: {sorted(self._targets)[:40]}). Add them to "
            "the classes or to the ignored values."
        )


def _key(color: Color) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue


def read_sample(image: Any, label: Any, mapping: LabelMapping) -> tuple[Image.Image, Image.Image]:
    """Decode one picture and its labels.

    Args:
        image, label: Files as `datasets.Image(decode=False)` gives them: dicts with `path` and `bytes`.
        mapping (`LabelMapping`): How label values become train ids.

    Returns:
        `tuple[Image, Image]`: RGB picture; train ids (mode L), 255 where ignored.

    Raises:
        ValueError: If a file cannot be read, sizes differ or a label value is unknown; the file is named.
    """
    picture = _open(image)
    upright = ImageOps.exif_transpose(picture)
    train_ids = Image.fromarray(mapping(_read_raw_labels(label, mapping.by_color), label["path"]))
    # labels were drawn on the picture as shown; where only the stored orientation fits, they were drawn on that
    picture = picture if upright.size != train_ids.size == picture.size else upright
    if picture.size != train_ids.size:
        raise ValueError(
            f"{label['path']} is {train_ids.width}x{train_ids.height} pixels but its picture {image['path']} is "
            f"{picture.width}x{picture.height}; they must have the same size."
        )
    return picture.convert("RGB"), train_ids


def read_image(path: str | Path) -> Image.Image:
    """Read a picture as RGB, upright.

    Raises:
        ValueError: If the file cannot be read.
    """
    return ImageOps.exif_transpose(_open({"path": str(path)})).convert("RGB")


def _read_raw_labels(label: Any, by_color: bool) -> np.ndarray:
    """Class values (H, W), palettes and 16 bits taken as values, or colours (H, W, 3)."""
    picture = _open(label)
    modes = _COLOR_MODES | {"P"} if by_color else _ID_MODES
    if picture.mode not in modes:
        wanted = "an RGB picture" if by_color else "one value a pixel (8 or 16 bits, or a palette)"
        raise ValueError(f"{label['path']}: labels must be {wanted}, but the file has the mode {picture.mode}.")
    return np.asarray(picture.convert("RGB") if by_color else picture)


def _open(file: Any) -> Image.Image:
    source = BytesIO(file["bytes"]) if file.get("bytes") else file["path"]
    try:
        with Image.open(source) as picture:
            picture.load()
            return picture
    except FileNotFoundError:
        raise ValueError(f"There is no file {file['path']}.") from None
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        raise ValueError(f"{file['path']} cannot be read as a picture: {error}") from None
