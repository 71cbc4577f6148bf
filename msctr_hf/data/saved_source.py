"""Samples of a copy that `datasets` can open: parquet files, `save_to_disk`, or a repository on the Hub."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    List,
    Value,
    get_dataset_config_names,
    get_dataset_default_config_name,
    get_dataset_split_names,
    load_dataset,
    load_from_disk,
)
from datasets import Image as ImageFeature
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from ..errors import UsageError, as_usage_error, first_line, shorten
from .decoding import is_empty
from .image_files import name_some

_ROWS_AT_A_TIME = 1000
_ROWS_SHOWN = 5
_SHOWN_OF_A_TYPE = 80  # characters
SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}
# no scheme of a URL, and no drive of Windows: what follows them has slashes
_WITH_CONFIGURATION = re.compile(r"((?:[\w.-]+/)?[\w.-]+):([^/\\:]+)")


@dataclass(frozen=True)
class SavedDataset:
    """Location of a copy, and the names of its columns.

    Args:
        name (`str`, *optional*): Hub id, USER/NAME or USER/NAME:CONFIGURATION, or folder of parquet files; `data_dir`
            by default.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        image_column, label_column (`str`): Names of the columns with images and labels.
        streaming (`bool`): Whether to read the copy as a stream, without storing it on this disk.
    """

    name: str | None = None
    revision: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    streaming: bool = False


def repository_and_configuration(name: str) -> tuple[str, str | None]:
    """Split a name on the Hub, USER/NAME:CONFIGURATION; without a configuration, that is `None`."""
    match = _WITH_CONFIGURATION.fullmatch(name)
    return (name, None) if match is None else (match[1], match[2])


def is_a_copy(saved: SavedDataset, data_dir: Path | None) -> bool:
    """Return whether samples come from a copy: a named one, or a folder of `save_to_disk` or of parquet files."""
    if saved.name is not None:
        return True
    return data_dir is not None and (was_saved_to_disk(data_dir) or any(_parquet_files(data_dir)))


def index_copy(
    saved: SavedDataset,
    split: str,
    data_dir: Path | None,
    *,
    with_empty_cells: bool = False,
    with_labels: bool = True,
) -> Dataset | IterableDataset:
    """Index one split of a copy as undecoded rows {image, label, image_id}.

    Args:
        saved (`SavedDataset`): Location of the copy, and the names of its columns.
        split (`str`): train, validation or test.
        data_dir (`Path`, *optional*): Folder of the copy, unless `saved` names another.
        with_empty_cells (`bool`): Whether to keep rows that lack an image or a label instead of refusing the copy.
        with_labels (`bool`): Whether rows have a label; without labels, the copy need not have the column.

    Raises:
        UsageError: If the copy cannot be opened, lacks the split or a column, or has other contents; the message lists
            what it has.
    """
    folder = _folder_of(saved, data_dir)
    dataset = _open_hub(saved, split) if folder is None else _open_folder(folder, split, saved.streaming)
    rows = _with_our_columns(dataset, saved, split, with_labels)
    if not with_empty_cells and isinstance(rows, Dataset):
        _refuse_empty_cells(rows, split)
    return rows


def splits_of_copy(saved: SavedDataset, data_dir: Path | None) -> list[str]:
    """List the splits of a copy by the names that this package uses.

    Raises:
        UsageError: If the copy cannot be opened.
    """
    folder = _folder_of(saved, data_dir)
    if folder is None:
        with _errors_of_hub(saved):
            names = get_dataset_split_names(*repository_and_configuration(saved.name), revision=saved.revision)
    else:
        names = list(_saved_to_disk(folder)) if was_saved_to_disk(folder) else list(_parquet_by_split(folder))
    return [split for split, spellings in SPLIT_NAMES.items() if set(spellings) & set(names)]


def _folder_of(saved: SavedDataset, data_dir: Path | None) -> Path | None:
    """Return the folder of a copy, or `None` if it is on the Hub."""
    folder = Path(saved.name) if saved.name is not None else data_dir
    return folder if folder is not None and folder.is_dir() else None


def was_saved_to_disk(folder: Path) -> bool:
    """Return whether `save_to_disk` of `datasets` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _parquet_files(folder: Path) -> Iterable[Path]:
    """Find the files of a copy except hidden ones; the Hub's converter writes CONFIGURATION/SPLIT/0000.parquet."""
    spellings = [name for names in SPLIT_NAMES.values() for name in names]
    return (
        sorted(folder.glob("[!.]*.parquet"))
        or sorted(folder.glob("[!.]*/[!.]*.parquet"))
        or sorted(path for name in spellings for path in folder.glob(f"[!.]*/{name}/[!.]*.parquet"))
    )


