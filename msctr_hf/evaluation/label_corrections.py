"""Corrected label files of the regions that were accepted in the report of a check of labels."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from datasets import Dataset
from PIL import Image

from ..data.decoding import files_of, rows_of_labels
from ..data.file_source import FileSource, read_corrections
from ..data.images import read_raw_labels
from ..data.labels import IGNORE_INDEX, MAX_RAW_VALUE
from ..data.specs import DatasetSpec
from ..errors import UsageError, as_usage_error
from ..new_folder import refuse_used, written_whole
from .label_checking import REGIONS_FILE, describe_data, read_state
from .label_regions import Region, load_regions
from .prediction import save_labels

CORRECTIONS = "corrections.csv"
_COLUMNS = ("report", "rank", "image", "label", "suggestion")


class Written(NamedTuple):
    """What was written.

    Args:
        regions (`int`): Number of corrected regions.
        images (`int`): Number of label files that have them.
        note (`str`): Sentence about what the files cannot be used for, or an empty text.
    """

    regions: int
    images: int
    note: str


def write_corrected_labels(
    accepted: str | Path,
    report_dir: str | Path,
    folder: str | Path,
    dataset: Dataset,
    spec: DatasetSpec,
    data_dir: str | Path | None = None,
    corrections: str | Path | None = None,
) -> Written:
    """Write label files with the accepted suggestions, and corrections.csv, which `corrections` of a data set reads.

    Only images with an accepted region get a file, under the name of their label file; only the pixels of the region
    change. Where labels are not files, as in a parquet copy, the files are named after the image ids and hold train
    ids, 255 where ignored. Then, and if several images have the id of a corrected one, there is no corrections.csv.

    Args:
        accepted (`str` or `Path`): List that the report downloaded.
        report_dir (`str` or `Path`): Folder of the report.
        folder (`str` or `Path`): Folder for the files, which must be empty or missing.
        dataset (`datasets.Dataset`): Rows {image, label, image_id} that were checked.
        spec (`DatasetSpec`): Their data set.
        data_dir (`str` or `Path`, *optional*): Its folder.
        corrections (`str` or `Path`, *optional*): Corrections with which it was loaded, which are taken over.

    Raises:
        UsageError: If the list is not of the report, the data have changed since the check, or a label file cannot be
            corrected.
    """
    accepted, report_dir, folder = Path(accepted), Path(report_dir), Path(folder)
    refuse_used(folder, "write_labels")
    if read_state(report_dir)["data"] != describe_data(dataset):
        raise UsageError(
            f"`output_dir`: the images or labels are not those that {report_dir} is about; check them anew."
        )
    regions = _accepted_regions(accepted, report_dir, spec.classes)
    by_place: dict[int, list[Region]] = {}
    for region in regions:
        by_place.setdefault(region.place, []).append(region)
    data_dir = None if data_dir is None else Path(data_dir)
    earlier = {} if corrections is None else read_corrections(Path(corrections), data_dir)
    with (
        as_usage_error(OSError, prefix=f"`write_labels`: {folder} cannot be written: "),
        written_whole(folder, "write_labels", last=CORRECTIONS) as partial,
    ):
        names = _write_files(by_place, partial, dataset, spec, data_dir)
        note = _note(names, dataset, spec, data_dir)
        if not note:
            _write_table({**names, **_copied(earlier, names, partial)}, partial / CORRECTIONS)
    return Written(len(regions), len(by_place), note)


def _write_files(
    by_place: Mapping[int, Sequence[Region]], folder: Path, dataset: Dataset, spec: DatasetSpec, data_dir: Path | None
) -> dict[str, Path]:
    """Write the corrected labels of every image; return the names of the files in the folder by image id."""
    files, labels = files_of(dataset, "label"), rows_of_labels(dataset)
    names = {}
    for place, regions in sorted(by_place.items()):
        sample = labels[place]
        train_ids, image_id = np.asarray(sample["label"]), str(sample["image_id"])
        if files is None:
            name, corrected = _name_after_id(image_id), _with_train_ids(train_ids, regions)
        else:
            name = _name_of(files[place], data_dir, image_id)
            corrected = _with_raw_values(files[place], train_ids, regions, spec)
        if (folder / name).exists():
            raise UsageError(
                f"`accepted`: several images with accepted regions have the id {image_id!r}, so that their labels "
                "would be one file; check the splits one at a time, or give the images names of their own."
            )
        _save(corrected, folder / name)
        names[image_id] = name
    return names


def _write_table(names: Mapping[str, Path | None], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image_id", "label"])
        table.writerows([image_id, "" if name is None else name.as_posix()] for image_id, name in names.items())


def _note(names: Mapping[str, Path], dataset: Dataset, spec: DatasetSpec, data_dir: Path | None) -> str:
    """Say why there is no table of the corrections, or nothing if there is one."""
    if files_of(dataset, "label") is None:
        return (
            f"{CORRECTIONS} was not written, since the labels of this data set are not files: the values are train "
            "ids, 255 where ignored; check the folder of which it is a copy to get files that --corrections can read."
        )
    if shared := _shared_ids(names, dataset, spec, data_dir):
        return (
            f"{CORRECTIONS} was not written, since several images have the id {shared[0]!r}: copy the files over "
            "those of the data set, or give the images names of their own."
        )
    return ""


def _accepted_regions(accepted: Path, report_dir: Path, classes: Sequence[str]) -> list[Region]:
    """Read the accepted regions, in the order of their ranks.

    Raises:
        UsageError: If a line is not of the report, or there is none.
    """
    path = report_dir / REGIONS_FILE
    with as_usage_error(
        OSError,
        ValueError,
        prefix=f"`output_dir`: {path} cannot be read; check the labels again with the same settings: ",
    ):
        regions, key = load_regions(path)
    found: dict[int, Region] = {}
    for number, line in enumerate(_read_lines(accepted), start=2):
        rank = line["rank"] or ""
        region = regions[int(rank) - 1] if rank.isdecimal() and 1 <= int(rank) <= len(regions) else None
        described = _described(region, key, classes)
        if region is None or any(line[name] != described[name] for name in described):
            raise UsageError(
                f"`accepted`: line {number} of {accepted}, region {rank} of {line['image']}, is not of the report in "
                f"{report_dir}; download the list from its page."
            )
        found[int(rank)] = region
    if not found:
        raise UsageError(f"`accepted`: {accepted} lists no region; accept some in the report, and download the list.")
    return [found[rank] for rank in sorted(found)]


def _read_lines(accepted: Path) -> list[dict[str, str]]:
    unreadable = (OSError, UnicodeDecodeError, csv.Error)
    with (
        as_usage_error(*unreadable, prefix=f"`accepted`: {accepted} cannot be read: "),
        accepted.open(newline="", encoding="utf-8-sig") as file,
    ):
        reader = csv.DictReader(file)
        columns, lines = reader.fieldnames or [], list(reader)
    if not {*_COLUMNS} <= {*columns}:
        raise UsageError(
            f"`accepted`: {accepted} must have the columns {', '.join(_COLUMNS)}; download it from the report."
        )
    return lines


def _described(region: Region | None, key: str, classes: Sequence[str]) -> dict[str, Any]:
    if region is None:
        return {}
    names = {"label": classes[region.label], "suggestion": classes[region.suggestion]}
    return {"report": key, "image": region.image_id, **names}


def _shared_ids(image_ids: Iterable[str], dataset: Dataset, spec: DatasetSpec, data_dir: Path | None) -> list[str]:
    """Return the ids that several images have, of this data set or of other splits in its folder."""
    known = Counter(str(image_id) for image_id in dataset.with_format(None)["image_id"][:])
    if isinstance(spec.source, FileSource):
        known |= Counter(spec.source.labeled_ids(data_dir, name=spec.name))
    return [image_id for image_id in image_ids if known[image_id] > 1]


def _name_after_id(image_id: str, suffix: str = ".png") -> Path:
    """Return a file name that leads nowhere else, whatever is in an id."""
    return Path(f"{quote(image_id, safe='')}{suffix}")


def _name_of(file: Path, data_dir: Path | None, image_id: str) -> Path:
    """Return the name of a label file below the folder of its data set, ending in .png."""
    if data_dir is None or not file.is_relative_to(data_dir):  # an earlier correction
        return _name_after_id(image_id)
    name = file.relative_to(data_dir)
    return name if name.suffix == ".png" else name.with_name(f"{name.name}.png")


def _with_train_ids(train_ids: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    corrected = train_ids.copy()
    for region in regions:
        corrected[region.part][region.mask] = region.suggestion
    return corrected


def _with_raw_values(file: Path, train_ids: np.ndarray, regions: Sequence[Region], spec: DatasetSpec) -> np.ndarray:
    """Return the raw labels (H, W), or colors (H, W, 3), of a file with the suggestions of some regions.

    Raises:
        UsageError: If the file is turned by an EXIF orientation, or has values that a PNG cannot store.
    """
    raw, mapping = read_raw_labels({"path": str(file)}, spec.mapping.by_color), spec.mapping
    stored = mapping(raw, str(file))
    is_known = train_ids != IGNORE_INDEX  # pixels without data in the image are ignored there only
    if stored.shape != train_ids.shape or (stored[is_known] != train_ids[is_known]).any():
        raise UsageError(
            f"{file} is turned by an EXIF orientation; save labels and image upright, and check them again."
        )
    values = {region.suggestion: _raw_value(spec, region.suggestion) for region in regions}
    if mapping.by_color:
        corrected = raw.copy()
    else:
        smallest, largest = int(raw.min()), max(int(raw.max()), *values.values())
        if smallest < 0 or largest > MAX_RAW_VALUE:
            raise UsageError(f"{file} has the label values {smallest} to {largest}, of which a PNG stores 0 to 65535.")
        corrected = raw.astype(np.uint8 if largest < 256 else np.uint16)
    for region in regions:
        corrected[region.part][region.mask] = values[region.suggestion]
    return corrected


def _raw_value(spec: DatasetSpec, label: int) -> Any:
    """Return the first raw value, or color, that is read as a train id."""
    return next(
        raw for raw, train_id in spec.label_values.items() if train_id == label and raw not in (spec.ignored or ())
    )


def _save(labels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if labels.ndim == 3:
        Image.fromarray(labels).save(path)
    else:
        save_labels(labels, path)


def _copied(earlier: Mapping[str, Path | None], rows: Mapping[str, Path], folder: Path) -> dict[str, Path | None]:
    """Copy the label files of earlier corrections, except of images that were corrected now."""
    names: dict[str, Path | None] = {}
    for image_id, file in earlier.items():
        if image_id in rows:
            continue
        names[image_id] = None if file is None else "earlier" / _name_after_id(image_id, file.suffix)
        if file is not None:
            (folder / "earlier").mkdir(exist_ok=True)
            shutil.copyfile(file, folder / names[image_id])
    return names
