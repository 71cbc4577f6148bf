"""Order of the classes of a network compared with that of a data set: classes are the same if their names are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from ..data.specs import DatasetSpec
from ..errors import UsageError
from .predictor import Predictor

_NAMES_SHOWN = 5
# names that say no more than a number, such as LABEL_7, which transformers gives to classes without names
_PLACEHOLDER = re.compile(r"(label|class|category|cls|id|none)?\d*")

ByNamesOrPosition = Literal["names", "position"]


class ClassOrder(NamedTuple):
    """Train ids of a data set for the classes of a network.

    Args:
        train_ids (`tuple[int, ...]`, *optional*): Train id of every class of the network; `None` if they are the same.
        note (`str`, *optional*): Sentence for the user, if the names are not the same in the same order.
    """

    train_ids: tuple[int, ...] | None
    note: str | None


def with_train_ids(
    predictor: Predictor, spec: DatasetSpec, model: str, class_order: ByNamesOrPosition = "names"
) -> tuple[Predictor, str | None]:
    """Return a predictor of the train ids of a data set, and the note of `match_classes`.

    Args:
        predictor (`Predictor`): Network with its image processor.
        spec (`DatasetSpec`): The data set.
        model (`str`): Name of the network, for messages.
        class_order (`str`): `"names"` or `"position"`, as for `match_classes`.

    Raises:
        UsageError: If the network has another number of classes, or other classes.
    """
    if (predicted := predictor.model.config.num_labels) != len(spec.classes):
        raise UsageError(
            f"{model} predicts {predicted} classes, but {spec.in_words} has {len(spec.classes)}; use a data set with "
            "the classes that it was trained for."
        )
    matched = match_classes(predictor.class_names, spec.classes, spec.name, class_order)
    return replace(predictor, train_ids=matched.train_ids), matched.note


def match_classes(
    predicted: Sequence[str], wanted: Sequence[str], dataset: str, class_order: ByNamesOrPosition = "names"
) -> ClassOrder:
    """Match the classes of a network with those of a data set by their names.

    Names are compared without case, underscores, hyphens and spaces. The same names in another order are matched.
    Where one side has no names, such as LABEL_0, classes are matched by position.

    Args:
        predicted (`Sequence[str]`): Class names of the network.
        wanted (`Sequence[str]`): Class names of the data set, as many.
        dataset (`str`): Name of the data set, for messages.
        class_order (`str`): `"names"`, or `"position"` to match by position whatever the names are.

    Raises:
        UsageError: If the names differ; the message lists the differences.
    """
    ours, theirs = comparable_names(predicted, wanted)
    if ours == theirs:
        return ClassOrder(None, None)
    if class_order == "position":
        return ClassOrder(None, f"classes were matched by position, not by name: {_pairs(predicted, wanted)}.")
    no_names = f"warning: classes have no names, so they were matched by position: {_pairs(predicted, wanted)}."
    if _are_default_names(predicted) or _are_default_names(wanted):
        return ClassOrder(None, no_names)
    if (train_ids := find_order(predicted, wanted)) is not None:
        return ClassOrder(
            train_ids,
            f"the network has the classes of the data set {dataset} in another order, so they were matched by name: "
            f"{_pairs(predicted, wanted)}.",
        )
    if any(all(_PLACEHOLDER.fullmatch(_plain_name(name)) for name in names) for names in (predicted, wanted)):
        return ClassOrder(None, no_names)
    raise UsageError(
        f"The network has other classes than the data set {dataset}: {_differences(predicted, wanted)}. Use a network "
        "for these classes, or `class_order='position'` if they are the same under other names and in the same order."
    )


def find_order(predicted: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Find the position in `wanted` of every name in `predicted`; return `None` unless they have the same names."""
    ours, theirs = comparable_names(predicted, wanted)
    if sorted(ours) != sorted(theirs) or not _are_unique(ours):
        return None
    return tuple(theirs.index(name) for name in ours)


def _plain_name(name: str) -> str:
    """Convert the name of a class to the form in which names are compared: `Traffic_Light ` -> `trafficlight`."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFC", str(name))).casefold()


def comparable_names(predicted: Sequence[str], wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return two lists of class names as they are compared: as written where plain forms would make two names one."""
    plain = [_plain_name(name) for name in predicted], [_plain_name(name) for name in wanted]
    if _are_unique(plain[0]) and _are_unique(plain[1]):
        return plain
    return [str(name) for name in predicted], [str(name) for name in wanted]


def _are_unique(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


def _are_default_names(names: Sequence[str]) -> bool:
    """Return whether names are those that transformers gives to classes without names."""
    return [str(name) for name in names] == [f"LABEL_{label}" for label in range(len(names))]


def _pairs(predicted: Sequence[str], wanted: Sequence[str]) -> str:
    """List positions whose names differ: class 0 is 'sky' in the network and 'road' in the data set."""
    different = [
        f"class {label} is {ours!r} in the network and {theirs!r} in the data set"
        for label, (ours, theirs) in enumerate(zip(predicted, wanted, strict=True))
        if ours != theirs
    ]
    return _listed(different)


def _differences(predicted: Sequence[str], wanted: Sequence[str]) -> str:
    ours, theirs = comparable_names(predicted, wanted)
    parts = (
        ("only the network has", [repr(name) for name, key in zip(predicted, ours, strict=True) if key not in theirs]),
        ("only the data set has", [repr(name) for name, key in zip(wanted, theirs, strict=True) if key not in ours]),
    )
    found = [f"{who} {_listed(names)}" for who, names in parts if names]
    return " and ".join(found) or f"names occur twice ({_pairs(predicted, wanted)})"


def _listed(parts: list[str]) -> str:
    more = f" and {len(parts) - _NAMES_SHOWN} more" if len(parts) > _NAMES_SHOWN else ""
    return f"{', '.join(parts[:_NAMES_SHOWN])}{more}"