def _parquet_by_split(folder: Path) -> dict[str, list[Path]]:
    """Sort the parquet files of a copy by the names of their splits.

    Raises:
        UsageError: If several configurations have the split.
    """
    files: dict[str, list[Path]] = {}
    for path in _parquet_files(folder):
        stem = path.parent.name if path.parent not in (folder, folder / "data") else path.stem.split("-")[0]
        files.setdefault(stem, []).append(path)
    for name, paths in files.items():
        parents = sorted({str(path.parent) for path in paths})
        if len(parents) > 1:
            raise UsageError(f"{folder} has several folders of {name}: {', '.join(parents)}; name the one above it.")
    return files


def _saved_to_disk(folder: Path) -> DatasetDict:
    with as_usage_error(OSError, ValueError, prefix=f"{folder} cannot be read: "):
        saved = load_from_disk(str(folder))
    # saved without the name of a split, it counts as train and never as the requested split
    return saved if isinstance(saved, DatasetDict) else DatasetDict({str(saved.split or "train"): saved})


def _open_folder(folder: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    if was_saved_to_disk(folder):
        saved = _saved_to_disk(folder)
        dataset = saved[_own_name(split, list(saved), str(folder))]
        return dataset.to_iterable_dataset() if streaming else dataset
    files = _parquet_by_split(folder)
    name = _own_name(split, list(files), str(folder))
    paths = list(map(str, files[name]))
    try:
        with as_usage_error(OSError, ValueError, prefix=f"{folder} cannot be read: "):
            _check_parquet(files[name], split)
            return load_dataset("parquet", data_files={name: paths}, split=name, streaming=streaming)
    except DatasetGenerationError as error:  # which says what happened only in its cause
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise UsageError(f"{folder} cannot be read: {first_line(cause)}") from error


def _open_hub(saved: SavedDataset, split: str) -> Dataset | IterableDataset:
    location = repository_and_configuration(str(saved.name))
    with _errors_of_hub(saved):
        names = get_dataset_split_names(*location, revision=saved.revision)
        own = _own_name(split, names, str(saved.name))
        return load_dataset(*location, split=own, revision=saved.revision, streaming=saved.streaming)


@contextmanager
def _errors_of_hub(saved: SavedDataset) -> Iterator[None]:
    try:
        yield
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            repository, _ = repository_and_configuration(str(saved.name))
            raise UsageError(
                f"`dataset_name`: {repository} is gated: accept its terms on "
                f"https://huggingface.co/datasets/{repository} and log in with `hf auth login`."
            ) from error
        raise UsageError(f"`dataset_name`: {saved.name} is neither a data set on the Hub nor a folder.") from error
    except UsageError:
        raise
    # no connection; a configuration that is missing; a loading script, which `datasets` no longer runs
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ValueError) and (choices := _configurations_to_choose_from(saved)):
            raise UsageError(
                f"`dataset_name`: {saved.name} must name one configuration of the data set: {name_some(choices)}."
            ) from error
        reason = first_line(error)
        raise UsageError(f"`dataset_name`: {saved.name} cannot be read from the Hub ({reason}).") from error


def _configurations_to_choose_from(saved: SavedDataset) -> list[str]:
    """List the names of all configurations, as they are given, if a data set on the Hub lacks the one to read."""
    repository, configuration = repository_and_configuration(str(saved.name))
    with suppress(OSError, ValueError, RuntimeError):
        names = get_dataset_config_names(repository, revision=saved.revision)
        if configuration is None:
            configuration = get_dataset_default_config_name(repository, revision=saved.revision)
        if configuration not in names:
            return [f"{repository}:{name}" for name in names]
    return []


def _check_parquet(paths: Sequence[Path], split: str) -> None:
    """Refuse files that `datasets` cannot open: with several columns of the same name, or without any row."""
    num_rows = 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            names, num_rows = file.schema_arrow.names, num_rows + file.metadata.num_rows
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            shown = " and ".join(map(repr, repeated))
            raise UsageError(f"{path} has several columns with the name {shown}; rename them.")
    if not num_rows:
        raise UsageError(f"The parquet files of {split} have no rows: {name_some(paths)}.")


def _own_name(split: str, names: list[str], where: str) -> str:
    """Find the name that a copy uses for a split."""
    for name in SPLIT_NAMES.get(split, (split,)):
        if name in names:
            return name
    raise UsageError(f"{where} has the splits {names}, not {split!r}.")


