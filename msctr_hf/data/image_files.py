"""Search for image files below a folder: linked folders are followed, hidden files and folders are left out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError, as_usage_error
from .channels import ARRAY_SUFFIX, Channels

# .heic and .jxl, too: without a plugin Pillow cannot read them, but then they are refused by name
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jpe", ".jfif", ".jif", ".jfi", ".apng", ".dib",
    ".gif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".avif", ".heic",
    ".heif", ".jxl",
)  # fmt: skip
# lossless ones; without .gif, since programs that write it number the colors anew
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".apng", ".dib", ".pbm", ".pgm", ".pnm", ".ppm")
LABEL_SUFFIXES_BY_REQUEST = (".gif", ".tga", ".webp")  # .webp may be lossy, in which case the file is refused
# texts, annotations, georeferences, thumbnails and archives that other programs keep in folders of images
_COMPANION_SUFFIXES = (
    ".txt", ".md", ".rst", ".log", ".csv", ".tsv", ".json", ".jsonl", ".geojson", ".xml", ".yaml", ".yml", ".toml",
    ".html", ".pdf", ".xmp", ".tfw", ".jgw", ".pgw", ".wld", ".prj", ".ovr", ".db", ".ini", ".lnk", ".url", ".cache",
    ".md5", ".sha256", ".zip", ".tar", ".gz", ".7z", ".py", ".sh", ".ipynb",
)  # fmt: skip
NAMES_SHOWN = 5


@dataclass(frozen=True)
class FilesBelow:
    """Files below a folder.

    Args:
        files (`list[Path]`): Files of any kind, sorted.
        broken_links (`list[Path]`): Links that lead to no file and no folder, sorted.
        empty_folders (`list[Path]`): Folders below it without any visible file or folder, sorted.
    """

    files: list[Path]
    broken_links: list[Path]
    empty_folders: list[Path]

    @property
    def images(self) -> list[Path]:
        """Files whose names end as those of images."""
        return [path for path in self.files if is_image(path)]


def is_image(path: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> bool:
    """Return whether the name of a file ends as that of an image."""
    return path.suffix.lower() in suffixes


def readable_suffixes(channels: Channels | None) -> tuple[str, ...]:
    """Return the endings of files that a network of these channels reads."""
    return IMAGE_SUFFIXES if channels is None else (*IMAGE_SUFFIXES, ARRAY_SUFFIX)


def may_be_image(path: Path) -> bool:
    """Return whether a file may be an image under an unusual name, and is not known to be something else."""
    return path.suffix.lower() not in _COMPANION_SUFFIXES


def files_below(folder: Path) -> FilesBelow:
    """Find the files in a folder and all its subfolders.

    Links to folders are followed, unless they lead back to a folder above them. Names that start with a dot are left
    out below the folder; its own path may have them.

    Raises:
        UsageError: If a folder cannot be read, or the name of a file is not valid text.
    """
    files: list[Path] = []
    broken_links: list[Path] = []
    empty_folders: list[Path] = []
    waiting: list[tuple[Path, tuple[Path, ...]]] = [(folder, (_real(folder),))]  # a folder, and those above it
    while waiting:
        place, above = waiting.pop()
        with as_usage_error(OSError, prefix=f"The folder {place} cannot be read: "), os.scandir(place) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        if not visible and place != folder:
            empty_folders.append(place)
        for entry in visible:
            path = place / entry.name
            _refuse_undecodable(path)
            linked = entry.is_symlink()
            if path.is_dir() if linked else entry.is_dir():
                real = _real(path) if linked else above[-1] / entry.name
                if not (linked and _leads_back(real, above)):
                    waiting.append((path, (*above, real)))
            elif path.is_file() if linked else entry.is_file():
                files.append(path)
            elif linked and not path.exists():
                broken_links.append(path)
    return FilesBelow(sorted(files), sorted(broken_links), sorted(empty_folders))


def visible_entries(folder: Path, pattern: str = "*") -> list[Path]:
    """Find files and folders by a pattern relative to a folder, sorted.

    Names that start with a dot are left out, such as the companions "._NAME" that a Mac adds to files.
    """
    found = folder.glob(pattern)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def passes_a_circle(path: Path, root: Path) -> bool:
    """Return whether the way from a folder to a file below it passes a link that leads back to a folder above it."""
    above = [_real(root)]
    for folder in [path.parents[depth] for depth in reversed(range(len(path.relative_to(root).parts) - 1))]:
        real = _real(folder)
        if folder.is_symlink() and _leads_back(real, above):
            return True
        above.append(real)
    return False


def name_some(names: Iterable[Path | str]) -> str:
    """Join the first names for a sentence."""
    names = list(names)
    return ", ".join(map(str, names[:NAMES_SHOWN])) + (", ..." if len(names) > NAMES_SHOWN else "")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _leads_back(real: Path, above: Iterable[Path]) -> bool:
    return any(real == folder or real in folder.parents for folder in above)


def _refuse_undecodable(path: Path) -> None:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"The name {os.fsencode(path.name)!r} in {path.parent} is not UTF-8; rename it.") from None
