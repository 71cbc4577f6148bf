"""Preparation of a data set: a check, and a copy as parquet files or raw pixels; nothing is uploaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..errors import UsageError, as_usage_error
from ..progress import progress
from .checking import SplitReport, check_rows, report_table
from .decoding import Reader, attach
from .file_source import FileSource
from .file_traits import refuse_mixed_orientations
from .folder_spec import DESCRIPTION as FOLDER_DESCRIPTION
from .loading import index_split
from .parquet_copy import write_card, write_parquet
from .predecoded import write_predecoded
from .saved_source import SPLIT_NAMES, SavedDataset, is_a_copy
from .specs import DatasetSpec

REPORT_FILE = "report_{split}.json"
_FORMER_KEYS = {"pictures": "images", "in_pictures": "in_images"}  # keys of reports that older versions wrote


@dataclass
class _Split:
    """Split to check and copy: undecoded rows, their reader, and the report of the check."""

    name: str
    rows: Dataset
    reader: Reader
    without_label: list[Path]
    fingerprint: str = ""
    report: SplitReport | None = None

    @property
    def faults(self) -> list[str]:
        """Sentences about images that cannot be used, one per image."""
        return [f"{path} has no label." for path in self.without_label] + list(self.report.broken.values())

    def usable_rows(self) -> Dataset:
        """Select the rows that could be read."""
        broken = self.report.broken
        if not broken:
            return self.rows
        return self.rows.select([i for i, image_id in enumerate(self.rows["image_id"]) if image_id not in broken])


def prepare(
    spec: DatasetSpec,
    splits: Sequence[str],
    data_dir: Path | None,
    saved: SavedDataset,
    *,
    corrections: Path | None = None,
    output_dir: Path | None = None,
    predecode: bool = False,
    skip_broken: bool = False,
    num_workers: int = 0,
) -> None:
    """Check splits of a data set, print their contents, and copy them if there is an `output_dir`.

    Args:
        spec (`DatasetSpec`): The data set.
        splits (`Sequence[str]`): Names of splits: train, validation, test.
        data_dir (`Path`, *optional*): Folder of the data set.
        saved (`SavedDataset`): Location of the copy that is read instead of the official files, if any.
        corrections (`Path`, *optional*): CSV file of images to leave out or to relabel.
        output_dir (`Path`, *optional*): Folder for the copy; by default the data set is only checked.
        predecode (`bool`): Whether to write raw pixels instead of parquet files.
        skip_broken (`bool`): Whether to leave out broken images instead of refusing the data set.
        num_workers (`int`): Number of worker processes of the check.

    Raises:
        UsageError: If the data set cannot be found or has broken images; nothing is written then.
    """
    _check_output_dir(output_dir)
    found = [_find(spec, split, data_dir, saved, corrections) for split in splits]
    for split in found:
        if output_dir is not None:
            split.fingerprint = fingerprint(split.rows)
            split.report = saved_report(split.name, split.fingerprint, output_dir)
        if split.report is None:
            split.report = check_rows(
                split.rows, split.reader, len(spec.classes), num_workers=num_workers, title=f"checking {split.name}"
            )
        print(report_table(split.report, spec, split.name))
    faults = [fault for split in found for fault in split.faults]
    for fault in faults:
        print(f"broken: {fault}")
    if faults and not skip_broken:
        raise UsageError(
            f"{len(faults)} images of {spec.name} cannot be used (listed above); repair them, or leave them out with "
            "`skip_broken`."
        )
    refuse_mixed_orientations({split.name: split.report.traits for split in found})
    if output_dir is not None:
        _convert(spec, found, data_dir, output_dir, predecode)


def _find(
    spec: DatasetSpec, split: str, data_dir: Path | None, saved: SavedDataset, corrections: Path | None
) -> _Split:
    if not isinstance(spec.source, FileSource):
        raise UsageError(f"{spec.name} is drawn on demand; there is nothing to prepare.")
    if saved.streaming:
        raise UsageError("`streaming`: a copy is made from files on this disk; leave `streaming` out.")
    if is_a_copy(saved, data_dir):
        return _Split(split, *index_split(spec, split, data_dir, saved, corrections), without_label=[])
    pairs = spec.source.find(split, data_dir, name=spec.name, where_to_get=spec.where_to_get)
    for path in pairs.without_image:
        print(f"not used: {path} has no image.")
    rows = spec.source.rows(pairs, data_dir, corrections)
    return _Split(split, rows, spec.reader(), pairs.without_label)


def _check_output_dir(output_dir: Path | None) -> None:
    """Refuse a folder that contains anything but an earlier conversion."""
    if output_dir is None or not output_dir.exists():
        return
    if not output_dir.is_dir():
        raise UsageError(f"`output_dir`: {output_dir} is a file.")
    if any(output_dir.iterdir()) and not any(output_dir.glob(REPORT_FILE.format(split="*"))):
        raise UsageError(
            f"`output_dir`: {output_dir} is not empty and does not hold an earlier conversion; choose another folder."
        )


def _convert(
    spec: DatasetSpec, splits: Sequence[_Split], data_dir: Path | None, output_dir: Path, predecode: bool
) -> None:
    for split in splits:
        save_report(spec, split.report, split.name, split.fingerprint, output_dir)
    copy_description(data_dir, output_dir)
    for split in splits:
        rows = split.usable_rows()
        if predecode:
            dataset = attach(rows, split.reader)
            written = write_predecoded(dataset, split.name, output_dir, name=spec.name, classes=spec.classes)
            with progress(total=len(rows), title=f"decoding {split.name}", unit="image") as bar:
                for done in written:
                    bar.update(done - bar.n)
        else:
            write_parquet(rows, split.name, output_dir)
    if not predecode:
        write_card(spec, _all_reports(output_dir), output_dir)
    print(f"{sum(len(split.usable_rows()) for split in splits)} images are in {output_dir}; use it as `data_dir`.")


def fingerprint(rows: Dataset) -> str:
    """Hash the ids, sizes and modification times of files, so that a resumed conversion recognizes them."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row["image_id"].encode())
        for file in (row["image"], row["label"]):
            if file["bytes"]:
                digest.update(str(len(file["bytes"])).encode())
            else:
                status = Path(file["path"]).stat()
                digest.update(f"{file['path']} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def copy_description(spec_folder: Path | None, folder: Path) -> None:
    """Copy the `dataset.yaml` of a data set, if it has one."""
    if spec_folder is not None and (spec_folder / FOLDER_DESCRIPTION).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(spec_folder / FOLDER_DESCRIPTION, folder / FOLDER_DESCRIPTION)


def save_report(spec: DatasetSpec, report: SplitReport, split: str, digest: str, folder: Path) -> None:
    """Write the report of a check, so that a resumed conversion does not repeat the check.

    `digest` is the `fingerprint` of the files that were checked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_FILE.format(split=split)
    path.write_text(json.dumps({"fingerprint": digest, **report.as_dict(spec)}, indent=2))


def _all_reports(folder: Path) -> dict[str, SplitReport]:
    """Read the reports of all splits in a folder, including those that were converted before."""
    paths = {split: folder / REPORT_FILE.format(split=split) for split in SPLIT_NAMES}
    return {split: SplitReport.from_dict(_read_report(path)) for split, path in paths.items() if path.is_file()}


def _read_report(path: Path) -> dict[str, Any]:
    with as_usage_error(OSError, ValueError, prefix=f"{path} cannot be read: "):
        report = json.loads(path.read_text())
    return {_FORMER_KEYS.get(key, key): value for key, value in report.items()}


def saved_report(split: str, digest: str, folder: Path) -> SplitReport | None:
    """Read the report of an earlier check of exactly these files; return `None` if there was none.

    Raises:
        UsageError: If the folder was made from other files.
    """
    path = folder / REPORT_FILE.format(split=split)
    if not path.is_file():
        return None
    report = _read_report(path)
    if report["fingerprint"] != digest:
        raise UsageError(f"`output_dir`: {folder} was made from other files of {split}; choose another folder.")
    return SplitReport.from_dict(report)
