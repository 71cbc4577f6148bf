"""Preparation of a data set: a check, and a copy as parquet files or raw pixels; nothing is uploaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from ..errors import UsageError, as_usage_error
from ..folder_lock import locked
from ..progress import progress
from .channel_statistics import ChannelStatistics
from .checking import SplitReport, check_rows, refuse_train_ids_in, refuse_unlabeled, report_table, warnings_about
from .decoding import Reader, attach, is_empty
from .faults import group_faults
from .file_source import UNDECODED_FEATURES, FileSource
from .file_traits import refuse_mixed_orientations
from .folder_spec import DESCRIPTION as FOLDER_DESCRIPTION
from .folder_spec import FOLDER
from .label_record import LabelRecord, label_differences, label_record
from .loading import index_split, is_read_from_copy
from .parquet_copy import parquet_shards, write_card, write_parquet
from .predecoded import files_of_split, holds_predecoded, predecoded_splits, refuse_other_tiles, write_predecoded
from .saved_source import SPLIT_NAMES, SavedDataset, splits_of_copy
from .specs import DatasetSpec

REPORT_FILE = "report_{split}.json"
_FORMER_KEYS = {"pictures": "images", "in_pictures": "in_images"}  # keys of reports that older versions wrote
_COMPARED = ("images", "pixels", "in_images", "ignored", "broken")  # with a report that does not state its labels


@dataclass
class _Split:
    """Split to check and copy: undecoded rows, their reader, and the report of the check."""

    name: str
    rows: Dataset
    reader: Reader
    without_label: list[Path]
    notes: Sequence[str] = ()
    broken_links: Sequence[Path] = ()
    fingerprint: str = ""
    report: SplitReport | None = None
    was_checked: bool = False

    @property
    def faults(self) -> list[tuple[str, str]]:
        """Names of images that cannot be used, and sentences about them."""
        no_label = [(str(path), f"{path} has no label.") for path in self.without_label]
        no_file = [(str(path), f"{path} is a link that leads to no file.") for path in self.broken_links]
        return [*no_label, *no_file, *self.report.broken.items()]

    @property
    def labels_optional(self) -> bool:
        """Whether images may lack labels, as those of a test server do, whose labels are secret."""
        return self.name == "test"

    def usable_rows(self) -> Dataset:
        """Select the rows that could be read and have labels."""
        broken = set(self.report.broken_rows)
        if not broken and not self.report.unlabeled:
            return self.rows
        # one after the other, since the files of a copy are in the rows
        return self.rows.select([i for i in range(len(self.rows)) if i not in broken and self._has_label(i)])

    def _has_label(self, number: int) -> bool:
        return not self.labels_optional or not is_empty(self.rows[number]["label"])


def prepare(
    spec: DatasetSpec,
    splits: Sequence[str] | None,
    data_dir: Path | None,
    saved: SavedDataset,
    *,
    corrections: Path | None = None,
    output_dir: Path | None = None,
    predecode: bool = False,
    tile_size: Sequence[int] | None = None,
    skip_broken: bool = False,
    num_workers: int = 0,
) -> None:
    """Check splits of a data set, print their contents, and copy them if there is an `output_dir`.

    Args:
        spec (`DatasetSpec`): The data set.
        splits (`Sequence[str]`, *optional*): Names of splits: train, validation, test; by default train, validation,
            and test if the data set has one. Images of test may lack labels; they are checked, but not copied.
        data_dir (`Path`, *optional*): Folder of the data set.
        saved (`SavedDataset`): Location of the copy that is read instead of the official files, if any.
        corrections (`Path`, *optional*): CSV file of images to leave out or to relabel.
        output_dir (`Path`, *optional*): Folder for the copy; by default the data set is only checked.
        predecode (`bool`): Whether to write raw pixels instead of parquet files.
        tile_size (`Sequence[int]`, *optional*): Height and width of the tiles in which raw pixels of larger images are
            stored; by default images are stored whole.
        skip_broken (`bool`): Whether to leave out broken images instead of refusing the data set.
        num_workers (`int`): Number of worker processes of the check.

    Raises:
        UsageError: If the data set cannot be found, has broken images or a split without usable ones, or holds other
            label values than it should, or if another process uses `output_dir`; nothing is written then.
    """
    with locked(output_dir):
        _check_options(output_dir, predecode, skip_broken)
        if tile_size is not None and not predecode:
            raise UsageError("`tile_size` is how raw pixels are stored; add `predecode`, or leave `tile_size` out.")
        if predecode and spec.source.channels is not None:
            raise UsageError("`predecode` writes RGB images of 8 bits; leave it or `num_channels` out.")
        names = dict.fromkeys(splits or _existing_splits(spec, data_dir, saved))
        found = [_find(spec, split, data_dir, saved, corrections) for split in names]
        if output_dir is not None:
            _refuse_other_labels(spec, output_dir)
            if predecode:
                refuse_other_tiles(output_dir, tile_size)
            if data_dir is not None and saved.name is None and holds_predecoded(data_dir):
                raise UsageError(
                    f"`data_dir`: {data_dir} is a pre-decoded copy; make another copy from the original files."
                )
        for note in dict.fromkeys(note for split in found for note in split.notes):
            print(f"warning: {note}")
        for split in found:
            _check(split, spec, output_dir, num_workers)
            print(report_table(split.report, spec, split.name))
        reports = {split.name: split.report for split in found}
        # splits that share files share their faults
        faults = list(dict.fromkeys(fault for split in found for fault in split.faults))
        for sentence in group_faults(faults):
            print(f"broken: {sentence}")
        for warning in warnings_about(reports, spec):
            print(f"warning: {warning}")
        for name, report in reports.items():
            refuse_train_ids_in(report, spec, name)
        if faults and not skip_broken:
            raise UsageError(
                f"{len(faults)} images of {spec.in_words} cannot be used (see above); repair them, or leave them "
                "out of a copy with `skip_broken` and `output_dir`."
            )
        for split in found:
            if not split.report.images and not split.report.unlabeled:
                count = len(split.faults)
                raise UsageError(
                    f"No image of {split.name} can be used: {count or 'none'} {'are broken' if count else 'is left'}."
                )
            refuse_unlabeled(split.report, spec, split.name)
        refuse_mixed_orientations({name: report.traits for name, report in reports.items()})
        if output_dir is not None:
            _convert(spec, found, data_dir, output_dir, predecode, tile_size)


def _check_options(output_dir: Path | None, predecode: bool, skip_broken: bool) -> None:
    for name, given in (("predecode", predecode), ("skip_broken", skip_broken)):
        if given and output_dir is None:
            raise UsageError(f"`{name}` concerns a copy; add `output_dir`, or leave `{name}` out to check only.")
    _check_output_dir(output_dir)


def channels_of_check(folder: Path, split: str) -> ChannelStatistics | None:
    """Read the statistics of the channels of a split from the report of the check that wrote a copy, if there is one.

    Raises:
        UsageError: If the report cannot be read.
    """
    path = folder / REPORT_FILE.format(split=split)
    return SplitReport.from_dict(_read_report(path)).channels if path.is_file() else None


def _existing_splits(spec: DatasetSpec, data_dir: Path | None, saved: SavedDataset) -> list[str]:
    """List train, validation, and test if the data set has it; of a copy with classes of its own, what it has."""
    if is_read_from_copy(spec, data_dir, saved):
        if spec.name == FOLDER and (own := splits_of_copy(saved, data_dir)):
            return own
        has_test = "test" in splits_of_copy(saved, data_dir)
    elif data_dir is not None and holds_predecoded(data_dir):
        has_test = "test" in predecoded_splits(data_dir)
    else:
        has_test = isinstance(spec.source, FileSource) and spec.source.has_split("test", data_dir)
        has_test |= spec.name == FOLDER and "test" in spec.source.layouts[0]  # whose folder must exist
    return ["train", "validation", *(["test"] if has_test else [])]


def _find(
    spec: DatasetSpec, split: str, data_dir: Path | None, saved: SavedDataset, corrections: Path | None
) -> _Split:
    if not isinstance(spec.source, FileSource):
        raise UsageError(f"{spec.name} is drawn on demand; there is nothing to prepare.")
    if saved.streaming:
        raise UsageError("`streaming`: a copy is made from files on this disk; leave `streaming` out.")
    if is_read_from_copy(spec, data_dir, saved) or (data_dir is not None and holds_predecoded(data_dir)):
        rows, reader = index_split(spec, split, data_dir, saved, corrections, with_empty_cells=True)
        return _Split(split, rows, reader, without_label=[])
    is_test = split == "test"
    pairs = spec.source.find(split, data_dir, name=spec.name, where_to_get=spec.where_to_get, labels_optional=is_test)
    if corrections is not None:
        spec.source.check_corrections(corrections, data_dir, name=spec.name)
    rows = spec.source.rows(pairs, data_dir, corrections)
    if is_test and pairs.without_label:
        rows = concatenate_datasets([rows, _unlabeled_rows(pairs.without_label, data_dir)])
    without_label = [] if is_test else pairs.without_label
    notes = pairs.notes(split, of_check=True)
    return _Split(split, rows, spec.reader(), without_label, notes, pairs.broken_links)


def _unlabeled_rows(images: Sequence[Path], data_dir: Path) -> Dataset:
    columns = {
        "image": list(map(str, images)),
        "label": [None] * len(images),
        "image_id": [path.relative_to(data_dir).with_suffix("").as_posix() for path in images],
    }
    return Dataset.from_dict(columns, features=UNDECODED_FEATURES)


def _check(split: _Split, spec: DatasetSpec, output_dir: Path | None, num_workers: int) -> None:
    """Read the report of an earlier check of the same files and labels, or check the split."""
    former: dict[str, Any] | None = None
    if output_dir is not None:
        split.fingerprint = fingerprint(split.rows)
        former = _report_of_same_files(split.name, split.fingerprint, output_dir)
    if former is not None and "labels" in former and _measured_channels(former, spec):
        split.report, split.was_checked = SplitReport.from_dict(former), True
        return
    split.report = check_rows(
        split.rows,
        split.reader,
        len(spec.classes),
        num_workers=num_workers,
        title=f"checking {split.name}",
        labels_optional=split.labels_optional,
    )
    if former is not None:
        # a report of an older version does not state its label values, but other values would give other counts
        now = split.report.as_dict(spec)
        if any(now[key] != former[key] for key in _COMPARED):
            raise UsageError(
                f"`output_dir`: {output_dir} was made with other label values of {split.name}; choose another folder."
            )
        split.was_checked = True


def _measured_channels(report: dict[str, Any], spec: DatasetSpec) -> bool:
    """Return whether an earlier report has the statistics of the channels that are asked for, if any are."""
    channels = spec.source.channels
    return channels is None or len(report.get("channels", {}).get("means", ())) == channels.count


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
    spec: DatasetSpec,
    splits: Sequence[_Split],
    data_dir: Path | None,
    output_dir: Path,
    predecode: bool,
    tile_size: Sequence[int] | None,
) -> None:
    for split in splits:
        if split.report.unlabeled:
            print(f"not copied: {split.report.unlabeled} images of {split.name}, which have no labels.")
    splits = [split for split in splits if split.report.images]
    for split in splits:
        if not split.was_checked:
            _remove_files(split.name, output_dir)  # of other files or label values, whose report someone removed
        save_report(spec, split.report, split.name, split.fingerprint, output_dir)
    copy_description(data_dir, output_dir)
    # a pre-decoded copy may be read with the setting that replaced the label values, or without it
    records = [label_record(each) for each in (spec, spec.described) if each is not None]
    for split in splits:
        rows = split.usable_rows()
        if predecode:
            dataset = attach(rows, split.reader)
            written = write_predecoded(
                dataset,
                split.name,
                output_dir,
                name=spec.name,
                classes=spec.classes,
                label_records=records,
                tile_size=tile_size,
            )
            with progress(total=len(rows), title=f"decoding {split.name}", unit="image") as bar:
                for done in written:
                    bar.update(done - bar.n)
        else:
            write_parquet(rows, split.name, output_dir)
    if not predecode:
        write_card(spec, _all_reports(output_dir), output_dir)
    same = f", with the same `{spec.values_from}`" if spec.values_from and not predecode else ""
    count = sum(len(split.usable_rows()) for split in splits)
    print(f"{count} images are in {output_dir}; use it as `data_dir`{same}.")


def _remove_files(split: str, output_dir: Path) -> None:
    """Remove what an earlier conversion wrote for a split."""
    for path in (*files_of_split(split, output_dir), *parquet_shards(split, output_dir)):
        path.unlink(missing_ok=True)


def fingerprint(rows: Dataset) -> str:
    """Hash the ids of images, and the contents of embedded files or the sizes and modification times of others.

    A resumed conversion recognizes the files by it.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row["image_id"].encode())
        for file in (row["image"], row["label"]):
            digest.update(_identity(file))
    return digest.hexdigest()[:16]


