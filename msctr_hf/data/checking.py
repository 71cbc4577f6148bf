"""Check of a data set, which reads every file once, counts its contents and collects broken files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..errors import UsageError
from ..progress import progress
from .channel_statistics import ChannelStatistics, other_type
from .channels import rows_of, size_of
from .decoding import Reader, ReadSamples, is_empty
from .file_traits import lines_about, warnings_about_palettes
from .labels import IGNORE_INDEX
from .raw_values import counting, identity_map, train_ids_in
from .specs import DatasetSpec

_DIGITS = 16
_HASHED_ROWS = 1024
_IGNORED_SHOWN = 5


@dataclass
class SplitReport:
    """Result of the check of one split: counts, and reasons why images cannot be used.

    Args:
        images (`int`): Number of images that could be read together with their labels.
        unlabeled (`int`): Number of images of a test split that could be read and have no labels.
        sizes (`Counter`): Number of images of every "width x height".
        pixels (`np.ndarray` of shape `(num_classes,)`, int64): Number of pixels of every class.
        in_images (`np.ndarray` of shape `(num_classes,)`, int64): Number of images in which the class occurs.
        ignored (`int`): Number of ignored pixels.
        broken (`dict[str, str]`): Image id -> sentence that says why the image cannot be used.
        broken_rows (`list[int]`): Positions of these images in the split.
        raw_values (`Counter`): Number of pixels of every raw label value; empty for colors.
        digests (`dict[str, str]`): Digest of every image that could be read -> its id.
        traits (`Counter`): Number of images with every trait of `file_traits`.
        channels (`ChannelStatistics`, *optional*): Statistics of the channels, if their number was given.
    """

    pixels: np.ndarray
    in_images: np.ndarray
    images: int = 0
    unlabeled: int = 0
    ignored: int = 0
    sizes: Counter = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)
    broken_rows: list[int] = field(default_factory=list)
    raw_values: Counter[int] = field(default_factory=Counter)
    digests: dict[str, str] = field(default_factory=dict)
    traits: Counter[str] = field(default_factory=Counter)
    channels: ChannelStatistics | None = None

    def as_dict(self, spec: DatasetSpec) -> dict[str, Any]:
        """Convert to a dict for JSON, with classes by name."""
        return {
            "images": self.images,
            "unlabeled": self.unlabeled,
            "sizes": dict(self.sizes.most_common()),
            "pixels": dict(zip(spec.classes, self.pixels.tolist(), strict=True)),
            "in_images": dict(zip(spec.classes, self.in_images.tolist(), strict=True)),
            "ignored": self.ignored,
            "broken": self.broken,
            "broken_rows": self.broken_rows,
            "raw_values": {str(value): pixels for value, pixels in sorted(self.raw_values.items())},
            "digests": self.digests,
            "traits": dict(self.traits),
            **({} if self.channels is None else {"channels": self.channels.as_dict()}),
        }

    @classmethod
    def from_dict(cls, report: dict[str, Any]) -> SplitReport:
        """Build a report from the result of `as_dict`."""
        return cls(
            pixels=np.array(list(report["pixels"].values())),
            in_images=np.array(list(report["in_images"].values())),
            sizes=Counter(report["sizes"]),
            raw_values=Counter({int(value): pixels for value, pixels in report.get("raw_values", {}).items()}),
            traits=Counter(report.get("traits", {})),
            channels=ChannelStatistics.from_dict(report["channels"]) if "channels" in report else None,
            # an older version wrote only the first three of them
            **{
                name: report[name]
                for name in ("images", "ignored", "broken", "unlabeled", "broken_rows", "digests")
                if name in report
            },
        )


def check_rows(
    rows: Dataset, reader: Reader, num_classes: int, *, num_workers: int, title: str, labels_optional: bool = False
) -> SplitReport:
    """Decode every image and its labels, and collect errors instead of raising them.

    Args:
        rows (`datasets.Dataset`): Undecoded rows {image, label, image_id}.
        reader (`Reader`): Reader that decodes the rows.
        num_classes (`int`): Number of classes.
        num_workers (`int`): Number of worker processes.
        title (`str`): Title of the progress bar.
        labels_optional (`bool`): Whether images may lack labels.
    """
    report = SplitReport(np.zeros(num_classes, dtype=np.int64), np.zeros(num_classes, dtype=np.int64))
    loader = DataLoader(
        _CheckedRows(rows, reader, labels_optional), batch_size=None, num_workers=num_workers, collate_fn=_unchanged
    )
    for number, checked in enumerate(progress(loader, title=title, unit="image")):
        report.raw_values.update(checked.raw_values)
        measured, total = checked.channels, report.channels
        if measured is not None and total is not None and measured.value_type != total.value_type:
            checked.fault = other_type(checked.image_id, measured, next(iter(report.digests.values())), total)
        if checked.fault:
            # ids of a copy may occur twice
            name = checked.image_id if checked.image_id not in report.broken else f"{checked.image_id} (row {number})"
            report.broken[name] = checked.fault
            report.broken_rows.append(number)
            continue
        if measured is not None:
            report.channels = measured if total is None else total + measured
        report.sizes[checked.size] += 1
        report.digests.setdefault(checked.digest, checked.image_id)
        report.traits.update(checked.traits)
        if checked.histogram is None:
            report.unlabeled += 1
            continue
        report.images += 1
        report.pixels += checked.histogram[:num_classes]
        report.in_images += checked.histogram[:num_classes] > 0
        report.ignored += int(checked.histogram[IGNORE_INDEX])
    return report


def report_table(report: SplitReport, spec: DatasetSpec, split: str) -> str:
    """Format a report as lines of text, with counts, sizes, ignored pixels and the share of every class."""
    labeled = int(report.pixels.sum())
    total = labeled + report.ignored
    width = max(len(name) for name in spec.classes)
    share_ignored = 100 * report.ignored / max(1, total)
    unlabeled = f"; {report.unlabeled} more have no labels" if report.unlabeled else ""
    lines = [
        f"{split}: {report.images} images, {describe_sizes(report.sizes)}; {share_ignored:.1f} % of pixels ignored "
        f"({report.ignored:,} of {total:,}{_ignored_values(report, spec)}){unlabeled}",
        f"  {'class':<{width}}  {'pixels':>8}  {'images':>8}",
    ]
    for name, pixels, images in zip(spec.classes, report.pixels, report.in_images, strict=True):
        lines.append(f"  {name:<{width}}  {100 * pixels / max(1, labeled):>6.2f} %  {images:>8}")
    if report.channels is not None:
        lines.append(f"  channels of {report.channels.value_type}, mean ± standard deviation: {report.channels}")
    return "\n".join([*lines, *lines_about(report.traits, split)])


def describe_sizes(sizes: Counter[str]) -> str:
    """Name the most frequent sizes of images with their numbers of images."""
    named = ", ".join(f"{size} ({count})" for size, count in sizes.most_common(3))
    return (named or "none readable") + (f" and {len(sizes) - 3} more" if len(sizes) > 3 else "")


def refuse_train_ids_in(report: SplitReport, spec: DatasetSpec, split: str) -> None:
    """Raise `UsageError` if the label files of a split hold train ids instead of raw values."""
    if reason := train_ids_in(spec, report.raw_values):
        raise UsageError(f"{split}: {reason}")


def refuse_unlabeled(report: SplitReport, spec: DatasetSpec, split: str) -> None:
    """Raise `UsageError` if no pixel of a split has a class, except of test, whose labels may be secret."""
    if report.images and not report.pixels.any() and split != "test":
        raise UsageError(f"{split}: {no_labeled_pixel(spec, report.images, report.raw_values)}")


def no_labeled_pixel(spec: DatasetSpec, images: int, raw_values: Mapping[int, int]) -> str:
    """Say that all pixels of some images are ignored, which raw values they have, and what to do."""
    values = f"; their label values are {sorted(raw_values)[:_IGNORED_SHOWN]}" if raw_values else ""
    more = ", ..." if len(raw_values) > _IGNORED_SHOWN else ""
    hint = (
        f" If they are train ids, pass `id_map` with '{identity_map(len(spec.classes))}'."
        if any(value < len(spec.classes) for value in raw_values)
        and all(value < len(spec.classes) or value == IGNORE_INDEX for value in raw_values)
        else ""
    )
    return (
        f"no pixel of {images} images has a class, since all are ignored{values}{more}. Correct the label values of "
        f"{spec.name} (`label_values` and `ignored` in dataset.yaml, or `id_map`).{hint}"
    )


def warnings_about(reports: Mapping[str, SplitReport], spec: DatasetSpec) -> list[str]:
    """Write sentences about classes that no split, or not train, holds, shared images, and palettes that differ.

    Args:
        reports (`Mapping[str, SplitReport]`): Reports of the splits by name.
        spec (`DatasetSpec`): The data set.
    """
    labeled = {split: report for split, report in reports.items() if report.images}
    warnings = []
    absent = _absent(labeled.values(), spec)
    if labeled and absent:
        warnings.append(f"no image of {_and(labeled)} has a pixel of {_and(absent)}.{_hint(labeled.values(), spec)}")
    if "train" in labeled and len(labeled) > 1:
        missing = [name for name in _absent([labeled["train"]], spec) if name not in absent]
        if missing:
            others = [split for split in labeled if split != "train"]
            warnings.append(f"no image of train has a pixel of {_and(missing)}, but {_and(others)} has.")
    splits = list(reports)
    for position, split in enumerate(splits):
        for other in splits[position + 1 :]:
            warnings += _shared(reports[split].digests, reports[other].digests, split, other)
    return [*warnings, *_palettes(reports, spec)]


def _palettes(reports: Mapping[str, SplitReport], spec: DatasetSpec) -> list[str]:
    classes = {value for value, label in spec.label_values.items() if isinstance(value, int) and label != IGNORE_INDEX}
    return warnings_about_palettes((report.traits for report in reports.values()), classes)


def _absent(reports: Iterable[SplitReport], spec: DatasetSpec) -> list[str]:
    pixels = sum((report.pixels for report in reports), np.zeros(len(spec.classes), dtype=np.int64))
    return [name for name, count in zip(spec.classes, pixels, strict=True) if not count]


def _hint(reports: Iterable[SplitReport], spec: DatasetSpec) -> str:
    """Name the ignored values, one of which may be meant to be the absent class."""
    ignored = sorted({value for report in reports for value in report.raw_values if value not in spec.label_values})
    if not ignored:
        return ""
    shown = ", ".join(map(str, ignored[:_IGNORED_SHOWN])) + (", ..." if len(ignored) > _IGNORED_SHOWN else "")
    return (
        f" Ignored values that occur: {shown}; if one is a class, map it (`label_values` in dataset.yaml, `id_map`)."
    )


def _ignored_values(report: SplitReport, spec: DatasetSpec) -> str:
    """Name the raw values that are ignored, most frequent first."""
    values = [
        value
        for value, _ in report.raw_values.most_common()
        if spec.label_values.get(value, IGNORE_INDEX) == IGNORE_INDEX
    ]
    if not values or not report.ignored:
        return ""
    more = ", ..." if len(values) > _IGNORED_SHOWN else ""
    return f", value{'s' if len(values) > 1 else ''} {', '.join(map(str, values[:_IGNORED_SHOWN]))}{more}"


def _shared(first: Mapping[str, str], second: Mapping[str, str], split: str, other: str) -> list[str]:
    shared = [digest for digest in second if digest in first]
    if not shared:
        return []
    return [
        f"{len(shared)} of {len(second)} images of {other} are in {split} too, such as {second[shared[0]]} "
        f"({first[shared[0]]} there): scores on images of the training set say little about others."
    ]


def _and(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _unchanged(checked: Any) -> Any:
    return checked


@dataclass
class _Checked:
    """Result for one row; `histogram` of train ids is `None` for an image without labels."""

    image_id: str
    fault: str = ""
    size: str = ""
    digest: str = ""
    histogram: np.ndarray | None = None
    raw_values: dict[int, int] = field(default_factory=dict)
    traits: tuple[str, ...] = ()
    channels: ChannelStatistics | None = None


class _CheckedRows(TorchDataset):
    """Data set of rows that are decoded when accessed."""

    def __init__(self, rows: Dataset, reader: Reader, labels_optional: bool):
        self.rows = rows
        self.labels_optional = labels_optional
        self.counts: Counter[int] = Counter()
        self.reader = reader
        if isinstance(reader, ReadSamples):
            self.reader, self.counts = counting(reader.for_check())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> _Checked:
        row = self.rows[index]
        image_id = row["image_id"]
        self.counts.clear()
        try:
            has_label = not self.labels_optional or "label" not in row or not is_empty(row["label"])
            reader: Any = self.reader if has_label else self.reader.images_only()  # type: ignore[attr-defined]
            sample = reader({name: [value] for name, value in row.items()})
        except UsageError as error:
            return _Checked(image_id, str(error), raw_values=dict(self.counts))
        image, (missing,) = sample["image"][0], sample.get("missing", [None])
        width, height = size_of(image)
        return _Checked(
            image_id,
            size=f"{width}x{height}",
            digest=_digest(image),
            histogram=np.asarray(sample["label"][0].histogram(), dtype=np.int64) if has_label else None,
            raw_values=dict(self.counts),
            traits=sample["traits"][0] if "traits" in sample else (),
            channels=ChannelStatistics.of_image(image, missing) if isinstance(image, np.ndarray) else None,
        )


def _digest(image: Image.Image | np.ndarray) -> str:
    """Hash the pixels of an image, by which it is recognized in another split under another name."""
    width, height = size_of(image)
    digest = hashlib.sha256(f"{width}x{height}".encode())
    for top in range(0, height, _HASHED_ROWS):  # a copy of a large image takes hundreds of megabytes
        digest.update(rows_of(image, top, min(top + _HASHED_ROWS, height)).tobytes())
    return digest.hexdigest()[:_DIGITS]
