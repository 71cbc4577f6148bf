"""What the readers of all formats return, and how they read files and refuse what is wrong in them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..data.image_files import files_below, name_some
from ..data.images import read_image, read_raw_labels
from ..data.labels import Color
from ..errors import UsageError, as_usage_error

BACKGROUND = "background"
_SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "test": "test"}
_SPLITS |= {"validation": "validation", "testing": "test"}

_MAX_COORDINATE = 1e9

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class ExportedImage:
    """Image of an export.

    Args:
        name (`str`): Path of the image in the data set, below the folder of its split.
        path (`Path`): The image file.
        split (`str`, *optional*): train, validation or test; `None` if the export does not say it.
        draw (`Callable`, *optional*): Function from the size in which a viewer shows the image to labels (H, W) uint8:
            positions in the list of classes, 255 where ignored. `None` if the image has no annotation.
        size (`tuple[int, int]`, *optional*): Width and height by the export, at which the labels are drawn.
        source (`str`): File and item that describe the image, for messages.
        from_shares (`bool`): Whether the tool multiplied shares of the image as a viewer shows it by `size`, which is
            wrong if this is the size before an EXIF orientation turns the image.
    """

    name: str
    path: Path
    split: str | None
    draw: Callable[[Size], np.ndarray] | None
    size: Size | None = None
    source: str = ""
    from_shares: bool = False


@dataclass(frozen=True)
class Export:
    """Contents of an export.

    Args:
        classes (`Sequence[str]`): Names of classes.
        images (`Sequence[ExportedImage]`): The images.
        background (`int`, *optional*): Position of the class of pixels that show none of the objects.
        colors (`Mapping[str, Color]`): Colors of classes, as far as the export has them.
        left_over (`Sequence[Path]`): Image files of the export, or of the folder of images, that it does not list.
        without_split (`Sequence[Path]`): Files of annotations that do not say their split, if there are several files.
        notes (`Sequence[str]`): Sentences to print after the import.
        doubtful_crowds (`int`): Number of crowd regions that may be ordinary objects, because the tool marks every
            mask as one.
    """

    classes: Sequence[str]
    images: Sequence[ExportedImage]
    background: int | None = None
    colors: Mapping[str, Color] = field(default_factory=dict)
    left_over: Sequence[Path] = ()
    without_split: Sequence[Path] = ()
    notes: Sequence[str] = ()
    doubtful_crowds: int = 0


def with_background(names: Iterable[str]) -> tuple[list[str], int]:
    """Put a class "background" before the classes of objects, unless there is one; return its position, too."""
    classes = list(dict.fromkeys(names))
    place = find_background(classes)
    return (classes, place) if place is not None else ([BACKGROUND, *classes], 0)


def find_background(classes: Sequence[str]) -> int | None:
    """Return the position of the class with the name "background", in capital letters or not."""
    return next((place for place, name in enumerate(classes) if name.lower() == BACKGROUND), None)


def split_of(name: str) -> str | None:
    """Return the split that the name of a folder or list means, such as "valid" or "train2017"; otherwise `None`."""
    return _SPLITS.get(name.lower().rstrip("0123456789"))


def class_name(value: Any, source: str) -> str:
    """Return the name of a class; refuse anything but text, and an empty name."""
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{source} has no name: a class needs one, got {value!r}.")
    return value.strip()


def whole_number(text: str) -> int | None:
    """Return the number that digits mean; `None` for other texts, and for longer ones than labels need."""
    return int(text) if text.isdecimal() and len(text) < 10 else None


def read_text(path: Path) -> str:
    """Read a text file in UTF-8."""
    with as_usage_error(OSError, UnicodeDecodeError, prefix=f"{path} cannot be read: "):
        return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    text = read_text(path)
    with as_usage_error(ValueError, RecursionError, prefix=f"{path} is not valid JSON: "):
        return json.loads(text)


def entry(mapping: Any, key: str, kind: type | tuple[type, ...], source: str) -> Any:
    """Return a value of a JSON object; refuse a missing one and one of another type."""
    value = mapping.get(key) if isinstance(mapping, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join(_JSON_NAMES[each] for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise UsageError(f"{source}: {key!r} must be {names}, got {value!r:.60}.")
    return value


_JSON_NAMES = {int: "an integer", float: "a number", str: "text", list: "a list", dict: "an object"}


def read_size(mapping: Any, width: str, height: str, source: str) -> Size | None:
    """Return the width and height of an image from two keys of a JSON object; `None` if both have no value."""
    if isinstance(mapping, dict) and mapping.get(width) is None and mapping.get(height) is None:
        return None
    return entry(mapping, width, int, source), entry(mapping, height, int, source)


def is_coordinate(value: Any) -> bool:
    """Return whether a value is a finite number, of a size at which float64 is exact to less than a pixel."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _MAX_COORDINATE


