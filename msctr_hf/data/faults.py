"""Sentences about files that cannot be used, grouped by their kind."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

ALL_NAMED = 10  # names of a group that are all listed
_FIRST_NAMED = 4
_VALUES_SHOWN = 20
_UNLISTED = re.compile(r"(\[.+?\]) are not listed")


def group_faults(faults: Iterable[tuple[str, str]]) -> list[str]:
    """Write one sentence for every kind of fault, with the number of images and the first names.

    Args:
        faults (`Iterable[tuple[str, str]]`): Name of an image, and the sentence about it.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, sentence in faults:
        groups.setdefault(_kind(name, sentence), []).append((name, sentence))
    return [_summary(group) for group in groups.values()]


def _kind(name: str, sentence: str) -> str:
    """Leave out what differs between files: their names, numbers, lists of values, and bytes."""
    stem = re.escape(name.rpartition("/")[2].partition(".")[0])
    for pattern in (r"\[.*\]", r"b'.*?'", rf"\S*(?<![^\W_]){stem}(?![^\W_])\S*", r"[\d,.]*\d"):
        sentence = re.sub(pattern, "#", sentence)
    return re.sub(r"\S*#\S*", "#", sentence)  # "50x40" is "#", too, where the name is 50


def _summary(group: list[tuple[str, str]]) -> str:
    sentence = group[0][1]
    if len(group) == 1:
        return sentence
    others = [name for name, _ in group[1:]]
    shown = others if len(group) <= ALL_NAMED else others[:_FIRST_NAMED]
    more = f" and {len(others) - len(shown)} more" if len(others) > len(shown) else ""
    values = _all_unlisted(group)
    listed = f"; together, their values are {values}" if values else ""
    return f"{len(group)} images: {sentence.rstrip('.')} (likewise {', '.join(shown)}{more}{listed})."


def _all_unlisted(group: list[tuple[str, str]]) -> str:
    """Join the values that are not listed, if they differ between the files of a group."""
    found = [match[1] for _, sentence in group if (match := _UNLISTED.search(sentence))]
    if len(set(found)) < 2:
        return ""
    values = sorted({str(value): value for text in found for value in ast.literal_eval(text)}.values())
    return f"{values[:_VALUES_SHOWN]}{' ...' if len(values) > _VALUES_SHOWN else ''}"
