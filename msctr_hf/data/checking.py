"""Check of a data set, which reads every file once, counts its contents and collects broken files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..errors import UsageError
from ..progress import progress
from .decoding import Reader, ReadSamples
from .file_traits import lines_about
from .labels import IGNORE_INDEX
from .specs import DatasetSpec


@dataclass
class SplitReport:
    """Result of the check of one split: counts, and reasons why images cannot be used.

    Args:
        images (`int`): Number of images that could be read together with their labels.
        sizes (`Counter`): Number of images of every "width x height".
        pixels (`np.ndarray` of shape `(num_classes,)`, int64): Number of pixels of every class.
        in_images (`np.ndarray` of shape `(num_classes,)`, int64): Number of images in which the class occurs.
        ignored (`int`): Number of ignored pixels.
        broken (`dict[str, str]`): Image id -> sentence that says why the image cannot be used.
        traits (`Counter`): Number of images with every trait of `file_traits`.
    """

    pixels: np.ndarray
    in_images: np.ndarray
    images: int = 0
    ignored: int = 0
    sizes: Counter = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)
    traits: Counter[str] = field(default_factory=Counter)

    def as_dict(self, spec: DatasetSpec) -> dict[str, Any]:
        """Convert to a dict for JSON, with classes by name."""
        return {
            "images": self.images,
            "sizes": dict(self.sizes.most_common()),
            "pixels": dict(zip(spec.classes, self.pixels.tolist(), strict=True)),
            "in_images": dict(zip(spec.classes, self.in_images.tolist(), strict=True)),
            "ignored": self.ignored,
            "broken": self.broken,
            "traits": dict(self.traits),
        }

    @classmethod
    def from_dict(cls, report: dict[str, Any]) -> SplitReport:
        """Build a report from the result of `as_dict`."""
        return cls(
            pixels=np.array(list(report["pixels"].values())),
            in_images=np.array(list(report["in_images"].values())),
            sizes=Counter(report["sizes"]),
            traits=Counter(report.get("traits", {})),  # which older versions did not write
            **{name: report[name] for name in ("images", "ignored", "broken")},
        )


def check_rows(rows: Dataset, reader: Reader, num_classes: int, *, num_workers: int, title: str) -> SplitReport:
    """Decode every image and its labels, and collect errors instead of raising them.

    Args:
        rows (`datasets.Dataset`): Undecoded rows {image, label, image_id}.
        reader (`Reader`): Reader that decodes the rows.
        num_classes (`int`): Number of classes.
        num_workers (`int`): Number of worker processes.
        title (`str`): Title of the progress bar.
    """
    report = SplitReport(np.zeros(num_classes, dtype=np.int64), np.zeros(num_classes, dtype=np.int64))
    loader = DataLoader(_CheckedRows(rows, reader), batch_size=None, num_workers=num_workers, collate_fn=_unchanged)
    for image_id, size, histogram, fault, traits in progress(loader, title=title, unit="image"):
        if fault:
            report.broken[image_id] = fault
            continue
        report.images += 1
        report.sizes[size] += 1
        report.traits.update(traits)
        report.pixels += histogram[:num_classes]
        report.in_images += histogram[:num_classes] > 0
        report.ignored += int(histogram[IGNORE_INDEX])
    return report


def report_table(report: SplitReport, spec: DatasetSpec, split: str) -> str:
    """Format a report as lines of text, with counts, sizes and the share of every class."""
    labeled = max(1, int(report.pixels.sum()))
    share_ignored = report.ignored / max(1, labeled + report.ignored)
    sizes = ", ".join(f"{size} ({count})" for size, count in report.sizes.most_common(3))
    sizes += f" and {len(report.sizes) - 3} more" if len(report.sizes) > 3 else ""
    width = max(len(name) for name in spec.classes)
    lines = [
        f"{split}: {report.images} images, {sizes or 'none readable'}; {100 * share_ignored:.1f} % of pixels ignored",
        f"  {'class':<{width}}  {'pixels':>8}  {'images':>8}",
    ]
    for name, pixels, images in zip(spec.classes, report.pixels, report.in_images, strict=True):
        lines.append(f"  {name:<{width}}  {100 * pixels / labeled:>6.2f} %  {images:>8}")
    return "\n".join([*lines, *lines_about(report.traits, split)])


def _unchanged(checked: Any) -> Any:
    return checked


class _CheckedRows(TorchDataset):
    """Data set of rows that are decoded when accessed: (image id, size, histogram of train ids, error, traits)."""

    def __init__(self, rows: Dataset, reader: Reader):
        self.rows = rows
        self.reader = reader.for_check() if isinstance(reader, ReadSamples) else reader

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[str, str, np.ndarray, str, tuple[str, ...]]:
        row = self.rows[index]
        image_id = row["image_id"]
        try:
            sample = self.reader({name: [value] for name, value in row.items()})
        except UsageError as error:
            return image_id, "", np.zeros(256, dtype=np.int64), str(error), ()
        label = sample["label"][0]
        histogram = np.asarray(label.histogram(), dtype=np.int64)
        traits = sample["traits"][0] if "traits" in sample else ()
        return image_id, f"{label.width}x{label.height}", histogram, "", traits
