"""Loading of data sets by name, from their official files, a copy on this disk, or the Hub."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, concatenate_datasets

from ..errors import UsageError
from .channels import Channels
from .decoding import Reader, ReadSamples, attach
from .file_source import FileSource
from .folder_spec import FOLDER, read_folder_spec
from .label_record import label_record
from .labels import IGNORE_INDEX, MAX_RAW_VALUE, Color, is_raw_value
from .nearest_names import nearest_name
from .predecoded import holds_predecoded, index_predecoded
from .raw_values import refuse_train_ids
from .saved_source import SavedDataset, index_copy, is_a_copy, was_saved_to_disk
from .specs import DATASETS, DatasetSpec


def get_dataset_spec(name: str, data_dir: str | Path | None = None) -> DatasetSpec:
    """Look up the description of a data set: classes, colors, label values, files.

    Args:
        name (`str`): A named data set, or `"folder"` for one that `data_dir/dataset.yaml` describes.
        data_dir (`str` or `Path`, *optional*): Folder of the data set.

    Raises:
        UsageError: If the name is unknown or `dataset.yaml` is not valid.
    """
    if name == FOLDER:
        return read_folder_spec(data_dir)
    if name not in DATASETS:
        names = sorted([*DATASETS, FOLDER])
        close = nearest_name(name, names)
        hint = f" Did you mean {close!r}?" if close else ""
        raise UsageError(f"The data set {name!r} is unknown; choose from {', '.join(names)}.{hint}")
    return DATASETS[name]


def load_segmentation_dataset(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    *,
    dataset_name: str | None = None,
    revision: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    id_map: Mapping[int, int] | None = None,
    reduce_zero_label: bool = False,
    streaming: bool = False,
    corrections: str | Path | None = None,
    num_channels: int | None = None,
    value_type: str | None = None,
    with_labels: bool = True,
) -> Dataset | IterableDataset:
    """Load one split of a data set, or several as one.

    Args:
        name (`str`): A named data set, or `"folder"`.
        split (`str`): train, validation or test, or several joined by `+`.
        data_dir (`str` or `Path`, *optional*):
            Folder of the data set: its official layout, parquet files, the result of `save_to_disk`, or a pre-decoded
            copy; not needed for `synthetic_scenes`.
        dataset_name (`str`, *optional*): Hub id, USER/NAME or USER/NAME:CONFIGURATION, or folder of parquet files, to
            read instead of `data_dir`.
        revision (`str`, *optional*): Branch, tag or commit of the Hub id.
        image_column, label_column (`str`): Columns of a copy with the images and the labels.
        id_map (`Mapping[int, int]`, *optional*): Raw label value -> train id, where a copy differs from the official
            files; every other value is ignored.
        reduce_zero_label (`bool`): Whether raw labels are numbered from 1, and 0 is ignored.
        streaming (`bool`): Whether to read a copy as an `IterableDataset`, without storing it on this disk.
        corrections (`str` or `Path`, *optional*): CSV file with the columns `image_id` and `label`: images to leave
            out (no label), or whose labels are in another file (a path below the folder of the CSV file, or below
            `data_dir`).
        num_channels (`int`, *optional*): Number of channels of the images, 1 to 16, whose values are kept as the files
            store them; RGB of 8 bits by default.
        value_type (`str`, *optional*): With `num_channels`, the type that the values must have: uint8, uint16, int32
            or float32; by default any of them.
        with_labels (`bool`): Whether to read labels. Without them, images need none: `label` is 0 everywhere, and 255
            where an image states that it has no data; `corrections` are not read.

    Returns:
        `datasets.Dataset`: rows with `image` (RGB image; with `num_channels`, an array (H, W, N)), `label` (image of
        mode L: train ids, 255 where ignored) and `image_id`. Files are read, mapped and checked when a row is
        accessed. Change rows after that, as in a collate function: `Dataset.map` would store train ids, which are then
        mapped a second time, and `with_format` and `set_transform` replace what reads the files.

    Raises:
        UsageError: If the data set is unknown or incomplete, or its files hold train ids instead of its label values.
    """
    spec = replace_label_values(get_dataset_spec(name, data_dir), id_map, reduce_zero_label)
    if num_channels is not None:
        spec = replace_channels(spec, Channels(num_channels, value_type))
    folder = Path(data_dir) if data_dir is not None else None
    saved = SavedDataset(dataset_name, revision, image_column, label_column, streaming)
    path = Path(corrections) if corrections is not None else None
    parts = [
        index_split(spec, part.strip(), folder, saved, path, with_labels=with_labels) for part in split.split("+")
    ]
    for rows, reader in parts:
        if with_labels and isinstance(reader, ReadSamples):
            refuse_train_ids(spec, rows, reader, str(dataset_name or data_dir))
    reader = parts[0][1]
    is_checked_by_prepare = isinstance(spec.source, FileSource) and not streaming and value_type is None
    # which reads images without labels only in test
    is_checked_by_prepare &= with_labels or all(part.strip() == "test" for part in split.split("+"))
    if isinstance(reader, ReadSamples) and is_checked_by_prepare:
        given = {
            "dataset": name,
            "data_dir": data_dir,
            "dataset_name": dataset_name,
            "dataset_revision": revision,
            "image_column": None if image_column == "image" else image_column,
            "label_column": None if label_column == "label" else label_column,
            "id_map": None if id_map is None else dict(id_map),
            "reduce_zero_label": "true" if reduce_zero_label else None,
            "corrections": corrections if with_labels else None,
            "num_channels": num_channels,
        }
        reader = replace(reader, advice=f"`{prepare_command(given)}` checks all files.")
    return attach(concatenate_datasets([part for part, _ in parts]) if len(parts) > 1 else parts[0][0], reader)


def prepare_command(given: Mapping[str, Any]) -> str:
    """Write the command that checks every file of a data set; a reader stops at the first one with a fault.

    Args:
        given (`Mapping[str, Any]`): Values of its flags by name; `None` leaves a flag out.
    """
    words = ["msctr", "prepare"]
    for flag, value in given.items():
        if value is not None:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def index_split(
    spec: DatasetSpec,
    split: str,
    data_dir: Path | None,
    saved: SavedDataset,
    corrections: Path | None = None,
    *,
    with_empty_cells: bool = False,
    with_labels: bool = True,
) -> tuple[Dataset | IterableDataset, Reader]:
    """Index one split; return undecoded rows and the reader that decodes them.

    Rows of a copy that lack an image or a label are refused, unless `with_empty_cells`. Without labels, images need
    none.

    Raises:
        UsageError: If the data set is incomplete, or an option does not apply to its source.
    """
    is_predecoded = saved.name is None and data_dir is not None and holds_predecoded(data_dir)
    from_copy = is_read_from_copy(spec, data_dir, saved)
    if not isinstance(spec.source, FileSource) and not is_predecoded:
        _refuse_files(spec, {"data_dir": data_dir, "dataset_name": saved.name, "corrections": corrections})
    if not with_labels:
        corrections = None
    if corrections is not None and (is_predecoded or from_copy):
        raise UsageError("`corrections` apply to the official files; make the copy with them (`msctr prepare`).")
    channels = spec.source.channels
    if is_predecoded and channels is not None:
        raise UsageError(
            f"`num_channels`: {data_dir} is a pre-decoded copy, which holds RGB images of 8 bits; use the original "
            "files or a parquet copy."
        )
    if is_predecoded:
        labels = label_record(spec)
        mapped, reader = index_predecoded(split, data_dir, name=spec.name, classes=spec.classes, labels=labels)
        return mapped, reader if with_labels else reader.unlabeled()
    if from_copy:
        rows = index_copy(saved, split, data_dir, with_empty_cells=with_empty_cells, with_labels=with_labels)
        embedded = ReadSamples(spec.mapping, embedded=True, channels=channels)
        return rows, embedded if with_labels else embedded.unlabeled()
    if saved.streaming:
        raise UsageError("`streaming` reads parquet files or a Hub id; it is not needed for images in folders.")
    if not with_labels:
        return spec.index_images(split, data_dir), spec.reader().unlabeled()
    return spec.index(split, data_dir, corrections), spec.reader()


def is_read_from_copy(spec: DatasetSpec, data_dir: Path | None, saved: SavedDataset) -> bool:
    """Return whether samples come from a copy: not where a folder of your own has images that it describes.

    Such a folder may hold other parquet files, such as outlines or metadata. A copy has the description, too.
    """
    if not isinstance(spec.source, FileSource) or not is_a_copy(saved, data_dir):
        return False
    if spec.name != FOLDER or saved.name is not None or was_saved_to_disk(data_dir):
        return True
    return not any(_has_images(spec, split, data_dir) for split in spec.source.layouts[0])


def _has_images(spec: DatasetSpec, split: str, data_dir: Path | None) -> bool:
    try:
        spec.source.find(split, data_dir, name=spec.name, labels_optional=True)
    except UsageError:
        return False
    return True


def _refuse_files(spec: DatasetSpec, given: Mapping[str, Any]) -> None:
    """Refuse the location of files for a data set that has none, since other images are meant."""
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"`{name}` ({value}): {spec.name} is drawn on demand and reads no files; name the data set that is "
                f"meant, such as `dataset='folder'` for images of your own, or leave `{name}` out."
            )


def replace_channels(spec: DatasetSpec, channels: Channels | None) -> DatasetSpec:
    """Set the channels of the images of a data set; `None` is RGB of 8 bits."""
    return replace(spec, source=replace(spec.source, channels=channels))


def replace_label_values(spec: DatasetSpec, id_map: Mapping[int, int] | None, reduce_zero_label: bool) -> DatasetSpec:
    """Replace the raw label values of a data set, with the arguments of `load_segmentation_dataset`.

    Raises:
        UsageError: If the values do not match the classes.
    """
    if id_map is None and not reduce_zero_label:
        return spec
    num_classes = len(spec.classes)
    values: dict[int | Color, int]
    if reduce_zero_label:
        if id_map is not None:
            raise UsageError("Give `id_map` or `reduce_zero_label`, not both.")
        values = {label + 1: label for label in range(num_classes)}
        return _relabeled(spec, values, frozenset({0, IGNORE_INDEX}), "reduce_zero_label")
    values = {int(raw): int(label) for raw, label in id_map.items()}
    if wrong := [raw for raw in values if not is_raw_value(raw)]:
        raise UsageError(f"`id_map`: raw label values must be from 0 to {MAX_RAW_VALUE}, got {wrong[0]}.")
    if outside := sorted(label for label in values.values() if not 0 <= label < num_classes):
        raise UsageError(f"`id_map`: {outside} are not train ids; {spec.name} has {num_classes} classes.")
    return _relabeled(spec, values, None, "id_map")


def _relabeled(
    spec: DatasetSpec, values: Mapping[int | Color, int], ignored: frozenset[int | Color] | None, setting: str
) -> DatasetSpec:
    return replace(spec, label_values=values, ignored=ignored, values_from=setting, described=spec)