def pair_points(listed: Any, source: str) -> np.ndarray:
    """Check the points [x, y] of a polygon and return them as (N, 2) float64, as `polygon_points` does."""
    if not isinstance(listed, list) or not all(isinstance(point, list) and len(point) == 2 for point in listed):
        raise UsageError(f"{source}: a polygon must be a list of points [x, y], got {listed!r:.60}.")
    return polygon_points([value for point in listed for value in point], source)


def polygon_points(flat: Any, source: str) -> np.ndarray:
    """Check the coordinates x, y, x, y, ... of a polygon and return them as (N, 2) float64.

    Raises:
        UsageError: If there are fewer than three points, half a point, or anything but finite numbers up to 1e9.
    """
    if not isinstance(flat, list) or not all(map(is_coordinate, flat)):
        raise UsageError(f"{source}: a polygon must be a list of finite numbers up to 1e9, got {flat!r:.60}.")
    if len(flat) % 2:
        raise UsageError(f"{source}: a polygon has {len(flat)} coordinates, which is not an even number.")
    if len(flat) < 6:
        raise UsageError(f"{source}: a polygon has {len(flat) // 2} points but needs three or more.")
    return np.array(flat, dtype=np.float64).reshape(-1, 2)


def composed(name: str) -> str:
    """Return a name with composed letters (NFC): files that come from a Mac may have "u" and two dots for "ü"."""
    return unicodedata.normalize("NFC", name)


def existing(path: Path) -> Path | None:
    """Return the path of a file or folder on the disk, which may compose its letters otherwise, or `None`."""
    if path.exists():
        return path
    folder = existing(path.parent) if path != path.parent else None
    if folder is None or not folder.is_dir():
        return None
    if path.name.isascii():  # then it is spelled in one way only
        return folder / path.name if (folder / path.name).exists() else None
    return next((each for each in folder.iterdir() if composed(each.name) == composed(path.name)), None)


