"""Raw values of label files: their counts, and the recognition of files that already hold train ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from datasets import Dataset, IterableDataset
from PIL import Image

from ..errors import UsageError
from .decoding import ReadSamples
from .folder_spec import FOLDER
from .labels import IGNORE_INDEX, LabelMapping
from .specs import DatasetSpec

SAMPLED_IMAGES = 500
_SAMPLED_PIXELS = 10**8
_STREAMED_IMAGES = 4  # a stream may have to be downloaded
_CHANCE = 0.02  # of the values that are seen, if the files held raw values


@dataclass(frozen=True)
class CountingMapping(LabelMapping):
    """Mapping of raw values to train ids that also counts the raw values, except colors."""

    counts: Counter[int] = field(default_factory=Counter, compare=False)

    def __call__(self, raw: np.ndarray, file: str) -> np.ndarray:
        """Map raw labels as `LabelMapping` does, after counting their pixels."""
        if not self.by_color:
            self.counts.update(_count(raw))
        return super().__call__(raw, file)


def counting(reader: ReadSamples) -> tuple[ReadSamples, Counter[int]]:
    """Return a reader that counts raw values in the returned counter."""
    mapping = CountingMapping(reader.mapping.values, reader.mapping.ignored)
    return replace(reader, mapping=mapping), mapping.counts


def refuse_train_ids(spec: DatasetSpec, rows: Dataset | IterableDataset, reader: ReadSamples, where: str) -> None:
    """Read some labels, and refuse a data set whose files already hold train ids instead of its raw values.

    Args:
        spec (`DatasetSpec`): The data set.
        rows (`datasets.Dataset` or `datasets.IterableDataset`): Undecoded rows {image, label, image_id}.
        reader (`ReadSamples`): Reader that decodes the rows.
        where (`str`): Source of the rows, for the message.

    Raises:
        UsageError: If the files hold train ids; the message names `id_map`.
    """
    if not _can_hold_train_ids(spec):
        return
    reader, counts = counting(replace(reader, with_images=False))
    for row in _some(rows):
        try:
            reader({name: [value] for name, value in row.items()})
        except UsageError:  # reported with the name of its file when the row is used
            continue
        if not _all_train_ids(spec, counts):  # the first image of a correct data set already has other values
            return
        if counts.total() > _SAMPLED_PIXELS:
            break
    if reason := train_ids_in(spec, counts):
        raise UsageError(f"{where}: {reason}")


def train_ids_in(spec: DatasetSpec, counts: Mapping[int, int]) -> str:
    """Say why labels with these raw values already hold train ids; return an empty text if they may be raw values.

    They do if no value lies outside the train ids and 255 although the data set has such raw values, if their mapping
    would lose classes, and if raw values would hardly look like this: most pixels would be ignored, or so many of
    the raw values that are train ids too occur that some of the others should as well.

    Args:
        spec (`DatasetSpec`): The data set.
        counts (`Mapping[int, int]`): Number of pixels of every raw value.
    """
    if not _can_hold_train_ids(spec) or not counts or not _all_train_ids(spec, counts):
        return ""
    train_ids = set(range(len(spec.classes)))
    seen = {*counts} - {IGNORE_INDEX}
    mapping = {value: spec.label_values.get(value, IGNORE_INDEX) for value in seen}
    kept = set(mapping.values()) - {IGNORE_INDEX}
    others = {value for value in spec.label_values if value not in train_ids}
    both = {value for value in spec.label_values if value in train_ids}
    ignored = sum(counts[value] for value, label in mapping.items() if label == IGNORE_INDEX)
    ignored += counts.get(IGNORE_INDEX, 0)
    share_ignored = ignored / sum(counts.values())
    chance = (1 - len(seen & both) / (len(both) + 1)) ** len(others)
    lost = len(seen) - len(kept)
    loses_many = lost >= 3
    is_improbable = (
        (chance < _CHANCE and (loses_many or both <= seen))
        or (share_ignored > 0.5 and loses_many)
        or _has_unofficial_255(spec, counts)
    )
    if not kept or not lost or not is_improbable:
        return ""
    return (
        f"the labels seem to hold train ids already, since their values are all in 0 to {max(train_ids)} or 255; read "
        f"as the label values of {spec.name}, they would leave {len(spec.classes) - len(kept)} of {len(spec.classes)} "
        f"classes empty and {100 * share_ignored:.0f} % of the pixels ignored. Pass `id_map` with "
        f"'{identity_map(len(spec.classes))}', or, if they are label values, with these."
    )


def identity_map(num_classes: int) -> str:
    """Write the `id_map` of files that hold train ids."""
    return "{" + ", ".join(f"{label}: {label}" for label in range(num_classes)) + "}"


def _can_hold_train_ids(spec: DatasetSpec) -> bool:
    """Return whether a data set has raw values that are not train ids, and no setting has replaced them."""
    has_others = any(isinstance(value, int) and value >= len(spec.classes) for value in spec.label_values)
    return has_others and not spec.values_from


def _all_train_ids(spec: DatasetSpec, counts: Mapping[int, int]) -> bool:
    return all(value < len(spec.classes) or value == IGNORE_INDEX for value in counts)


def _has_unofficial_255(spec: DatasetSpec, counts: Mapping[int, int]) -> bool:
    """Return whether ignored pixels have the value 255, which the official files of the data set never have."""
    return spec.name != FOLDER and spec.ignored is not None and {IGNORE_INDEX} & {*counts} - {*spec.ignored} != set()


def _some(rows: Dataset | IterableDataset) -> Iterable[dict]:
    if isinstance(rows, IterableDataset):
        return islice(rows, _STREAMED_IMAGES)
    # in random order, since neighbors show similar scenes
    chosen = np.random.default_rng(0).permutation(len(rows))[:SAMPLED_IMAGES]
    return (rows[int(index)] for index in chosen)


def _count(raw: np.ndarray) -> dict[int, int]:
    if raw.dtype == np.uint8:
        histogram = Image.fromarray(raw).histogram()
        return {value: pixels for value, pixels in enumerate(histogram) if pixels}
    values, pixels = np.unique(raw, return_counts=True)
    return dict(zip(map(int, values), map(int, pixels), strict=True))
