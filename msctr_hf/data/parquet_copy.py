"""Copies of data sets as parquet files that contain the images, with a data card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from ..progress import progress
from .channels import count_of
from .checking import SplitReport
from .specs import DatasetSpec

SHARD_BYTES = 500 * 2**20
ROWS_PER_GROUP = 64
_FEATURES = Features({"image": ImageFeature(), "label": ImageFeature(), "image_id": Value("string")})


def write_parquet(rows: Dataset, split: str, folder: Path) -> None:
    """Write a split as parquet shards with embedded, unchanged image and label files; keep existing shards.

    Args:
        rows (`datasets.Dataset`): Undecoded rows {image, label, image_id}.
        split (`str`): Name of the split.
        folder (`Path`): Folder in which `data/SPLIT-NNNNN-of-NNNNN.parquet` is written.
    """
    target = folder / "data"
    target.mkdir(parents=True, exist_ok=True)
    num_shards = max(1, math.ceil(_num_bytes(rows) / SHARD_BYTES))
    with progress(total=len(rows), title=f"writing {split}", unit="image") as bar:
        for number in range(num_shards):
            shard = rows.shard(num_shards, number, contiguous=True)
            path = target / f"{split}-{number:05d}-of-{num_shards:05d}.parquet"
            if not path.exists():
                _write_shard(shard, path)
            bar.update(len(shard))


def parquet_shards(split: str, folder: Path) -> list[Path]:
    """List the parquet shards of a split, complete or not."""
    return sorted((folder / "data").glob(f"{split}-*-of-*.p*"))


def write_card(spec: DatasetSpec, reports: Mapping[str, SplitReport], folder: Path) -> None:
    """Write the data card, README.md, with source, classes, splits, terms, and the use of the copy."""
    labeled = {split: max(1, int(report.pixels.sum())) for split, report in reports.items()}
    head = " | ".join(f"{split}: % of pixels | images" for split in reports)
    lines = [
        f"| id | class | {head} |",
        "|" + "---|" * (2 + 2 * len(reports)),
    ]
    for label, name in enumerate(spec.classes):
        cells = [
            f"{100 * report.pixels[label] / labeled[split]:.2f} | {report.in_images[label]}"
            for split, report in reports.items()
        ]
        lines.append(f"| {label} | {name} | {' | '.join(cells)} |")
    splits = "\n".join(
        f"- {split}: {report.images} images, {', '.join(size for size, _ in report.sizes.most_common(3))} pixels, "
        f"{100 * report.ignored / (report.ignored + labeled[split]):.1f} % ignored"
        for split, report in reports.items()
    )
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in reports)
    title = spec.title or spec.name
    card = _CARD.format(
        name=spec.name, title=title, quoted_title=json.dumps(title, ensure_ascii=False),
        files=files, splits=splits, table="\n".join(lines), license=spec.license or "not stated",
        homepage=spec.homepage or "not stated", mapping=_describe_mapping(spec), flags=_flags(spec),
        viewer=_sentence_about_the_viewer(spec),
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")


def _num_bytes(rows: Dataset) -> int:
    files = (file for row in rows for file in (row["image"], row["label"]))
    return sum(len(file["bytes"]) if file["bytes"] else Path(file["path"]).stat().st_size for file in files)


def _write_shard(rows: Dataset, path: Path) -> None:
    """Write a shard under a temporary name, so that a file with its final name is always complete."""
    partial = path.with_suffix(".partial")
    schema = _FEATURES.arrow_schema
    with pq.ParquetWriter(partial, schema) as writer:
        for start in range(0, len(rows), ROWS_PER_GROUP):
            group = [rows[index] for index in range(start, min(start + ROWS_PER_GROUP, len(rows)))]
            columns = {name: [_embed(row[name]) for row in group] for name in ("image", "label")}
            columns["image_id"] = [row["image_id"] for row in group]
            writer.write_table(pa.table(columns, schema=schema))
    partial.rename(path)


def _embed(file: dict) -> dict:
    data = file["bytes"] or Path(file["path"]).read_bytes()
    return {"bytes": data, "path": Path(file["path"]).name if file["path"] else None}


def _describe_mapping(spec: DatasetSpec) -> str:
    by_label: dict[int, list[str]] = {}
    for raw, label in spec.label_values.items():
        by_label.setdefault(label, []).append(str(raw))
    return "; ".join(f"{label} from {', '.join(raws)}" for label, raws in sorted(by_label.items()))


def _flags(spec: DatasetSpec) -> str:
    """Write the flags that read the shards where the description of the data set does not: label values, channels."""
    channels = "" if spec.source.channels is None else f" --num_channels {spec.source.channels.count}"
    if spec.values_from == "id_map":
        return f" --id_map '{dict(spec.label_values)}'{channels}"
    return (f" --{spec.values_from}" if spec.values_from else "") + channels


def _sentence_about_the_viewer(spec: DatasetSpec) -> str:
    channels = spec.source.channels
    if channels is None or channels.count in (1, 3):
        return ""
    return f" Images have {count_of(channels.count)}, which the viewer of the Hub cannot show."


_CARD = """---
pretty_name: {quoted_title}
license: other
task_categories:
- image-segmentation
configs:
- config_name: default
  data_files:
{files}
---
# {title}

Image and label files of {title}, embedded unchanged, in parquet shards written by `msctr prepare` of
`msctr_hf`. Columns: `image`, `label` (raw values), `image_id`.{viewer}

{splits}

**Terms: {license}.** Source: {homepage}. A copy is for your own machines; publish it only if these terms allow it.

    msctr train --dataset {name} --data_dir THIS_FOLDER{flags}

Train ids from raw label values: {mapping}.

{table}
"""
