"""Division of the images of an export into splits, such that groups of images stay together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ..data.shares import in_seeded_order
from ..errors import UsageError
from .export import ExportedImage

_DEFAULT_SHARE = 0.1


def divide(
    images: Sequence[ExportedImage], validation_share: float | None, seed: int, group_pattern: str | None
) -> list[ExportedImage]:
    """Give every image a split: that of the export, or a random one where there is no validation split.

    Args:
        images (`Sequence[ExportedImage]`): Images, some of which have a split.
        validation_share (`float`, *optional*): Share of validation images; if it is given, the training and validation
            images of the export are divided anew. By default the splits of the export are kept and, if it has no
            validation images, 0.1 of its other images are for validation. Test images stay what they are.
        seed (`int`): Seed of the division, which depends on nothing but it and the names of groups.
        group_pattern (`str`, *optional*): Regular expression that is searched in the name of an image; what it, or its
            first group, matches is the same for images that must be in one split. By default each image is a group.

    Raises:
        UsageError: If the pattern is not valid or matches no part of a name, there is only one group, or the export
            has no training images.
    """
    if validation_share is None and any(image.split == "validation" for image in images):
        if group_pattern is not None:
            raise UsageError(
                "`group_pattern`: the export has a validation split, which is kept; add `validation_share` to divide "
                "its images anew, or leave `group_pattern` out."
            )
        if all(image.split in ("validation", "test") for image in images):
            raise UsageError(
                "The export has validation images but no training images; import all of its splits together, add "
                "`validation_share` to divide the validation images, or, if they are of this split only by the name "
                "of a file or folder, rename it."
            )
        return [replace(image, split=image.split or "train") for image in images]
    groups: dict[str, int] = {}
    for image in images:
        if image.split != "test":
            group = _group(image, group_pattern)
            groups[group] = groups.get(group, 0) + 1
    if not groups:
        raise UsageError(
            f"All {len(images)} images are of the test split, by the name of a file or folder; import all splits of "
            "the export together, or rename it."
        )
    if len(groups) < 2:
        raise UsageError(
            f"{sum(groups.values())} images in {len(groups)} group(s) cannot be divided into training and validation "
            "images; two groups or more are needed."
        )
    wanted = sum(groups.values()) * (_DEFAULT_SHARE if validation_share is None else validation_share)
    chosen = _choose(groups, wanted, seed)
    return [
        replace(image, split="validation" if _group(image, group_pattern) in chosen else "train")
        if image.split != "test"
        else image
        for image in images
    ]


def _group(image: ExportedImage, pattern: str | None) -> str:
    if pattern is None:
        return image.name
    try:
        match = re.search(pattern, image.name)
    except re.error as error:
        raise UsageError(f"`group_pattern`: {pattern!r} is not a regular expression ({error}).") from None
    if match is None:
        raise UsageError(f"`group_pattern`: {pattern!r} matches no part of the name {image.name!r}.")
    return match[1] if match.re.groups and match[1] is not None else match[0]


def _choose(groups: dict[str, int], wanted: float, seed: int) -> set[str]:
    """Choose groups in an order that depends on the seed, while they bring the number of images closer to `wanted`."""
    in_order = in_seeded_order(groups, seed)
    chosen, count = {in_order[0]}, groups[in_order[0]]
    for group in in_order[1:-1]:  # the last one is left for training
        if abs(count + groups[group] - wanted) < abs(count - wanted):
            chosen.add(group)
            count += groups[group]
    return chosen