def _identity(file: dict[str, Any] | None) -> bytes:
    if is_empty(file):
        return b"empty"
    if file["bytes"]:
        return hashlib.sha256(file["bytes"]).digest()
    try:
        status = Path(file["path"]).stat()
    except OSError:  # the check reports it
        return f"{file['path']} is missing".encode()
    return f"{file['path']} {status.st_size} {status.st_mtime_ns}".encode()


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
    entries = {"fingerprint": digest, "labels": label_record(spec), **report.as_dict(spec)}
    path.write_text(json.dumps(entries, indent=2), encoding="utf-8")


def _all_reports(folder: Path) -> dict[str, SplitReport]:
    """Read the reports of all splits in a folder, including those that were converted before."""
    return {split: SplitReport.from_dict(_read_report(path)) for split, path in _report_files(folder).items()}


def _report_files(folder: Path) -> dict[str, Path]:
    paths = {split: folder / REPORT_FILE.format(split=split) for split in SPLIT_NAMES}
    return {split: path for split, path in paths.items() if path.is_file()}


def _read_report(path: Path) -> dict[str, Any]:
    with as_usage_error(OSError, ValueError, prefix=f"{path} cannot be read: "):
        report = json.loads(path.read_text(encoding="utf-8"))
    return {_FORMER_KEYS.get(key, key): value for key, value in report.items()}


def _report_of_same_files(split: str, digest: str, folder: Path) -> dict[str, Any] | None:
    """Read the report of an earlier check of exactly these files; return `None` if there was none.

    Raises:
        UsageError: If the folder was made from other files.
    """
    path = folder / REPORT_FILE.format(split=split)
    if not path.is_file():
        return None
    report = _read_report(path)
    if report["fingerprint"] != digest:
        raise UsageError(
            f"`output_dir`: {folder} was made from other files of {split}, or with other `corrections`; choose "
            "another folder."
        )
    return report


def _refuse_other_labels(spec: DatasetSpec, folder: Path) -> None:
    """Refuse a folder with a split that was converted with other classes or label values.

    Raises:
        UsageError: The message names the setting.
    """
    now = label_record(spec)
    for path in _report_files(folder).values():
        before: LabelRecord | None = _read_report(path).get("labels")
        if before is not None and (differences := label_differences(before, now)):
            raise UsageError(
                f"`output_dir`: {folder} was made with other labels: {differences}; choose another folder."
            )
