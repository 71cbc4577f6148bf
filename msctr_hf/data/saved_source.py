"""Samples of a copy that `datasets` can open: parquet files, `save_to_disk`, or a repository on the Hub."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    get_dataset_split_names,
    load_dataset,
    load_from_disk,
)
from datasets import Image as ImageFeature
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from ..errors import UsageError, as_usage_error, first_line

SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class SavedDataset:
    """Location of a copy, and the names of its columns.

    Args:
        name (`str`, *optional*): Hub id, or folder of parquet files; `data_dir` by default.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        image_column, label_column (`str`): Names of the columns with images and labels.
        streaming (`bool`): Whether to read the copy as a stream, without storing it on this disk.
    """

    name: str | None = None
    revision: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    streaming: bool = False


def is_a_copy(saved: SavedDataset, data_dir: Path | None) -> bool:
    """Return whether samples come from a copy: a named one, or a folder of `save_to_disk` or of parquet files."""
    if saved.name is not None:
        return True
    return data_dir is not None and (_was_saved_to_disk(data_dir) or any(_parquet_files(data_dir)))


def index_copy(saved: SavedDataset, split: str, data_dir: Path | None) -> Dataset | IterableDataset:
    """Index one split of a copy as undecoded rows {image, label, image_id}.

    Raises:
        UsageError: If the copy cannot be opened, or lacks the split or a column; the message lists what it has.
    """
    folder = Path(saved.name) if saved.name is not None else data_dir
    if folder is not None and folder.is_dir():
        dataset = _open_folder(folder, split, saved.streaming)
    else:
        dataset = _open_hub(saved, split)
    return _with_our_columns(dataset, saved, split)


def _was_saved_to_disk(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _parquet_files(folder: Path) -> Iterable[Path]:
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("*/*.parquet"))


def _open_folder(folder: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    if _was_saved_to_disk(folder):
        with as_usage_error(OSError, ValueError, prefix=f"{folder} cannot be read: "):
            saved = load_from_disk(str(folder))
        if not isinstance(saved, DatasetDict):
            # saved without the name of a split, it counts as train and never as the requested split
            saved = DatasetDict({str(saved.split or "train"): saved})
        saved = saved[_own_name(split, list(saved), str(folder))]
        return saved.to_iterable_dataset() if streaming else saved
    files: dict[str, list[str]] = {}
    for path in _parquet_files(folder):
        stem = path.parent.name if path.parent not in (folder, folder / "data") else path.stem.split("-")[0]
        files.setdefault(stem, []).append(str(path))
    name = _own_name(split, list(files), str(folder))
    with as_usage_error(OSError, ValueError, DatasetGenerationError, prefix=f"{folder} cannot be read: "):
        return load_dataset("parquet", data_files={name: files[name]}, split=name, streaming=streaming)


def _open_hub(saved: SavedDataset, split: str) -> Dataset | IterableDataset:
    try:
        names = get_dataset_split_names(saved.name, revision=saved.revision)
        own = _own_name(split, names, str(saved.name))
        return load_dataset(saved.name, split=own, revision=saved.revision, streaming=saved.streaming)
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise UsageError(
                f"`dataset_name`: {saved.name} is gated: accept its terms on "
                f"https://huggingface.co/datasets/{saved.name} and log in with `hf auth login`."
            ) from error
        raise UsageError(f"`dataset_name`: {saved.name} is neither a data set on the Hub nor a folder.") from error
    except UsageError:
        raise
    # no connection; several configurations to choose from; a loading script, which `datasets` no longer runs
    except (OSError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise UsageError(f"`dataset_name`: {saved.name} cannot be read from the Hub ({reason}).") from error


def _own_name(split: str, names: list[str], where: str) -> str:
    """Find the name that a copy uses for a split."""
    for name in SPLIT_NAMES.get(split, (split,)):
        if name in names:
            return name
    raise UsageError(f"{where} has the splits {names}, not {split!r}.")


def _with_our_columns(
    dataset: Dataset | IterableDataset, saved: SavedDataset, split: str
) -> Dataset | IterableDataset:
    columns = dataset.column_names or []
    for flag, column in (("image_column", saved.image_column), ("label_column", saved.label_column)):
        if column not in columns:
            raise UsageError(f"`{flag}`: the data set has no column {column!r}, only {', '.join(columns)}.")
    for column in (saved.image_column, saved.label_column):
        # before all else: otherwise a stream would decode images and encode them again, with loss
        dataset = dataset.cast_column(column, ImageFeature(decode=False))
    kept = [saved.image_column, saved.label_column, "image_id"]
    dataset = dataset.remove_columns([column for column in columns if column not in kept])
    renamed = {saved.image_column: "image", saved.label_column: "label"}
    dataset = dataset.rename_columns({old: new for old, new in renamed.items() if old != new})
    if "image_id" in columns:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.map(_Numbering(split), with_indices=True)
    return dataset.add_column("image_id", [f"{split}_{number:06d}" for number in range(len(dataset))])


@dataclass(frozen=True)
class _Numbering:
    split: str

    def __call__(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        return {**row, "image_id": f"{self.split}_{number:06d}"}
