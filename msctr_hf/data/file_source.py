"""Samples of a data set in folders, found as pairs of an image file and a label file."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath

from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from ..errors import UsageError, as_usage_error, warn_caller
from .channels import ARRAY_SUFFIX, Channels
from .decoding import ReadSamples
from .image_files import IMAGE_SUFFIXES, LABEL_SUFFIXES, NAMES_SHOWN, files_below, may_be_image, name_some
from .labels import LabelMapping

UNDECODED_FEATURES = Features(
    {"image": ImageFeature(decode=False), "label": ImageFeature(decode=False), "image_id": Value("string")}
)


@dataclass(frozen=True)
class PairedFiles:
    """Folders of images and labels, in which an image and its labels have the same path up to the ending.

    Args:
        images, labels (`str`): Folders, relative to that of the data set; subfolders are searched too. Images for
            which `labels` is `None` have none.
        image_suffixes (`tuple[str, ...]`): Endings of image names as they are distributed, such as `".jpg"` or
            `"_leftImg8bit.png"`; where no such file exists, other image formats are accepted too.
        label_suffix (`str`, *optional*): Ending of label names in the same way; `None` accepts any lossless format.
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
    """Files of a split: complete pairs, and what else is in their folders.

    Args:
        complete (`list[tuple[str, Path, Path]]`): Image id, image file and label file, sorted by id.
        without_label (`list[Path]`): Image files without labels.
        without_image (`list[Path]`): Label files without an image.
        broken_links (`list[Path]`): Links that lead to no file, in place of an image or of its labels.
        unused (`list[Path]`): Files in folders of images that are not taken for images of the split.
    """

    complete: list[tuple[str, Path, Path]] = field(default_factory=list)
    without_label: list[Path] = field(default_factory=list)
    without_image: list[Path] = field(default_factory=list)
    broken_links: list[Path] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)

    def notes(self, split: str, *, with_companions: bool = False) -> list[str]:
        """Write sentences about files that are left out although the split can be used.

        Texts, annotations, thumbnails and the like among the images are mentioned only `with_companions`.
        """
        sentences = []
        if count := len(self.without_image):
            one, many = f"1 label of {split} has no image and is", f"{count} labels of {split} have no image and are"
            sentences.append(f"{one if count == 1 else many} not used: {name_some(self.without_image)}.")
        unused = self.unused if with_companions else list(filter(may_be_image, self.unused))
        if count := len(unused):
            one, many = f"1 file among the images of {split} is", f"{count} files among the images of {split} are"
            sentences.append(f"{one if count == 1 else many} not used: {name_some(unused)}.")
        return sentences


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
            shown = name_some(map(repr, unknown))
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
        if self.channels is not None:
            folders = [_with_arrays(each) for each in folders]
        if labels_optional:
            folders = [
                each if (root / (each.labels or "")).is_dir() else replace(each, labels=None) for each in folders
            ]
        try:
            found = [_pair_files(root, files) for files in folders]
        except FileNotFoundError as error:
            raise UsageError(f"{error}{where_to_get}") from None
        pairs = Pairs(*(sum((getattr(part, each.name) for part in found), []) for each in fields(Pairs)))
        if not (pairs.complete or pairs.without_label or pairs.broken_links):
            searched = ", ".join(str(root / files.images) for files in folders[:NAMES_SHOWN])
            suffixes = ", ".join(folders[0].image_suffixes)
            there = f" There is only {name_some(pairs.unused)}." if pairs.unused else ""
            raise UsageError(f"No image in {searched} has a name that ends in {suffixes}.{there}")
        return pairs

    def _choose_layout(self, split: str, data_dir: Path) -> tuple[Path, Sequence[PairedFiles]]:
        """Choose the layout of which most folders exist, or the first if none does, for the error message."""
        choices = [(data_dir / root, layout[split]) for layout in self.layouts for root in ("", *self.roots)]
        return max(choices, key=lambda choice: sum(os.path.isdir(choice[0] / files.images) for files in choice[1]))


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
            f"{len(missing)} of {total} images of {split} have no label: {name_some(missing)}; labels must end in "
            f"{', '.join(LABEL_SUFFIXES)}"
        )
    if sentences:
        raise UsageError("; ".join(sentences))


@dataclass(frozen=True)
class _Index:
    """Files below a folder by name: their path, relative and without its ending."""

    files: dict[str, Path]
    broken_links: dict[str, Path]
    others: list[Path] = field(default_factory=list)