def _with_our_columns(
    dataset: Dataset | IterableDataset, saved: SavedDataset, split: str, with_labels: bool
) -> Dataset | IterableDataset:
    columns = dataset.column_names or []
    ours = {"image_column": (saved.image_column, "image")}
    if with_labels:
        ours["label_column"] = (saved.label_column, "label")
    if saved.image_column == saved.label_column:
        raise UsageError(f"`image_column` and `label_column` both name {saved.image_column!r}; they must differ.")
    for flag, (column, _) in ours.items():
        if column not in columns:
            raise UsageError(f"`{flag}`: the data set has no column {column!r}, only {', '.join(columns)}.")
        if not _holds_images(kind := dataset.features[column]):
            raise UsageError(
                f"`{flag}`: the column {column!r} must contain an image in every row, but its type is "
                f"{shorten(repr(kind), _SHOWN_OF_A_TYPE)}."
            )
    names = [column for column, _ in ours.values()]
    has_ids = "image_id" in columns and "image_id" not in names
    structs = [column for column in names if isinstance(dataset.features[column], dict)]
    # before all else: otherwise a stream would decode images and encode them again, with loss
    dataset = _undecoded(dataset, [column for column in names if column not in structs])
    if isinstance(dataset, IterableDataset) and structs:
        # before the cast of structs, which raises errors of its own
        dataset = dataset.map(_Rows(split, structs, has_ids), features=dataset.features)
    dataset = _undecoded(dataset, structs)
    renamed = dict(ours.values())
    dataset = dataset.remove_columns([column for column in columns if column not in (*renamed, "image_id")])
    # in two steps, since the names may be exchanged
    between = {old: f"{old} of the copy" for old in renamed}
    for new_names in (between, {between[old]: new for old, new in renamed.items()}):
        dataset = dataset.rename_columns(new_names)
    return _with_ids(dataset, split, has_ids, list(renamed.values()))


def _undecoded(dataset: Dataset | IterableDataset, columns: Iterable[str]) -> Dataset | IterableDataset:
    for column in columns:
        dataset = dataset.cast_column(column, ImageFeature(decode=False))
    return dataset


def _with_ids(
    dataset: Dataset | IterableDataset, split: str, has_ids: bool, columns: Sequence[str]
) -> Dataset | IterableDataset:
    """Give every row an id of text: its own, or one from the number of the row, or in a stream from its image."""
    if isinstance(dataset, IterableDataset):
        features = Features({**dataset.features, "image_id": Value("string")})
        return dataset.map(_Rows(split, columns, has_ids, with_ids=True), features=features)
    ids = dataset.with_format(None)["image_id"][:] if has_ids else [None] * len(dataset)
    if has_ids and all(isinstance(image_id, str) for image_id in ids):
        return dataset
    named = [f"{split}_{number:06d}" if image_id is None else str(image_id) for number, image_id in enumerate(ids)]
    return (dataset.remove_columns("image_id") if has_ids else dataset).add_column("image_id", named)


def _holds_images(kind: Any) -> bool:
    """Return whether a column holds images, their files or paths, or arrays of their values."""
    if isinstance(kind, dict):
        return {"bytes", "path"} <= set(kind)
    if isinstance(kind, Value):
        return kind.dtype in ("binary", "large_binary", "string", "large_string")
    depth = 0
    while isinstance(kind, List):
        depth, kind = depth + 1, kind.feature
    is_number = isinstance(kind, Value) and not isinstance(kind, ClassLabel) and kind.dtype.startswith(("int", "uint"))
    return isinstance(kind, ImageFeature) and depth == 0 or is_number and depth in (2, 3)


def _refuse_empty_cells(rows: Dataset, split: str) -> None:
    """Refuse rows without an image or a label; only the tables of the copy are read, not its files."""
    for column in (name for name in ("image", "label") if name in rows.column_names):
        empty: list[int] = []
        for start, batch in enumerate(rows.select_columns([column]).with_format("arrow").iter(_ROWS_AT_A_TIME)):
            cells = batch[column].combine_chunks()
            num_bytes = pc.fill_null(pc.binary_length(cells.field("bytes")), 0)
            missing = pc.or_(cells.is_null(), pc.and_(pc.equal(num_bytes, 0), cells.field("path").is_null()))
            empty += [start * _ROWS_AT_A_TIME + number for number, lacks in enumerate(missing.to_pylist()) if lacks]
        if empty:
            ids = rows.with_format(None)["image_id"]
            shown = ", ".join(f"row {number} (image id {ids[number]})" for number in empty[:_ROWS_SHOWN])
            more = ", ..." if len(empty) > _ROWS_SHOWN else ""
            raise UsageError(f"{len(empty)} of {len(rows)} rows of {split} have no {column}: {shown}{more}.")


@dataclass(frozen=True)
class _Rows:
    """Function that refuses rows of a stream with empty cells in some columns, and gives the others their ids.

    The place of a row is not known: every worker and process reads its own shards, and a shuffled stream counts the
    rows of each shard from 0. A missing id is therefore made from the bytes of the image.
    """

    split: str
    columns: Sequence[str]
    has_ids: bool
    with_ids: bool = False

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        own = row["image_id"] if self.has_ids else None
        for column in self.columns:
            if is_empty(row[column]):
                named = "" if own is None else f" (image id {own})"
                raise UsageError(
                    f"A row of {self.split} has no {column}{named}; without `streaming`, the rows without one are "
                    "listed by their numbers."
                )
        if not self.with_ids:
            return row
        return {**row, "image_id": self._from_content(row["image"]) if own is None else str(own)}

    def _from_content(self, file: dict[str, Any]) -> str:
        return f"{self.split}_{zlib.crc32(file['bytes'] or file['path'].encode()):08x}"
