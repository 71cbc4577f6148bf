"""Pairs of an image file and a label file with the same name, in folders or under templates of paths."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import UsageError, as_usage_error
from .image_files import IMAGE_SUFFIXES, LABEL_SUFFIXES, files_below, is_image, may_be_image, name_some
from .nearest_names import name_some_with_nearest, nearest_name, pairing_hint
from .path_template import PathTemplate, is_template
from .shares import Share


@dataclass(frozen=True)
class PairedFiles:
    """Images and labels, in which an image and its labels have the same path up to the ending.

    Args:
        images, labels (`str`): Folders, relative to that of the data set, in which subfolders are searched too, or
            templates as of `PathTemplate`. Images for which `labels` is `None` have none.
        image_suffixes (`tuple[str, ...]`): Endings of image names as they are distributed, such as `".jpg"` or
            `"_leftImg8bit.png"`; where no such file exists, other image formats are accepted too.
        label_suffix (`str`, *optional*): Ending of label names in the same way, or what comes before it, such as
            `"_mask"`; `None` accepts any lossless format.
        names (`str` or `tuple[str, ...]`, *optional*): Text file with the names of the split's images, one per line,
            or these names; all images by default.
        prefix (`str`): Text before the shared path in the image id.
        share (`Share`, *optional*): Share of the images that are the split.
        ignore_case (`bool`): Whether names are the same that differ only in case.
    """

    images: str
    labels: str | None
    image_suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    label_suffix: str | None = None
    names: str | tuple[str, ...] | None = None
    prefix: str = ""
    share: Share | None = None
    ignore_case: bool = False

    @property
    def image_folder(self) -> str:
        """Folder below which images are searched."""
        return _folder_of(self.images)

    @property
    def label_folder(self) -> str:
        """Folder below which labels are searched; that of the data set if there are none."""
        return _folder_of(self.labels or "")

    @property
    def reports_others(self) -> bool:
        """Whether files outside the pairs are reported here, since no other split of the same files does."""
        return self.names is None and (self.share is None or self.share.is_last)


Layout = Mapping[str, Sequence[PairedFiles]]  # split -> its files


@dataclass(frozen=True)
class Pairs:
    """Files of a split: complete pairs, and what else is in their folders.

    Args:
        complete (`list[tuple[str, Path, Path]]`): Image id, image file and label file, sorted by id.
        without_label (`list[Path]`): Image files without labels.
        without_image (`list[Path]`): Label files without an image.
        broken_links (`list[Path]`): Links that lead to no file, in place of an image or of its labels.
        unused (`list[Path]`): Files in folders of images that are not taken for images of the split.
        left_over (`list[Path]`): Label files without an image, also those that are reported with another split.
        hints (`list[str]`): Sentences about settings that would give labels to images without them.
    """

    complete: list[tuple[str, Path, Path]] = field(default_factory=list)
    without_label: list[Path] = field(default_factory=list)
    without_image: list[Path] = field(default_factory=list)
    broken_links: list[Path] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)
    left_over: list[Path] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def notes(self, split: str, *, of_check: bool = False) -> list[str]:
        """Write sentences about files that are left out although the split can be used.

        In those of a check, texts, annotations, thumbnails and the like among the images are mentioned too, and labels
        with the nearest names to those of images without labels.
        """
        sentences = []
        if count := len(self.without_image):
            one, many = f"1 label of {split} has no image and is", f"{count} labels of {split} have no image and are"
            shown = name_some_with_nearest(self.without_image, self.without_label, "image without a label")
            sentences.append(f"{one if count == 1 else many} not used: {shown}.")
        unused = self.unused if of_check else list(filter(may_be_image, self.unused))
        if count := len(unused):
            one, many = f"1 file among the images of {split} is", f"{count} files among the images of {split} are"
            sentences.append(f"{one if count == 1 else many} not used: {name_some(unused)}.")
        if of_check and self.without_label and self.left_over:
            sentences.append(f"images of {split} without a label: {self.name_without_label()}.")
        return [*sentences, *self.hints] if of_check else sentences

    def name_without_label(self) -> str:
        """Name the first images without labels, each with the nearest of the labels without an image."""
        return name_some_with_nearest(self.without_label, self.left_over, "label without an image")


def pair_files(root: Path, files: PairedFiles) -> Pairs:
    """Pair images and labels below the folder of a data set.

    Raises:
        FileNotFoundError: If a folder, a list of names or an image that it names does not exist.
        UsageError: If two files have the same name, a list or a folder cannot be read, or there are too few images for
            a share.
    """
    labels = _Index({}, {})
    for folder in (root / files.image_folder, *([root / files.label_folder] if files.labels is not None else [])):
        if not os.path.isdir(folder):  # unlike Path.is_dir, also for a name that is too long
            raise FileNotFoundError(f"The folder {folder} does not exist.")
    if files.labels is not None:
        # beside their images, only files that end as stated are labels
        other_endings = LABEL_SUFFIXES if files.labels != files.images else ()
        labels = _index_files(root, files.labels, _label_endings(files), other_endings)
    in_images = PurePosixPath(files.image_folder) in (PurePosixPath(files.label_folder) / "file").parents
    is_label = {*labels.files.values()} if in_images or is_template(files.labels or "") else ()
    found = _index_files(root, files.images, files.image_suffixes, IMAGE_SUFFIXES, exclude=is_label)
    images = found
    if files.names is not None:
        images = _only_listed(found, files.names, root, files)
    if files.share is not None:
        images = _share_of(found, root, files, files.share)
    label_of = _under_names_of(found, labels.files, files.ignore_case)
    links_of_labels = _under_names_of(found, labels.broken_links, files.ignore_case)
    complete = [(name, image, label_of[name]) for name, image in sorted(images.files.items()) if name in label_of]
    without_label = {name: image for name, image in images.files.items() if name not in label_of}
    broken = {name: link for name in without_label if (link := _link_towards(name, links_of_labels))}
    without_image = [
        label
        for name, label in label_of.items()
        if name not in found.files and not _link_towards(name, found.broken_links)
    ]
    unlabeled = _without_aliases(
        [image for name, image in without_label.items() if name not in broken], [image for _, image, _ in complete]
    )
    alone = _without_aliases(without_image, [label for _, _, label in complete])
    hint = ""
    if unlabeled and files.labels is not None:
        of_images = {*found.files.values()}
        others = [path for path in labels.others if is_image(path) and path not in of_images]
        may_name_suffix = files.label_suffix is None and not is_template(files.labels)
        hint = pairing_hint(unlabeled, [*alone, *others], may_name_suffix=may_name_suffix)
    return Pairs(
        [(files.prefix + name, image, label) for name, image, label in complete],
        unlabeled,
        alone if files.reports_others else [],
        list(dict.fromkeys([*images.broken_links.values(), *broken.values()])),
        found.others if files.reports_others else [],
        alone,
        [hint] if hint else [],
    )


def _folder_of(path: str) -> str:
    return PathTemplate(path).folder if is_template(path) else path


def _label_endings(files: PairedFiles) -> Sequence[str]:
    if files.label_suffix is None:
        return LABEL_SUFFIXES
    has_ending = is_image(Path(f"name{files.label_suffix}"))
    return [files.label_suffix] if has_ending else [files.label_suffix + ending for ending in LABEL_SUFFIXES]


@dataclass(frozen=True)
class _Index:
    """Files by name: their path without its ending, relative to their folder, or the texts of a template."""

    files: dict[str, Path]
    broken_links: dict[str, Path]
    others: list[Path] = field(default_factory=list)


def _index_files(
    root: Path, place: str, official: Sequence[str], suffixes: Sequence[str], exclude: Collection[Path] = ()
) -> _Index:
    """Index files in a folder or under a template, except those to `exclude`.

    In a folder they end as the `official` ones do, or otherwise with another of the `suffixes`; under a template they
    have its ending.
    """
    template = PathTemplate(place) if is_template(place) else None
    folder = root / _folder_of(place)
    below = files_below(folder)
    present = [path for path in below.files if path not in exclude]
    others: list[str] = []
    if template is None:
        kinds = {ending[: ending.rindex(".")] for ending in official}  # "_leftImg8bit", or nothing
        others = [kind + suffix for kind in kinds for suffix in suffixes if kind + suffix not in official]
    elif template.ending:
        official = [template.ending]

    def name_of(path: Path, endings: Iterable[str]) -> tuple[str, str]:
        if template is None:
            return _split_name(path.relative_to(folder).as_posix(), endings)
        stem, ending = _split_name(path.relative_to(root).as_posix(), endings)
        return template.name(stem), ending

    named = {path: name_of(path, (*official, *others)) for path in present}
    index: dict[str, Path] = {}
    # a file with an official ending is preferred to another of the same name
    for path in sorted(present, key=lambda path: named[path][1] in others):
        name, ending = named[path]
        if not (name and ending):
            continue
        other = index.setdefault(name, path)
        if other != path and (named[other][1] in others) == (ending in others):
            raise UsageError(f"{other} and {path} have the same name; remove one of them.")
    links = {name_of(path, (*official, *others))[0]: path for path in below.broken_links}
    links.pop("", None)  # outside the template
    used = set(index.values())
    left = [path for path in present if path not in used and (template is None or name_of(path, suffixes)[0])]
    return _Index(dict(sorted(index.items())), links, left)


def _split_name(path: str, endings: Iterable[str]) -> tuple[str, str]:
    """Split the path of a file before the ending of its name, which is empty if it is none of these."""
    lowered = path.lower()
    ending = next((ending for ending in endings if lowered.endswith(ending.lower())), "")
    return path[: len(path) - len(ending)], ending


def _only_listed(images: _Index, names: str | Sequence[str], root: Path, files: PairedFiles) -> _Index:
    """Select the images that a text file, or a list in the description of the data set, names.

    A name may have an ending, and be relative to the folder of the images or to that of the data set.
    """
    source, lines = (f"{root / names}", _read_names(root / names)) if isinstance(names, str) else ("`splits:`", names)
    folder = root / files.image_folder
    spellings = [
        {path.relative_to(root).as_posix(): name for name, path in images.files.items()},
        {path.relative_to(folder).as_posix(): name for name, path in images.files.items()},
        {path.relative_to(folder).with_suffix("").as_posix(): name for name, path in images.files.items()},
        {name: name for name in images.files},
    ]
    known = {_form(text, files.ignore_case): name for each in spellings for text, name in each.items()}
    chosen: dict[str, Path] = {}
    links: dict[str, Path] = {}
    for line in lines:
        candidates = [text.removeprefix("./") for text in (line.strip(), _without_columns(line))]
        name = next((known[form] for text in candidates if (form := _form(text, files.ignore_case)) in known), None)
        if name is not None:
            chosen[name] = images.files[name]
        elif link := _link_towards(candidates[0], images.broken_links):
            links[candidates[0]] = link
        else:
            near = nearest_name(candidates[0], list(images.files))
            raise FileNotFoundError(
                f"{source} names {line.strip()}, which is not in {folder}{f'; the nearest is {near}' if near else ''}."
            )
    return _Index(chosen, links)


def _without_columns(line: str) -> str:
    """Leave out the columns that lists have after a name: -1, 0 or 1, several numbers, or the file of the labels.

    A name may have spaces, and its first word be the name of another image.
    """
    first, *rest = line.split()
    are_columns = (
        rest in (["-1"], ["0"], ["1"])
        or (len(rest) > 1 and all(re.fullmatch(r"[-+.\d]+", word) for word in rest))
        or any("/" in word for word in rest)
        or is_image(Path(first))
    )
    return first if are_columns else line.strip()


def _share_of(images: _Index, root: Path, files: PairedFiles, share: Share) -> _Index:
    """Select the images of a share among those that no list names."""
    listed = [_only_listed(images, names, root, files) for names in share.listed]
    elsewhere = {name for index in listed for name in (*index.files, *index.broken_links)}
    names = {*images.files, *images.broken_links} - elsewhere
    chosen = share.choose(names) if images.files or images.broken_links else names
    return _Index(
        {name: path for name, path in images.files.items() if name in chosen},
        {name: path for name, path in images.broken_links.items() if name in chosen},
    )


def _under_names_of(images: _Index, found: Mapping[str, Path], ignore_case: bool) -> dict[str, Path]:
    """Name files as their images where only the Unicode forms differ, or, by request, the case.

    macOS writes "é" as two characters. A file that has the same name as its image is preferred.
    """
    names = {**images.files, **images.broken_links}
    by_form = {_form(name, ignore_case): name for name in names}
    renamed: dict[str, Path] = {}
    for name, path in sorted(found.items(), key=lambda item: item[0] not in names):
        image = name if name in names else by_form.get(_form(name, ignore_case), name)
        renamed[name if image in renamed else image] = path
    return renamed


def _form(name: str, ignore_case: bool) -> str:
    name = unicodedata.normalize("NFC", name)
    return name.casefold() if ignore_case else name


def _link_towards(name: str, links: Mapping[str, Path]) -> Path | None:
    """Look up the broken link at the place of a file, or of a folder above it."""
    places = (name, *map(str, PurePosixPath(name).parents))
    return next((links[place] for place in places if place in links), None)


def _without_aliases(paths: Sequence[Path], used: Sequence[Path]) -> list[Path]:
    """Leave out files that linked folders show once more under another name."""
    places = {os.path.realpath(path.parent) + os.sep + path.name for path in used} if paths else set()
    return [path for path in paths if os.path.realpath(path.parent) + os.sep + path.name not in places]


def _read_names(path: Path) -> list[str]:
    if path.is_dir():
        raise UsageError(
            f"`splits:`: {path} is a folder and not a text file with names; a split of its own is written as "
            "{images: FOLDER, labels: FOLDER}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"The file {path}, which names the images of the split, is missing.")
    with as_usage_error(OSError, UnicodeDecodeError, prefix=f"{path} cannot be read: "):
        names = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise UsageError(f"{path}, which names the images of the split, is empty.")
    return names
