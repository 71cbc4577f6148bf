"""Samples of a data set in folders: the pairs of an image file and a label file in one of its layouts."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from ..errors import UsageError, as_usage_error, warn_caller
from .channels import ARRAY_SUFFIX, Channels
from .decoding import ReadSamples
from .file_pairs import Layout, PairedFiles, Pairs, pair_files
from .image_files import LABEL_SUFFIXES, NAMES_SHOWN, name_some
from .labels import LabelMapping
from .path_template import is_template

UNDECODED_FEATURES = Features(
    {"image": ImageFeature(decode=False), "label": ImageFeature(decode=False), "image_id": Value("string")}
)


@dataclass(frozen=True)
class FileSource:
    """Source of samples in pairs of files.

    Args:
        layouts (`Sequence[Layout]`): Folder structures in which the data set is distributed.
        roots (`Sequence[str]`): Folders that may come between `data_dir` and the splits.
        channels (`Channels`, *optional*): Channels of the images, which may be arrays of numpy then; RGB by default.
    """

    layouts: Sequence[Layout]
    roots: Sequence[str] = ()
    channels: Channels | None = None

    def reader(self, mapping: LabelMapping) -> ReadSamples:
        """Return the reader that decodes rows and maps labels to train ids."""
        return ReadSamples(mapping, channels=self.channels)

    def index(
        self, split: str, data_dir: Path | None, corrections: Path | None = None, *, name: str, where_to_get: str = ""
    ) -> Dataset:
        """Index one split as undecoded rows {image, label, image_id}.

        Raises:
            UsageError: If folders, images or labels are missing; the message names them. Labels without an image, and
                files that may be images under unusual names, are reported as a warning.
        """
        pairs = self.find(split, data_dir, name=name, where_to_get=where_to_get)
        if corrections is not None:
            self.check_corrections(corrections, data_dir, name=name)
        _refuse_incomplete(pairs, split)
        for note in pairs.notes(split):
            warn_caller(note)
        return self.rows(pairs, data_dir, corrections)

    def index_images(self, split: str, data_dir: Path | None, *, name: str, where_to_get: str = "") -> Dataset:
        """Index the images of one split, with or without labels, as undecoded rows {image, image_id}.

        Raises:
            UsageError: If folders or images are missing, or links lead to no file; the message names them.
        """
        pairs = self.find(split, data_dir, name=name, where_to_get=where_to_get, labels_optional=True)
        _refuse_incomplete(replace(pairs, without_label=[]), split)
        labeled = [(image_id, image) for image_id, image, _ in pairs.complete]
        others = [(image.relative_to(data_dir).as_posix(), image) for image in pairs.without_label]
        return rows_of_images(labeled + others)

    def check_corrections(self, corrections: Path, data_dir: Path, *, name: str) -> None:
        """Refuse a CSV file with the id of an image that no split has.

        Raises:
            UsageError: If the file cannot be read, names an image twice, or names one that does not exist.
        """
        unknown = dict.fromkeys(_read_corrections(corrections))
        known = self.labeled_ids(data_dir, name=name)
        for image_id in known:
            unknown.pop(image_id, None)
        if unknown:
            shown = name_some(map(repr, unknown))
            raise UsageError(
                f"`corrections`: {len(unknown)} of the ids in {corrections} are not those of images with labels: "
                f"{shown}; ids look like {known[0]!r}."
                if known
                else f"`corrections`: {data_dir} has no images with labels."
            )

    def labeled_ids(self, data_dir: Path, *, name: str) -> list[str]:
        """List the ids of the images with labels of all splits of the data set `name`."""
        splits = [split for split in self.layouts[0] if self.has_split(split, data_dir)]
        found = [self.find(split, data_dir, name=name, labels_optional=True) for split in splits]
        return [image_id for pairs in found for image_id, _, _ in pairs.complete]

    def rows(self, pairs: Pairs, data_dir: Path | None, corrections: Path | None = None) -> Dataset:
        """Build undecoded rows {image, label, image_id} from the complete pairs."""
        complete = pairs.complete
        if corrections is not None:
            complete = list(_correct(complete, corrections, data_dir))
        columns = {
            "image": [str(image) for _, image, _ in complete],
            "label": [str(label) for _, _, label in complete],
            "image_id": [image_id for image_id, _, _ in complete],
        }
        return Dataset.from_dict(columns, features=UNDECODED_FEATURES)

    def has_split(self, split: str, data_dir: Path | None) -> bool:
        """Return whether a folder contains images of a split."""
        if split not in self.layouts[0] or data_dir is None:
            return False
        root, folders = self._choose_layout(split, data_dir)
        return any((root / files.image_folder).is_dir() for files in folders)

    def find(
        self,
        split: str,
        data_dir: Path | None,
        *,
        name: str,
        where_to_get: str = "",
        labels_optional: bool = False,
    ) -> Pairs:
        """Pair the files of one split of the data set `name`; messages end with `where_to_get`.

        With `labels_optional`, the folder of the labels may be missing.

        Raises:
            UsageError: If the split is unknown, or a folder is missing or contains no images.
        """
        if not self.layouts[0]:
            raise UsageError(
                f"{name} has no `splits:` in its dataset.yaml, which only copies can do without: parquet files, a "
                "folder of save_to_disk, or a data set on the Hub (`dataset_name`)."
            )
        if split not in self.layouts[0]:
            raise UsageError(f"{name} has the splits {list(self.layouts[0])}, not {split!r}.")
        if data_dir is None:
            raise UsageError(f"{name} needs `data_dir`, the folder that contains it.{where_to_get}")
        if not data_dir.is_dir():
            raise UsageError(f"`data_dir`: the folder {data_dir} does not exist.{where_to_get}")
        root, folders = self._choose_layout(split, data_dir)
        if self.channels is not None:
            folders = [_with_arrays(each) for each in folders]
        if labels_optional:
            folders = [each if (root / each.label_folder).is_dir() else replace(each, labels=None) for each in folders]
        try:
            found = [pair_files(root, files) for files in folders]
        except FileNotFoundError as error:
            raise UsageError(f"{error}{where_to_get}") from None
        pairs = Pairs(*(sum((getattr(part, each.name) for part in found), []) for each in fields(Pairs)))
        if not (pairs.complete or pairs.without_label or pairs.broken_links):
            searched = ", ".join(str(root / files.images) for files in folders[:NAMES_SHOWN])
            suffixes = ", ".join(folders[0].image_suffixes)
            there = f" There is only {name_some(pairs.unused)}." if pairs.unused else ""
            if is_template(folders[0].images):
                raise UsageError(f"No file matches {searched}.{there}")
            raise UsageError(f"No image in {searched} has a name that ends in {suffixes}.{there}")
        return pairs

    def _choose_layout(self, split: str, data_dir: Path) -> tuple[Path, Sequence[PairedFiles]]:
        """Choose the layout of which most folders exist, or the first if none does, for the error message."""
        choices = [(data_dir / root, layout[split]) for layout in self.layouts for root in ("", *self.roots)]
        return max(choices, key=lambda choice: sum(os.path.isdir(choice[0] / each.image_folder) for each in choice[1]))


def rows_of_images(images: Sequence[tuple[str, Path]]) -> Dataset:
    """Build undecoded rows {image, image_id} from ids and files of images."""
    columns = {"image": [str(path) for _, path in images], "image_id": [image_id for image_id, _ in images]}
    return Dataset.from_dict(columns, features=Features({name: UNDECODED_FEATURES[name] for name in columns}))


def _with_arrays(files: PairedFiles) -> PairedFiles:
    """Accept arrays of numpy under the names of images."""
    arrays = dict.fromkeys(ending[: ending.rindex(".")] + ARRAY_SUFFIX for ending in files.image_suffixes)
    return replace(files, image_suffixes=(*files.image_suffixes, *arrays))


def _refuse_incomplete(pairs: Pairs, split: str) -> None:
    sentences = []
    if links := pairs.broken_links:
        sentences.append(f"{len(links)} link(s) in {split} lead to no file: {name_some(links)}")
    if missing := pairs.without_label:
        total = len(missing) + len(pairs.complete)
        sentences.append(
            f"{len(missing)} of {total} images of {split} have no label: {pairs.name_without_label()}; labels must "
            f"end in {', '.join(LABEL_SUFFIXES)}"
        )
    if sentences:
        raise UsageError(f"{'; '.join(sentences)}. {' '.join(pairs.hints)}".strip())


def _below(folder: Path, path: str) -> Path:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UsageError(f"`corrections`: {path} must be a path below {folder}.")
    return folder / path


def _read_corrections(corrections: Path) -> dict[str, str]:
    """Read the label of every corrected image, which is empty for images to leave out."""
    unreadable = (OSError, UnicodeDecodeError, csv.Error)
    with (
        as_usage_error(*unreadable, prefix=f"`corrections`: {corrections} cannot be read: "),
        open(corrections, newline="", encoding="utf-8-sig") as file,
    ):
        reader = csv.DictReader(file)
        columns, lines = reader.fieldnames or [], list(reader)
    if not {"image_id", "label"} <= {*columns}:
        raise UsageError(f"`corrections`: {corrections} must have the columns image_id and label.")
    label_of: dict[str, str] = {}
    for line in lines:
        image_id = (line["image_id"] or "").strip()
        if image_id in label_of:
            raise UsageError(f"`corrections`: {corrections} names {image_id!r} twice.")
        label_of[image_id] = (line["label"] or "").strip()
    return label_of


def read_corrections(corrections: Path, data_dir: Path | None) -> dict[str, Path | None]:
    """Read a CSV file of corrections: image id -> label file, which need not exist; `None` for images to leave out.

    A label file is searched below the folder of the CSV file, then below the folder of the data set.

    Raises:
        UsageError: If the CSV file cannot be read, names an image twice, or has a path that leads elsewhere.
    """

    def find(label: str) -> Path:
        beside = _below(corrections.parent, label)
        return beside if beside.is_file() else _below(data_dir or Path(), label)

    return {image_id: find(label) if label else None for image_id, label in _read_corrections(corrections).items()}


def _correct(
    rows: Sequence[tuple[str, Path, Path]], corrections: Path, data_dir: Path | None
) -> Iterator[tuple[str, Path, Path]]:
    """Leave out images that a CSV file lists without a label, and replace labels by the files that it names."""
    label_of = read_corrections(corrections, data_dir)
    unchanged = []
    for image_id, image, label in rows:
        if image_id not in label_of:
            yield image_id, image, label
        elif (path := label_of[image_id]) is not None:
            if not path.is_file():
                raise UsageError(f"`corrections`: the label {path} of {image_id} does not exist.")
            if path.resolve() == label.resolve():
                unchanged.append(image_id)
            yield image_id, image, path
    if unchanged:
        warn_caller(
            f"`corrections`: {corrections} names for {len(unchanged)} image(s) the label that is corrected, such as "
            f"that of {unchanged[0]!r}. Corrected labels of the same names must be below the folder of the CSV file."
        )
