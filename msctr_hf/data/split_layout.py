"""The files of the splits, as `dataset.yaml` describes them: folders, templates of paths, lists of names, shares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UsageError
from .file_pairs import Layout, PairedFiles
from .image_files import IMAGE_SUFFIXES, LABEL_SUFFIXES, LABEL_SUFFIXES_BY_REQUEST
from .path_template import PathTemplate, is_template
from .shares import Share

FILE_KEYS = ("images", "labels", "label_suffix")
LAYOUT_KEYS = ("splits", *FILE_KEYS, "ignore_case", "seed")
_SPLITS = ("train", "validation", "test")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_EXAMPLE = "{validation: 10 %}"


def read_layout(description: Mapping[str, Any], path: Path) -> Layout:
    """Read where the files of every split are; empty if there is no `splits:`, as a copy has splits of its own.

    Args:
        description (`Mapping`): Contents of the description of a data set.
        path (`Path`): Its file, for messages.

    Raises:
        UsageError: If a key or its value is wrong; the message names it.
    """
    if "splits" not in description:
        if given := [key for key in LAYOUT_KEYS if key in description]:
            raise UsageError(
                f"{path}: `{given[0]}:` needs `splits:`, which says what is for training and what for validation, "
                f"such as {_EXAMPLE}."
            )
        return {}
    splits = description["splits"]
    if not isinstance(splits, dict) or not splits:
        raise UsageError(
            f"{path}: `splits:` must give the folders of train, validation or test, or their share of the files under "
            f"`images:`, such as {_EXAMPLE}; got {splits!r}."
        )
    for split in splits:
        if split not in _SPLITS:
            raise UsageError(f"{path}: `splits:`: a split is train, validation or test, not {split!r}.")
    suffix, ignore_case = _read_label_suffix(description, f"{path}: "), _read_ignore_case(description, path)
    shared = None
    if "images" in description or "labels" in description:
        shared = _read_files(description, f"{path}: ", "the data set", suffix, labels_needed=True)
    parts = {split: _read_part(entry, split, path, suffix) for split, entry in splits.items()}
    layout = _divide(parts, shared, _read_seed(description, path), path)
    return {split: (replace(files, ignore_case=ignore_case),) for split, files in layout.items()}


def _read_part(entry: Any, split: str, path: Path, suffix: str | None) -> PairedFiles | Fraction | str | tuple:
    """Read one split: its own files, a share, a text file with names, or the names."""
    place = f"{path}: `splits:`: "
    if isinstance(entry, dict):
        if unknown := [key for key in entry if key not in FILE_KEYS]:
            raise UsageError(f"{place}{split} has the unknown key {unknown[0]!r}; choose from {', '.join(FILE_KEYS)}.")
        suffix = _read_label_suffix(entry, place) if "label_suffix" in entry else suffix
        return _read_files(entry, place, split, suffix, labels_needed=split != "test")  # which may be secret
    if isinstance(entry, list):
        if not entry or not all(isinstance(name, str) and name.strip() for name in entry):
            raise UsageError(f"{place}{split} must list names of images as text, such as ['0001'], got {entry!r}.")
        return tuple(entry)
    if isinstance(entry, str) and "%" in entry:
        match = _SHARE.fullmatch(entry.strip())
        share = Fraction(match[1]) / 100 if match else Fraction(0)
        if not 0 < share < 1:
            raise UsageError(f"{place}the share of {split} must be like 10 %, above 0 and below 100 %, got {entry!r}.")
        return share
    if isinstance(entry, str):
        _check_path(entry, f"{place}{split}", "the name of a text file")
        return entry
    raise UsageError(
        f"{place}{split} must be {{images: FOLDER, labels: FOLDER}}, a share like 10 %, or a list of names or a text "
        f"file with them, got {entry!r}."
    )


def _divide(
    parts: Mapping[str, Any], shared: PairedFiles | None, seed: int | None, path: Path
) -> dict[str, PairedFiles]:
    """Divide the files under `images:`, or those of train, into the splits that are shares or lists of names."""
    own = {split: part for split, part in parts.items() if isinstance(part, PairedFiles)}
    shares = [
        (split, parts[split]) for split in ("validation", "test", "train") if isinstance(parts.get(split), Fraction)
    ]
    lists = {split: part for split, part in parts.items() if isinstance(part, (str, tuple))}
    place = f"{path}: `splits:`: "
    if seed is not None and not shares:
        raise UsageError(f"{path}: `seed:` is for a share, such as {_EXAMPLE}, which `splits:` does not have.")
    if not shares and not lists:
        if shared is not None:
            raise UsageError(
                f"{path}: `images:` is for splits that are shares or lists of names, but all `splits:` have their own."
            )
        return own
    files = shared or own.get("train")
    if files is None:
        raise UsageError(
            f"{place}{next(iter((*dict(shares), *lists)))} is a part of the files under `images:` and `labels:`, "
            "which must stand beside `splits:`."
        )
    divides_train = "train" not in parts or (shared is None and "train" in own)
    if shares and "train" in parts and not divides_train and "train" not in dict(shares):
        raise UsageError(
            f"{place}{shares[0][0]} is a share, so train must be one, too, or have the rest; leave out `train:`."
        )
    total = sum(share for _, share in shares)
    if total > 1 or (total == 1 and "train" not in dict(shares)):
        raise UsageError(
            f"{place}the shares must sum to at most 100 % and leave some images for train, but "
            f"{' + '.join(f'{float(100 * share):g} %' for _, share in shares)} is {float(100 * total):g} %."
        )
    rest = None
    if divides_train:
        rest = "train"
    elif total == 1:
        rest, shares = "train", shares[:-1]  # what rounding leaves
    own = {split: part for split, part in own.items() if split != rest}
    share = Share("", tuple(shares), rest, tuple(lists.values()), seed or 0)
    layout: dict[str, PairedFiles] = {}
    for split in _SPLITS:
        if split in own:
            layout[split] = own[split]
        elif split in lists:
            layout[split] = replace(files, names=lists[split])
        elif split in dict(shares) or split == rest:
            layout[split] = replace(files, share=replace(share, split=split))
    return layout


def _read_files(
    entry: Mapping[str, Any], place: str, split: str, suffix: str | None, *, labels_needed: bool
) -> PairedFiles:
    for key in ("images", "labels"):
        if key in entry:
            _check_path(entry[key], f"{place}`{key}:` of {split}", "the name of a folder, or a path with *")
    if "images" not in entry or (labels_needed and "labels" not in entry and suffix is None):
        given = {key: entry[key] for key in FILE_KEYS if key in entry}
        raise UsageError(f"{place}{split} must have `images:` and `labels:`, got {given!r}.")
    images = entry["images"]
    labels = entry.get("labels", images if suffix is not None else None)
    if any(is_template(each) for each in (images, labels or "")):
        _check_templates(images, labels, suffix, place, split)
    elif labels is not None and suffix is None and Path(images) == Path(labels):
        raise UsageError(
            f"{place}images and labels of {split} must be in different folders, or labels need a `label_suffix:` like "
            "_mask."
        )
    if labels is not None and PurePosixPath(images) == PurePosixPath(labels):
        labels = images  # one spelling of the folder
    return PairedFiles(images, labels, label_suffix=suffix)


def _check_templates(images: str, labels: str | None, suffix: str | None, place: str, split: str) -> None:
    if suffix is not None:
        raise UsageError(
            f"{place}`label_suffix:` is for folders; in a path with * write it after the *, as in masks/*_mask.png."
        )
    templates = {
        key: PathTemplate(text) for key, text in (("images", images), ("labels", labels)) if is_template(text or "")
    }
    for key, template in templates.items():
        if not template.names_files:
            raise UsageError(
                f"{place}`{key}:` of {split} must end in the names of files, such as {template.text}/*.png, got "
                f"{template.text!r}."
            )
    if "labels" in templates:
        _check_label_ending(templates["labels"].ending, f"{place}`labels:` of {split}")
    if len(templates) < 2:
        return
    counts = [templates[key].num_wildcards for key in ("images", "labels")]
    if None not in counts and counts[0] != counts[1]:
        raise UsageError(
            f"{place}`images:` and `labels:` of {split} must have the same number of *, which stand for the same "
            f"text in both, got {images!r} and {labels!r}."
        )
    if templates["images"] == templates["labels"]:
        raise UsageError(f"{place}`images:` and `labels:` of {split} must differ, got {images!r} for both.")


def _read_label_suffix(entry: Mapping[str, Any], place: str) -> str | None:
    if "label_suffix" not in entry:
        return None
    suffix = entry["label_suffix"]
    if not isinstance(suffix, str) or not suffix.strip() or "/" in suffix or "*" in suffix:
        raise UsageError(f"{place}`label_suffix:` must be the end of the labels' names, like _mask, got {suffix!r}.")
    ending = PurePosixPath(f"name{suffix}").suffix
    _check_label_ending(ending if ending.lower() in IMAGE_SUFFIXES else "", f"{place}`label_suffix:`")
    return suffix


def _check_label_ending(ending: str, key: str) -> None:
    if ending and ending.lower() not in (*LABEL_SUFFIXES, *LABEL_SUFFIXES_BY_REQUEST):
        raise UsageError(
            f"{key}: {ending} does not keep the values of labels; save the labels again as PNG, from data that were "
            "never compressed with loss."
        )


def _read_ignore_case(description: Mapping[str, Any], path: Path) -> bool:
    value = description.get("ignore_case", False)
    if not isinstance(value, bool):
        raise UsageError(f"{path}: `ignore_case:` must be true or false, got {value!r}.")
    return value


def _read_seed(description: Mapping[str, Any], path: Path) -> int | None:
    if "seed" not in description:
        return None
    seed = description["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UsageError(f"{path}: `seed:` must be a whole number from 0, got {seed!r}.")
    return seed


def _check_path(value: Any, key: str, wanted: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{key} must be {wanted}, got {value!r}.")
    if Path(value).is_absolute() or ".." in Path(value).parts:
        raise UsageError(f"{key} must be inside the folder of the data set, got {value!r}.")
