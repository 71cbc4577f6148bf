"""Record of the classes and label values with which a copy of a data set was made, and its comparison with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .labels import Color
from .specs import DatasetSpec

_SHOWN = 4

LabelRecord = dict[str, Any]


def label_record(spec: DatasetSpec) -> LabelRecord:
    """Describe classes, raw label values and ignored values of a data set in a form that JSON can store."""
    values = {_text(raw): spec.classes[label] for raw, label in spec.label_values.items()}
    return {
        "classes": list(spec.classes),
        "label_values": dict(sorted(values.items())),
        "ignored": None if spec.ignored is None else sorted(map(_text, spec.ignored)),
        "values_from": spec.values_from,
    }


def label_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say which settings give labels another meaning, and how; return an empty text if none does.

    Args:
        before, now (`Mapping`): Results of `label_record`.
    """
    if before["classes"] != now["classes"]:
        return f"`classes` were {before['classes']} and are now {now['classes']}"
    settings = " and ".join(dict.fromkeys(f"`{each['values_from']}`" for each in (before, now) if each["values_from"]))
    former, values = before["label_values"], now["label_values"]
    moved = [raw for raw in {**former, **values} if former.get(raw) != values.get(raw)]
    if moved:
        changes = [f"{raw} was {_name(former, raw)} and is now {_name(values, raw)}" for raw in moved[:_SHOWN]]
        more = ", ..." if len(moved) > _SHOWN else ""
        return f"{settings or '`label_values`'} changed: {', '.join(changes)}{more}"
    if before["ignored"] != now["ignored"]:
        return f"{settings or '`ignored`'} changed: {_ignored(before)} were ignored, and now {_ignored(now)} are"
    return ""


def _text(raw: int | Color) -> str:
    return str(raw) if isinstance(raw, int) else ",".join(map(str, raw))


def _name(values: Mapping[str, str], raw: str) -> str:
    return repr(values[raw]) if raw in values else "not listed"


def _ignored(record: Mapping[str, Any]) -> str:
    ignored = record["ignored"]
    if ignored is None:
        return "all other values"
    return f"the values [{', '.join(ignored)}]" if ignored else "no values"