def _pair_files(root: Path, files: PairedFiles) -> Pairs:
    images = _index_folder(root / files.images, files.image_suffixes, IMAGE_SUFFIXES)
    labels = _Index({}, {})
    if files.labels is not None:
        label_suffixes = (files.label_suffix,) if files.label_suffix else LABEL_SUFFIXES
        labels = _index_folder(root / files.labels, label_suffixes, LABEL_SUFFIXES)
    listed = None
    if files.names is not None:
        listed = _read_names(root / files.names)
        images = _only_listed(
            images, listed, f"{root / files.names} names {{}}, which is not in {root / files.images}."
        )
    label_of = _under_names_of(images, labels.files)
    links_of_labels = _under_names_of(images, labels.broken_links)
    complete = [(name, image, label_of[name]) for name, image in sorted(images.files.items()) if name in label_of]
    without_label = {name: image for name, image in images.files.items() if name not in label_of}
    broken = {name: link for name in without_label if (link := _link_towards(name, links_of_labels))}
    without_image = [
        label
        for name, label in label_of.items()
        if name not in images.files and not _link_towards(name, images.broken_links) and (not listed or name in listed)
    ]
    return Pairs(
        [(files.prefix + name, image, label) for name, image, label in complete],
        _without_aliases(
            [image for name, image in without_label.items() if name not in broken], [image for _, image, _ in complete]
        ),
        _without_aliases(without_image, [label for _, _, label in complete]),
        list(dict.fromkeys([*images.broken_links.values(), *broken.values()])),
        images.others,
    )


def _index_folder(folder: Path, official: Sequence[str], suffixes: Sequence[str]) -> _Index:
    """Index files that end as the `official` ones do, or otherwise with another of the `suffixes`."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, also for a name that is too long
        raise FileNotFoundError(f"The folder {folder} does not exist.")
    kinds = {ending[: ending.rindex(".")] for ending in official}  # "_leftImg8bit", or nothing
    others = [kind + suffix for kind in kinds for suffix in suffixes if kind + suffix not in official]
    below = files_below(folder)
    named = {path: _split_name(path.relative_to(folder).as_posix(), (*official, *others)) for path in below.files}
    index: dict[str, Path] = {}
    # a file with an official ending is preferred to another of the same name
    for path in sorted(below.files, key=lambda path: named[path][1] in others):
        name, ending = named[path]
        if not ending:
            continue
        other = index.setdefault(name, path)
        if other != path and (named[other][1] in others) == (ending in others):
            raise UsageError(f"{other} and {path} have the same name; remove one of them.")
    links = {
        _split_name(path.relative_to(folder).as_posix(), (*official, *others))[0]: path for path in below.broken_links
    }
    used = set(index.values())
    return _Index(dict(sorted(index.items())), links, [path for path in below.files if path not in used])


def _split_name(path: str, endings: Sequence[str]) -> tuple[str, str]:
    """Split the path of a file before the ending of its name, which is empty if it is none of these."""
    lowered = path.lower()
    ending = next((ending for ending in endings if lowered.endswith(ending.lower())), "")
    return path[: len(path) - len(ending)], ending


def _only_listed(images: _Index, names: Sequence[str], missing: str) -> _Index:
    """Select the images that a list names."""
    files = _under_names_of(_Index(dict.fromkeys(names), {}), images.files)
    links = {name: link for name in names if name not in files and (link := _link_towards(name, images.broken_links))}
    for name in names:
        if name not in files and name not in links:
            raise FileNotFoundError(missing.format(name))
    return _Index({name: files[name] for name in names if name in files}, links)


def _under_names_of(images: _Index, found: Mapping[str, Path]) -> dict[str, Path]:
    """Name files as their images where only the Unicode forms differ: macOS writes "é" as two characters."""
    names = {**images.files, **images.broken_links}
    by_form = {unicodedata.normalize("NFC", name): name for name in names}
    other = {by_form.get(unicodedata.normalize("NFC", name), name): path for name, path in found.items()}
    return {**other, **{name: path for name, path in found.items() if name in names}}


def _link_towards(name: str, links: Mapping[str, Path]) -> Path | None:
    """Look up the broken link at the place of a file, or of a folder above it."""
    places = (name, *map(str, PurePosixPath(name).parents))
    return next((links[place] for place in places if place in links), None)


def _without_aliases(paths: Sequence[Path], used: Sequence[Path]) -> list[Path]:
    """Leave out files that linked folders show once more under another name."""
    places = {os.path.realpath(path.parent) + os.sep + path.name for path in used} if paths else set()
    return [path for path in paths if os.path.realpath(path.parent) + os.sep + path.name not in places]


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"The file {path}, which names the images of the split, is missing.")
    with as_usage_error(OSError, UnicodeDecodeError, prefix=f"{path} cannot be read: "):
        names = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise UsageError(f"{path}, which names the images of the split, is empty.")
    return names


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
