"""Settings that describe themselves: help, default, range and purpose are given once, at the field.

The parser of the commands, the check on resume, the model card, sweeps and the table of runs read them from there.
"""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

from .errors import UsageError

_KEY = "setting"  # key in the metadata of a dataclass field


@dataclass(frozen=True)
class SettingInfo:
    """Description of a setting, in addition to its name, type and default.

    Args:
        help (`str`): One or two sentences for `--help`.
        at_least, above, at_most, below (`float`, *optional*): Range of the value, or of each value of a list.
        length (`int`, *optional*): Number of values of a list.
        ascending (`bool`): Whether the values of a list must be in ascending order.
        aliases (`tuple[str, ...]`): Names in other libraries with exactly the same meaning, which are accepted.
        former (`tuple[str, ...]`): Names in older versions, which are accepted but not shown.
        former_values (`Mapping[str, str]`): Values of older versions, and what they are called now; likewise.
        instead_of (`tuple[str, ...]`): Settings that exclude this one; a flag replaces their values in a recipe.
        resembles (`tuple[str, ...]`): Names in other libraries with nearly the same meaning, which are refused; the
            message names ours.
        on_resume (`str`): Treatment of another value when a run is resumed: `"refused"`, since it would be another
            run; `"announced"`, reported in a line at the start; `"batch"`, refused if it changes the number of images
            of a step; `"replaced"`, ignored, since the checkpoint replaces what it determines; `"free"`, accepted.
        follows (`str`, *optional*): Setting whose value this one has where it is `None`.
        in_card (`bool`): Whether the setting is listed in the recipe of a model card.
        is_path (`bool`): Whether the value may be a path on this machine.
        launch_only (`bool`): Whether the setting belongs to one launch of a run and is left out of its config.yaml.
    """

    help: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    length: int | None = None
    ascending: bool = False
    aliases: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    former_values: Mapping[str, str] = field(default_factory=dict)
    instead_of: tuple[str, ...] = ()
    resembles: tuple[str, ...] = ()
    on_resume: Literal["refused", "announced", "batch", "replaced", "free"] = "refused"
    follows: str | None = None
    in_card: bool = True
    is_path: bool = False
    launch_only: bool = False

    def range(self) -> str:
        """Describe the range in words; return an empty text if every value is allowed."""
        lower, upper = (self.above, self.at_least), (self.below, self.at_most)
        if lower != (None, None) and upper != (None, None):
            opening = f"[{self.at_least}" if self.above is None else f"({self.above}"
            closing = f"{self.at_most}]" if self.below is None else f"{self.below})"
            return f"in {opening}, {closing}"
        for word, bound in (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        ):
            if bound is not None:
                return f"{word} {bound}"
        return ""

    def admits(self, value: Any) -> bool:
        """Check that a number is finite and in the range; other values always pass."""
        if not isinstance(value, (int, float)):
            return True
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def setting(default: Any = MISSING, **info: Any) -> Any:
    """Declare a field of a dataclass of settings by its default and the arguments of `SettingInfo`."""
    metadata = {_KEY: SettingInfo(**info)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_workers(most: int) -> int:
    """Return the default of a number of worker processes: `most`, or the cores of this process if it has fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(most, cores)


@dataclass
class Settings:
    """Base class of all dataclasses of settings, which checks the values when an instance is created."""

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for name, info in setting_infos(type(self)).items():
            if isinstance(value := getattr(self, name), str) and value in info.former_values:
                setattr(self, name, info.former_values[value])
            elif value is not None:
                _check(name, value, info, types[name])


def setting_infos(*classes: type) -> dict[str, SettingInfo]:
    """Return the descriptions of all settings of these dataclasses, by name."""
    fields = (each for one in classes for each in dataclasses.fields(one))
    return {each.name: each.metadata.get(_KEY, SettingInfo()) for each in fields}


def defaults(*classes: type) -> dict[str, Any]:
    """Return the defaults of all settings of these dataclasses that have one, by name."""
    values = {}
    for each in (each for one in classes for each in dataclasses.fields(one)):
        if each.default is not MISSING:
            values[each.name] = each.default
        elif each.default_factory is not MISSING:
            values[each.name] = each.default_factory()
    return values


def as_mapping(*settings: Any) -> dict[str, Any]:
    """Return the values of several dataclasses in one dict."""
    return {name: value for each in settings for name, value in dataclasses.asdict(each).items()}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the sorted names whose values differ; a missing value counts as `None`."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _check(name: str, value: Any, info: SettingInfo, type_hint: Any) -> None:
    choices = _choices(type_hint)
    if choices and value not in choices:
        raise UsageError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    values: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    finite = "finite" if any(isinstance(each, float) and not math.isfinite(each) for each in values) else ""
    rule = " and ".join(part for part in (info.range(), finite) if part)
    if info.length is not None and (len(values) != info.length or not all(map(info.admits, values))):
        raise UsageError(f"`{name}` needs {info.length} values{f', each {rule}' if rule else ''}, got {value}.")
    if not all(map(info.admits, values)):
        raise UsageError(f"`{name}` must be {rule}, got {value}.")
    if info.ascending and list(values) != sorted(values):
        raise UsageError(f"`{name}` must be in ascending order, got {value}.")


def _choices(type_hint: Any) -> tuple[Any, ...]:
    """Return the values that a `Literal` or optional `Literal` allows; empty for other types."""
    for one in (type_hint, *typing.get_args(type_hint)):
        if typing.get_origin(one) is Literal:
            return typing.get_args(one)
    return ()
