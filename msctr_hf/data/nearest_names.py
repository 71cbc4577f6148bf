"""Files whose names are similar, to say what belongs together where images and labels do not match."""

from __future__ import annotations

import difflib
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .image_files import LABEL_SUFFIXES, LABEL_SUFFIXES_BY_REQUEST, NAMES_SHOWN

_SIMILAR = 0.6  # ratio of difflib, as in `difflib.get_close_matches`
_MOST_COMPARED = 2000  # names, of which difflib compares about 20 in a millisecond


def name_some_with_nearest(paths: Sequence[Path], others: Sequence[Path], kind: str) -> str:
    """Join the first paths for a sentence, each with the most similar one of other files, if there is one.

    Args:
        paths (`Sequence[Path]`): Files to name.
        others (`Sequence[Path]`): Files on the other side.
        kind (`str`): What these are: `"image"` or `"label"`.
    """
    shown = []
    for path in paths[:NAMES_SHOWN]:
        other = _nearest(path, others)
        shown.append(f"{path} (nearest {kind}: {_brief(other, path)})" if other is not None else str(path))
    return ", ".join(shown) + (", ..." if len(paths) > NAMES_SHOWN else "")


def nearest_name(name: str, names: Sequence[str]) -> str:
    """Return the most similar name, or an empty text if none is similar."""
    return next(iter(difflib.get_close_matches(name, _around(name, sorted(names)), 1, _SIMILAR)), "")


def pairing_hint(images: Sequence[Path], labels: Sequence[Path], *, may_name_suffix: bool) -> str:
    """Say which setting, or which other files, would give labels to images that have none.

    Args:
        images (`Sequence[Path]`): Images without labels.
        labels (`Sequence[Path]`): Files without an image in the folder of the labels, with any ending of images.
        may_name_suffix (`bool`): Whether `label_suffix` can be given.

    Returns:
        `str`: A sentence, or an empty text.
    """
    image_of = {path.stem: path for path in images}
    folded = {path.stem.casefold(): path for path in images}
    found: dict[str, tuple[Path, Path]] = {}
    counts: Counter[str] = Counter()
    for label in labels:
        stem = next((label.stem[:end] for end in range(len(label.stem), 0, -1) if label.stem[:end] in image_of), None)
        if stem is not None:
            text, image = _setting(label, stem), image_of[stem]
        else:
            text, image = "ignore_case: true", folded.get(label.stem.casefold())
        if image is not None and text and (may_name_suffix or not text.startswith("label_suffix")):
            found.setdefault(text, (image, label))
            counts[text] += 1
    # 10.png is not the label of 1.jpg, but 1L.png and 2L.png are those of 1.jpg and 2.jpg
    for text in [text for text in counts if text.removeprefix("label_suffix: ")[:1].isalnum()]:
        if text.startswith("label_suffix: ") and (counts[text] < 2 or 2 * counts[text] < len(images)):
            del counts[text]
    if not counts:
        return ""
    text = max(counts, key=lambda each: counts[each])
    image, label = found[text]
    if text == _LOSSY:
        return (
            f"{_brief(label, image)} may be the label of {image.name}, but JPEG and the like do not keep label "
            "values; save the labels again as PNG, from data that were never compressed with loss."
        )
    return f"Write `{text}` in dataset.yaml if {_brief(label, image)} is the label of {image.name}."


_LOSSY = "lossy"


def _setting(label: Path, stem: str) -> str:
    """Return the setting that finds the label of an image with this stem; empty if only its folder differs."""
    suffix = label.name[len(stem) : len(label.name) - len(label.suffix)]
    if label.suffix.lower() in LABEL_SUFFIXES:
        return f"label_suffix: {suffix}" if suffix else ""
    if label.suffix.lower() in LABEL_SUFFIXES_BY_REQUEST:
        return f"label_suffix: {suffix}{label.suffix}"
    return _LOSSY


def _nearest(path: Path, others: Sequence[Path]) -> Path | None:
    if not others:
        return None
    by_stem = {other.stem: other for other in reversed(others)}
    stems = _around(path.stem, sorted(by_stem))
    extended = [stem for stem in stems if _extends(stem, path.stem) or _extends(path.stem, stem)]
    matches = extended or difflib.get_close_matches(path.stem, stems, 1, _SIMILAR)
    return by_stem[matches[0]] if matches else None


def _extends(long: str, short: str) -> bool:
    """Return whether a name is another with a suffix or a prefix that is set apart: "7_mask" and "7"."""
    return (long.startswith(short) and not long[len(short) :][:1].isalnum()) or (
        long.endswith(short) and not long[: len(long) - len(short)][-1:].isalnum()
    )


def _around(name: str, names: Sequence[str]) -> Sequence[str]:
    """Select the names that are near in the order of the alphabet, so that a huge folder takes no minutes."""
    place = bisect(names, name)
    start = max(0, min(place - _MOST_COMPARED // 2, len(names) - _MOST_COMPARED))
    return names[start : start + _MOST_COMPARED]


def _brief(path: Path, beside: Path) -> str:
    """Name a file by its path where another has the same name, otherwise by its name."""
    return str(path) if path.stem == beside.stem else path.name
