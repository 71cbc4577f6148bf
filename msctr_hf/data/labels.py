"""Mapping of the raw values of a label file to train ids, which refuses values that are not listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from ..errors import UsageError

IGNORE_INDEX = 255
MAX_CLASSES = IGNORE_INDEX  # train ids are stored in 8 bits
Color = tuple[int, int, int]

_RAW_VALUES = 1 << 16
MAX_RAW_VALUE = _RAW_VALUES - 1
_UNLISTED_MARK = 256  # marks raw values in tables that are neither a class nor ignored


def is_raw_value(value: object) -> bool:
    """Return whether a value can be one of a label file: an integer of at most 16 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_RAW_VALUE


@dataclass(frozen=True)
class LabelMapping:
    """Mapping from raw label values, or colors, to train ids.

    Args:
        values (`Mapping`): Raw value or RGB color -> train id.
        ignored (`frozenset`, *optional*): Raw values that become 255, also if `values` lists them; `None` ignores
            every value that is not listed.
    """

    values: Mapping[int | Color, int]
    ignored: frozenset[int | Color] | None = frozenset()

    @property
    def by_color(self) -> bool:
        """Whether raw labels are colors instead of values."""
        return any(isinstance(value, tuple) for value in self.values)

    @cached_property
    def _targets(self) -> dict[int | Color, int]:
        return {**self.values, **dict.fromkeys(self.ignored or (), IGNORE_INDEX)}

    @cached_property
    def _table(self) -> np.ndarray:
        """Train ids of all raw values below 65,536."""
        table = np.full(_RAW_VALUES, _UNLISTED_MARK, dtype=np.int16)
        for value, train_id in self._targets.items():
            table[value] = train_id
        return table

    @cached_property
    def _bytes(self) -> bytes:
        """Train ids of all raw values of 8 bits."""
        return self._table[:256].clip(max=IGNORE_INDEX).astype(np.uint8).tobytes()

    @cached_property
    def _unlisted_bytes(self) -> np.ndarray:
        return self._table[:256] == _UNLISTED_MARK

    @cached_property
    def _colors(self) -> tuple[np.ndarray, np.ndarray]:
        """Listed colors as integers in ascending order, and their train ids."""
        by_key = {_key(color): train_id for color, train_id in self._targets.items() if isinstance(color, tuple)}
        return np.array(sorted(by_key)), np.array([by_key[key] for key in sorted(by_key)], dtype=np.int16)

    def __call__(self, raw: np.ndarray, file: str) -> np.ndarray:
        """Map raw labels (H, W), or colors (H, W, 3), to train ids (H, W) uint8, 255 where ignored.

        Raises:
            UsageError: If a value is not listed; the message names the `file`.
        """
        if raw.dtype == np.uint8 and not self.by_color:
            return self._map_bytes(raw, file)
        train_ids = self._look_up_colors(raw) if self.by_color else self._look_up_values(raw)
        unlisted = train_ids == _UNLISTED_MARK
        if unlisted.any():
            if self.ignored is not None:
                raise UsageError(self._unlisted_message(raw[unlisted], file))
            train_ids[unlisted] = IGNORE_INDEX
        return train_ids.astype(np.uint8)

    def _map_bytes(self, raw: np.ndarray, file: str) -> np.ndarray:
        """Map labels of 8 bits by `bytes.translate`, several times faster than by indexing a table."""
        if self.ignored is not None:
            present = np.asarray(Image.fromarray(raw).histogram(), dtype=bool)
            if (present & self._unlisted_bytes).any():
                raise UsageError(self._unlisted_message(raw[self._unlisted_bytes[raw]], file))
        return np.frombuffer(raw.tobytes().translate(self._bytes), np.uint8).reshape(raw.shape)

    def _look_up_values(self, raw: np.ndarray) -> np.ndarray:
        if raw.dtype == np.bool_ or raw.dtype.itemsize <= 2:
            return self._table[raw.astype(np.uint16)]
        in_table = (raw >= 0) & (raw < _RAW_VALUES)
        return np.where(in_table, self._table[np.where(in_table, raw, 0)], _UNLISTED_MARK)

    def _look_up_colors(self, raw: np.ndarray) -> np.ndarray:
        keys, train_ids = self._colors
        wanted = raw.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        positions = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return np.where(keys[positions] == wanted, train_ids[positions], _UNLISTED_MARK)

    def _unlisted_message(self, unlisted: np.ndarray, file: str) -> str:
        found = np.unique(unlisted, axis=0).tolist()
        kind = "colors" if self.by_color else "values"
        return (
            f"{file}: label {kind} {found[:8]} are not listed (known: {sorted(self._targets)[:40]}). Add them to "
            "the classes or to the ignored values."
        )


def _key(color: Color) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue
