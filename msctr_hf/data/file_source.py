"""Samples of a data set in folders, found as pairs of an image file and a label file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from ..errors import UsageError, as_usage_error
from .decoding import ReadSamples
from .labels import LabelMapping

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
UNDECODED_FEATURES = Features(
    {"image": ImageFeature(decode=False), "label": ImageFeature(decode=False), "image_id": Value("string")}
)
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class PairedFiles:
    """Folders of images and labels, in which an image and its labels have the same path up to the suffix.

    Args:
        images, labels (`str`): Folders, relative to that of the data set; subfolders are searched too. Images for
            which `labels` is `None` have none.
        image_suffixes (`tuple[str, ...]`): Suffixes of image names; other files are skipped.
        label_suffix (`str`, *optional*): Suffix of label names; `None` accepts any lossless image format.
        names (`str`, *optional*): Text file with the names of the split's images, one per line; all
            images by default.
        prefix (`str`): Text before the shared path in the image id.
    """

    images: str
    labels: str | None
    image_suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    label_suffix: str | None = None
    names: str | None = None
    prefix: str = ""


Layout = Mapping[str, Sequence[PairedFiles]]  # split -> folders


@dataclass(frozen=True)
class Pairs:
    """Files of a split: complete pairs, and files without a partner.

    Args:
        complete (`list[tuple[str, Path, Path]]`): Image id, image file and label file, sorted by id.
        without_label (`list[Path]`): Image files without labels.
        without_image (`list[Path]`): Label files without an image.
    """

    complete: list[tuple[str, Path, Path]]
    without_label: list[Path]
    without_image: list[Path]


@dataclass(frozen=True)
class FileSource:
    """Source of samples in pairs of files.

    Args:
        layouts (`Sequence[Layout]`): Folder structures in which the data set is distributed.
        roots (`Sequence[str]`): Folders that may come between `data_dir` and the splits.
    """

    layouts: Sequence[Layout]
    roots: Sequence[str] = ()

    def reader(self, mapping: LabelMapping) -> ReadSamples:
        """Return the reader that decodes rows and maps labels to train ids."""
        return ReadSamples(mapping)

    def index(
        self, split: str, data_dir: Path | None, corrections: Path | None = None, *, name: str, where_to_get: str = ""
    ) -> Dataset:
        """Index one split as undecoded rows {image, label, image_id}.

        Raises:
            UsageError: If folders, images or labels are missing; the message names them.
        """
        pairs = self.find(split, data_dir, name=name, where_to_get=where_to_get)
        if corrections is not None:
            self.check_corrections(corrections, data_dir, name=name)
        if pairs.without_label:
            shown = ", ".join(map(str, pairs.without_label[:_NAMES_SHOWN]))
            more = ", ..." if len(pairs.without_label) > _NAMES_SHOWN else ""
            count = len(pairs.without_label)
            raise UsageError(
                f"{count} of {count + len(pairs.complete)} images of {split} have no label: {shown}{more}"
            )
        return self.rows(pairs, data_dir, corrections)

    def check_corrections(self, corrections: Path, data_dir: Path, *, name: str) -> None:
        """Refuse a CSV file with the id of an image that no split has.

        Raises:
            UsageError: If the file cannot be read, names an image twice, or names one that does not exist.
        """
        unknown = dict.fromkeys(_read_corrections(corrections))
        known: list[str] = []
        for split in self.layouts[0]:
            if self.has_split(split, data_dir):
                pairs = self.find(split, data_dir, name=name, labels_optional=True)
                known += [image_id for image_id, _, _ in pairs.complete]
        for image_id in known:
            unknown.pop(image_id, None)
        if unknown:
            shown = ", ".join(map(repr, [*unknown][:_NAMES_SHOWN])) + (", ..." if len(unknown) > _NAMES_SHOWN else "")
            raise UsageError(
                f"`corrections`: {len(unknown)} of the ids in {corrections} are not those of images with labels: "
                f"{shown}; ids look like {known[0]!r}."
                if known
                else f"`corrections`: {data_dir} has no images with labels."
            )

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
        return any((root / files.images).is_dir() for files in folders)

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
        if split not in self.layouts[0]:
            raise UsageError(f"{name} has the splits {list(self.layouts[0])}, not {split!r}.")
        if data_dir is None:
            raise UsageError(f"{name} needs `data_dir`, the folder that contains it.{where_to_get}")
        if not data_dir.is_dir():
            raise UsageError(f"`data_dir`: the folder {data_dir} does not exist.{where_to_get}")
        root, folders = self._choose_layout(split, data_dir)
        if labels_optional:
            folders = [
                each if (root / (each.labels or "")).is_dir() else replace(each, labels=None) for each in folders
            ]
        try:
            found = [_pair_files(root, files) for files in folders]
        except FileNotFoundError as error:
            raise UsageError(f"{error}{where_to_get}") from None
        pairs = Pairs(*(sum(parts, []) for parts in zip(*found, strict=True)))
        if not pairs.complete and not pairs.without_label:
            searched = ", ".join(str(root / files.images) for files in folders[:_NAMES_SHOWN])
            raise UsageError(f"No image in {searched} has a name that ends in {', '.join(folders[0].image_suffixes)}.")
        return pairs

    def _choose_layout(self, split: str, data_dir: Path) -> tuple[Path, Sequence[PairedFiles]]:
        """Choose the layout of which most folders exist, or the first if none does, for the error message."""
        choices = [(data_dir / root, layout[split]) for layout in self.layouts for root in ("", *self.roots)]
        return max(choices, key=lambda choice: sum((choice[0] / files.images).is_dir() for files in choice[1]))


def _pair_files(root: Path, files: PairedFiles) -> tuple[list[tuple[str, Path, Path]], list[Path], list[Path]]:
    images = _index_folder(root / files.images, files.image_suffixes)
    labels = {}
    if files.labels is not None:
        labels = _index_folder(root / files.labels, (files.label_suffix,) if files.label_suffix else LABEL_SUFFIXES)
    if files.names is not None:
        names = _read_names(root / files.names)
        if missing := [name for name in names if name not in images]:
            raise FileNotFoundError(f"{root / files.names} names {missing[0]}, which is not in {root / files.images}.")
        images = {name: images[name] for name in names}
        labels = {name: path for name, path in labels.items() if name in images}
    return (
        [(files.prefix + name, images[name], labels[name]) for name in sorted(images) if name in labels],
        [path for name, path in images.items() if name not in labels],
        [path for name, path in labels.items() if name not in images],
    )


def _index_folder(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Map the path of every file below the folder, relative and without its suffix, to the file."""
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {folder} does not exist.")
    index: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix.lower())), None)
        if suffix is None or path.name.startswith(".") or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()[: -len(suffix)]
        if name in index:
            raise UsageError(f"{index[name]} and {path} have the same name; remove one of them.")
        index[name] = path
    return index


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"The file {path}, which names the images of the split, is missing.")
    with as_usage_error(OSError, UnicodeDecodeError, prefix=f"{path} cannot be read: "):
        return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


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
        lines = list(csv.DictReader(file))
    if lines and not {"image_id", "label"} <= set(lines[0]):
        raise UsageError(f"`corrections`: {corrections} must have the columns image_id and label.")
    label_of: dict[str, str] = {}
    for line in lines:
        image_id = line["image_id"].strip()
        if image_id in label_of:
            raise UsageError(f"`corrections`: {corrections} names {image_id!r} twice.")
        label_of[image_id] = (line["label"] or "").strip()
    return label_of


def _correct(
    rows: Sequence[tuple[str, Path, Path]], corrections: Path, data_dir: Path | None
) -> Iterator[tuple[str, Path, Path]]:
    """Leave out images that a CSV file lists without a label, and replace labels by the files that it names."""
    label_of = _read_corrections(corrections)
    for image_id, image, label in rows:
        if image_id not in label_of:
            yield image_id, image, label
        elif label_of[image_id]:
            path = _below(data_dir or Path(), label_of[image_id])
            if not path.is_file():
                raise UsageError(f"`corrections`: the label {path} of {image_id} does not exist.")
            yield image_id, image, path
