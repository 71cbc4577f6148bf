"""Record of the data of a run, by which a resumed run recognizes other classes, label values and images.

Every checkpoint keeps the record of classes and training images in a file, and that of the validation set with the
scores that were measured on it. Image ids are recorded instead of files, so that a folder and its copy are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from ..data.labels import IGNORE_INDEX
from ..data.specs import DatasetSpec
from ..errors import UsageError
from ..evaluation.class_order import comparable_names
from .run_folder import read_json

DATA_FILE = "data.json"
TRAINING, UNLABELED = "training", "unlabeled"  # keys of the images with labels, and of those without, if any
_DIFFERENCES_SHOWN = 5
_OTHERS, _REFUSED = "others", "refused"  # raw values that are not listed, and what may become of them


def describe_data(spec: DatasetSpec, train_set: Dataset | IterableDataset) -> dict[str, Any]:
    """Describe the classes, the train ids of raw label values and the training images, for a checkpoint.

    Returns:
        `dict`: `classes`; `raw_values`, raw value or color -> train id; `ignores_other_values`; `training`, the number
        of images and a checksum of their ids in order, or `None` for a stream.
    """
    raw_values = {**dict.fromkeys(spec.ignored or (), IGNORE_INDEX), **spec.label_values}
    return {
        "classes": list(spec.classes),
        "raw_values": {str(raw): label for raw, label in sorted(raw_values.items(), key=lambda item: str(item[0]))},
        "ignores_other_values": spec.ignored is None,
        TRAINING: describe_images(train_set),
    }


def describe_images(dataset: Dataset | IterableDataset) -> dict[str, Any] | None:
    """Describe the images of a set by their number and a checksum of their ids in order; `None` for a stream."""
    if isinstance(dataset, IterableDataset):
        return None
    image_ids = [str(image_id) for image_id in dataset.with_format(None)["image_id"][:]]
    return {"images": len(image_ids), "sha256": hashlib.sha256(json.dumps(image_ids).encode()).hexdigest()}


def describe_validation(spec: DatasetSpec, validation_set: Dataset | IterableDataset, metric: str) -> dict[str, Any]:
    """Describe what decides about the best score: the validation images, and the classes of the group it is about."""
    return {"validation": describe_images(validation_set), "group": sorted(spec.groups.get(metric, ()))}


def compare_data(checkpoint: Path, data: dict[str, Any]) -> list[str]:
    """Check that a run can be resumed from a checkpoint on this data.

    Args:
        checkpoint (`Path`): Folder of a complete checkpoint.
        data (`dict`): Result of `describe_data` for the run to resume.

    Returns:
        `list[str]`: Sentences about raw values that were refused before, or about a checkpoint without a record.

    Raises:
        UsageError: If classes, label values or training images are others; the message lists all differences.
    """
    saved = read_json(checkpoint / DATA_FILE)
    if not saved:
        return [f"{checkpoint} has no record of its classes and images, since an older version wrote it."]
    values = _changed_values(saved, data)
    differences = [
        *_other_classes(saved, data),
        *_first([f"{raw} was {old} and is {new}" for raw, old, new in values if old != _REFUSED]),
        *_other_images(saved, data),
    ]
    if differences:
        raise UsageError(
            f"`resume`: {checkpoint} belongs to a run on other data: {'; '.join(differences)}. Restore the data set, "
            "or start a new run from its last model with `model_name_or_path='OUTPUT_DIR/last'`."
        )
    # no image with such a value was trained on, since it would have ended the run
    return _first([f"{raw} was refused and is {new} from here on." for raw, _, new in values])


def describe_change(saved: dict[str, Any], current: dict[str, Any]) -> str:
    """Say how the results of `describe_validation` differ, and what follows for the best score."""
    before, now = saved.get("validation"), current["validation"]
    what = "the classes of the group changed" if before == now else _change_of_images("validation", before, now)
    return f"{what}, so the best score starts anew."


def _other_classes(saved: dict[str, Any], data: dict[str, Any]) -> list[str]:
    before, now = saved["classes"], data["classes"]
    found = [f"{len(before)} classes became {len(now)}"] if len(before) != len(now) else []
    found += [
        f"class {label} was {old!r} and is {new!r}"
        for label, (old, new, old_name, new_name) in enumerate(
            zip(before, now, *comparable_names(before, now), strict=False)
        )
        if old_name != new_name
    ]
    return _first(found)


def _changed_values(saved: dict[str, Any], data: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List the raw values whose meaning changed: (value, what it was, what it is)."""
    before, now = _meanings(saved, saved["classes"]), _meanings(data, data["classes"])
    names, new_names = comparable_names(saved["classes"], data["classes"])
    compared, new_compared = _meanings(saved, names), _meanings(data, new_names)
    return [
        (_described(raw), _meaning(raw, before), _meaning(raw, now))
        for raw in {**compared, **new_compared}
        if _meaning(raw, compared) != _meaning(raw, new_compared)
    ]


def _described(raw: str) -> str:
    return "any unlisted raw value" if raw == _OTHERS else f"the raw value {raw}"


def _meanings(record: dict[str, Any], classes: Sequence[str]) -> dict[str, str]:
    """Map raw values to class names: the number of a class says nothing where their order has changed."""
    meanings = {
        raw: "ignored" if label == IGNORE_INDEX else repr(classes[label])
        for raw, label in record["raw_values"].items()
    }
    return {**meanings, _OTHERS: "ignored" if record["ignores_other_values"] else _REFUSED}


def _meaning(raw: str, meanings: dict[str, str]) -> str:
    return meanings.get(raw, meanings[_OTHERS])


def _other_images(saved: dict[str, Any], data: dict[str, Any]) -> list[str]:
    kinds = {name: (saved.get(name), data.get(name)) for name in (TRAINING, UNLABELED)}
    return [
        _change_of_images(name, before, now)
        for name, (before, now) in kinds.items()
        if before != now and None not in (before, now)
    ]


def _change_of_images(name: str, before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    if before is None or now is None:
        return f"the {name} set was {'a stream' if before is None else 'read whole'} and is not anymore"
    if before["images"] != now["images"]:
        return f"the {name} set had {before['images']} images and has {now['images']}"
    return f"the {name} set has {now['images']} images as before, but others or in another order"


def _first(found: list[str]) -> list[str]:
    more = len(found) - _DIFFERENCES_SHOWN
    return [*found[:_DIFFERENCES_SHOWN], *([f"{more} more such differences"] if more > 0 else [])]
