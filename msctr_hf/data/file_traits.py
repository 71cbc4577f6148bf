"""Traits of files that the check of a data set counts: EXIF orientations, 16-bit images, and palettes of labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UsageError
from .images import Pair

SIXTEEN_BITS = "16 bits"
BRIGHT = "16 bits, 4096 or more"
_DARK = 4096 >> 8  # 12 bits, after the division by 256
_TAGGED = {  # value of `Pair.tagged` -> what a report says about such images
    "both": "images and their labels are turned alike",
    "image": "images are turned, their labels have no orientation",
    "stored": "images are not turned, because their labels fit them only as stored",
    "label": "labels are turned, their images have no orientation",
}


def traits_of(pair: Pair) -> tuple[str, ...]:
    """Name the traits of a decoded image with its labels."""
    traits = [f"orientation of {pair.tagged}"] if pair.tagged is not None else []
    if pair.bits > 8:
        traits.append(SIXTEEN_BITS)
        if np.asarray(pair.image).max() >= _DARK:
            traits.append(BRIGHT)
    return tuple(traits)


def palette_traits(label: Any) -> tuple[str, ...]:
    """Name the colors that the palette of a readable label file gives to the values in it.

    Args:
        label (`dict`): `path` and `bytes`, as `datasets.Image(decode=False)` returns them.
    """
    with Image.open(BytesIO(label["bytes"]) if label.get("bytes") else label["path"]) as image:
        if image.mode != "P" or image.format == "GIF":  # whose gray values are read from the palette
            return ()
        colors = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        used = np.unique(np.asarray(image))
    return tuple(f"palette: {value} is {','.join(map(str, colors[value]))}" for value in used if value < len(colors))


def warnings_about_palettes(splits: Iterable[Counter[str]], values_of_classes: Container[int]) -> list[str]:
    """Write a sentence if palettes give the value of a class several colors.

    So it is where a program numbers colors anew in every file. Ignored values, as of borders, may have any color.
    """
    colors: dict[int, dict[str, int]] = {}
    for trait, count in sum(splits, Counter()).items():
        if match := re.fullmatch(r"palette: (\d+) is (.*)", trait):
            colors.setdefault(int(match[1]), {})[match[2]] = count
    for value, found in sorted(colors.items()):
        if len(found) > 1 and value in values_of_classes:
            shown = " and ".join(f"({color}) in {count}" for color, count in list(found.items())[:2])
            return [
                f"the palettes of label files differ: the value {value} has the color {shown} of them. If a program "
                "numbered the colors anew in every file, a value is not one class: list the colors in `label_colors` "
                "of a dataset.yaml, or save the labels again with one palette."
            ]
    return []


def lines_about(traits: Counter[str], split: str) -> list[str]:
    """Write lines of a report about EXIF orientations, and a warning about 16-bit images that are nearly black."""
    counts = {said: traits[f"orientation of {kind}"] for kind, said in _TAGGED.items()}
    lines = [f"  EXIF orientation: {count} {said}" for said, count in counts.items() if count]
    if traits[SIXTEEN_BITS] and not traits[BRIGHT]:
        lines.append(
            f"  warning: the {traits[SIXTEEN_BITS]} images of {split} with 16 bits per channel have only values below "
            "4,096. They are read as value / 256 and are therefore nearly black; stretch all by one factor to 0 to "
            "65,535, or save them with 8 bits."
        )
    return lines


def refuse_mixed_orientations(splits: Mapping[str, Counter[str]]) -> None:
    """Refuse a data set in which EXIF orientations of images and of labels are related in more than one way.

    One of the ways is wrong then, and labels whose size fits either way would be read misaligned.

    Raises:
        UsageError: If there are two ways; the message counts both.
    """
    total = sum(splits.values(), Counter())
    found = {said: total[f"orientation of {kind}"] for kind, said in _TAGGED.items()}
    ways = [f"{count} {said}" for said, count in found.items() if count]
    if len(ways) > 1:
        raise UsageError(
            f"EXIF orientations are used inconsistently: {'; '.join(ways)}. Save images and labels again with turned "
            "pixels and without an orientation."
        )