def by_name(paths: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Name files by their paths below a folder without endings, in composed letters; refuse two of one name.

    A mask would fit both.
    """
    named: dict[str, Path] = {}
    for path in paths:
        other = named.setdefault(composed(path.relative_to(folder).with_suffix("").as_posix()), path)
        if other != path:
            raise UsageError(f"{other} and {path} have the same name but for the ending; remove one of them.")
    return named


def read_mask(path: Path, by_color: bool) -> np.ndarray:
    """Read a mask as values (H, W), or as colors (H, W, 3); refuse a missing one and one compressed with loss."""
    return read_raw_labels({"path": str(path)}, by_color)


def draw_labels(image: ExportedImage, unannotated: int | None) -> np.ndarray | None:
    """Draw the labels (H, W) of an image; without annotation, fill them with a label, or return `None`.

    They have the size of the image as a viewer shows it, or as its file stores it before an EXIF orientation turns it.

    Raises:
        UsageError: If the image or its annotation cannot be read, or they differ in size.
    """
    shown = read_image(image.path).size
    with Image.open(image.path) as file:
        sizes = {shown, file.size}
    if image.size is not None and image.size not in sizes:
        raise UsageError(_other_size(image, image.size, shown))
    size = image.size or shown
    if image.draw is None:
        return None if unannotated is None else np.full(size[::-1], unannotated, dtype=np.uint8)
    if image.from_shares and size != shown:
        raise UsageError(
            f"{image.source} has the {size[0]}x{size[1]} pixels of {image.path} before its EXIF orientation turns it "
            f"to {shown[0]}x{shown[1]}; Label Studio draws on the turned image but exports with this size, so that "
            "all objects are displaced. Save the images upright and export again, or export Label Studio's JSON."
        )
    labels = image.draw(size)
    if labels.shape[::-1] not in sizes:
        raise UsageError(_other_size(image, labels.shape[::-1], shown))
    return labels


def _other_size(image: ExportedImage, size: tuple[int, ...], shown: Size) -> str:
    return (
        f"{image.source} has {size[0]}x{size[1]} pixels, but the image {image.path} has {shown[0]}x{shown[1]}; use "
        "the image that was labeled."
    )


def left_over(paths: Sequence[Path], images: Iterable[ExportedImage]) -> list[Path]:
    """Return the files that are none of the images of an export, whatever folders and links lead to them."""
    used = [image.path for image in images]
    folders = {folder: folder.resolve() for folder in {path.parent for path in (*paths, *used)}}
    places = {folders[path.parent] / path.name for path in used}
    return [path for path in paths if folders[path.parent] / path.name not in places]


def left_over_in(folders: Iterable[Path], images: Iterable[ExportedImage]) -> list[Path]:
    """Return the image files below folders that are none of the images of an export.

    A folder that cannot be searched has none: they are worth a warning, which does not end an import.
    """
    found: set[Path] = set()
    for folder in folders:
        with suppress(UsageError):
            found.update(files_below(folder).images)
    return left_over(sorted(found), images)


class ImageFiles:
    """Image files below a folder, found by the paths that an export lists.

    Args:
        folder (`Path`): The folder.
        without (`Sequence[str]`): Names of folders that hold masks.
    """

    def __init__(self, folder: Path, without: Sequence[str] = ()):
        if not folder.is_dir():
            raise UsageError(f"The folder {folder} does not exist.")
        self.folder = folder
        below = files_below(folder)
        self.paths = [path for path in below.images if not {*without} & {*path.relative_to(folder).parts[:-1]}]
        self._by_name: dict[str, list[Path]] = {}
        for path in self.paths:
            self._by_name.setdefault(composed(path.name), []).append(path)
        self._folders = {part for path in self.paths for part in self._folders_of(path)}
        empty = (part for path in below.empty_folders for part in path.relative_to(folder).parts)
        self._splits = {split_of(part) for part in (*self._folders, *empty)} - {None}
        self._found_elsewhere: list[tuple[str, Path]] = []

    def _folders_of(self, path: Path) -> list[str]:
        return [*map(composed, path.relative_to(self.folder).parts[:-1])]

    def left_over(self, images: Iterable[ExportedImage]) -> list[Path]:
        """Return the files that are none of the images of an export."""
        return left_over(self.paths, images)

    def has(self, name: str) -> bool:
        """Return whether there is a file with a name, in whatever folder."""
        return composed(name) in self._by_name

    def required_folder(self, near: Sequence[str], listed: Iterable[str]) -> str | None:
        """Return the first of the preferred folders that must contain the images of a document, or `None`.

        It exists, and it means a split or contains an image with the name of one that the document lists: other
        folders have this name by chance, such as labels/ with masks beside labels.json.
        """
        paths = (
            path
            for each in listed
            for path in self._by_name.get(composed(each.replace("\\", "/").rpartition("/")[2]), ())
        )
        used = {folder for path in paths for folder in self._folders_of(path)}
        return next(
            (each for each in map(composed, near) if each in (self._folders if split_of(each) else used)), None
        )

    def find(self, listed: str, source: str, near: Sequence[str] = (), required: str | None = None) -> Path:
        """Find the file with a listed path, which may be that of another machine.

        Args:
            listed (`str`): Path in the export; "/" and "\\" separate folders.
            source (`str`): File and item that list it, for messages.
            near (`Sequence[str]`): Names of folders that are preferred. If one means a split of which there is a
                folder, no image is in a folder of another split, unless the listed path names this folder.
            required (`str`, *optional*): Name of the folder that contains every image of which only the name fits.

        Raises:
            UsageError: If there is no such file, or more than one.
        """
        parts = [part for part in PurePosixPath(composed(listed).replace("\\", "/")).parts if part != "."]
        near = [*map(composed, near)]
        is_foreign = not parts or parts[0] in ("/", "..") or parts[0].endswith(":")
        wanted = {split_of(name) for name in near} & self._splits
        found: list[tuple[int, int, Path]] = []
        refused: list[Path] = []
        for path in self._by_name.get(parts[-1] if parts else "", []):
            own = [*map(composed, (self.folder.absolute().name, *path.relative_to(self.folder).parts))]
            shared = _shared_end(own, parts)
            is_elsewhere = shared == 1 and required is not None and required not in own[:-1]
            if is_elsewhere or _is_of_another_split(own[1:-shared], wanted):
                refused.append(path)
            elif shared == len(parts) or is_foreign:
                found.append((shared, len({*near} & {*own}), path))
        if not found:
            instead = f"; {refused[0]} has its name, but is of another folder or split" if refused else ""
            raise UsageError(
                f"{source}: the image {listed!r} is not below {self.folder}{instead}; put it there, or name the "
                "folder of the images in `image_dir`."
            )
        best = max(each[:2] for each in found)
        paths = [path for *match, path in found if tuple(match) == best]
        if len(paths) > 1:
            raise UsageError(
                f"{source}: the image {listed!r} may be {name_some(paths)}; name the folder of the images in "
                "`image_dir`."
            )
        (path,) = paths
        if best[0] == 1 < len(parts) and parts[-2] not in ("/", "..") and path.parent != self.folder and not required:
            self._found_elsewhere.append((listed, path))
        return path

    def notes(self) -> list[str]:
        """Report the images that were found by their names although their folders have other names."""
        if not self._found_elsewhere:
            return []
        listed, path = self._found_elsewhere[0]
        return [
            f"warning: {len(self._found_elsewhere)} images were found by their names in folders other than those that "
            f"the export lists, such as {path} for {listed!r}."
        ]


def _is_of_another_split(folders: Sequence[str], wanted: Collection[str | None]) -> bool:
    found = {split_of(name) for name in folders} - {None}
    return bool(wanted and found and found.isdisjoint(wanted))


def _shared_end(own: Sequence[str], listed: Sequence[str]) -> int:
    count = 0
    while count < min(len(own), len(listed)) and own[-1 - count] == listed[-1 - count]:
        count += 1
    return count
