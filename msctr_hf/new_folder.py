"""New folders, which get their content when all of it is written, and have none of it after an error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError

_UNFINISHED = ".partial"


def refuse_used(folder: Path, argument: str) -> None:
    """Refuse a path at which a new folder cannot be written.

    Args:
        folder (`Path`): Folder that is about to be written; it must be empty or missing.
        argument (`str`): Argument that names it, for the message.

    Raises:
        UsageError: If it is a file, or contains anything but what a killed process has left.
    """
    place = _place(folder)
    is_file = place.exists() and not place.is_dir()
    if is_file or (place.is_dir() and any(path.name != _UNFINISHED for path in place.iterdir())):
        raise UsageError(
            f"`{argument}`: {folder} is a file or is not empty, and nothing is replaced; name another folder."
        )


@contextmanager
def written_whole(folder: Path, argument: str, *, last: str = "") -> Iterator[Path]:
    """Give a folder whose content gets its place when all of it is written, and is removed after an error.

    A folder that exists is filled: it may be the working directory, a link or a mounted disk, none of which can be
    replaced. What a killed process has left is removed at the start.

    Args:
        folder (`Path`): Folder that is written; it must be empty or missing, and may be `.` or lead upward.
        argument (`str`): Argument that names it, for messages.
        last (`str`): Name of the file that comes last into a folder that exists, without which it is not complete.

    Raises:
        UsageError: If it is a file or not empty, or nothing can be written there; before anything is computed.
    """
    refuse_used(folder, argument)
    place = _place(folder)
    beside, inside = place.with_name(f".{place.name}{_UNFINISHED}"), place / _UNFINISHED
    for left in (beside, inside):
        shutil.rmtree(left, ignore_errors=True)
    partial = inside if place.is_dir() else beside
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"`{argument}`: {folder} could not be written ({error.strerror}).") from error
    try:
        yield partial
        if partial == beside:
            partial.rename(place)
        else:
            for path in sorted(partial.iterdir(), key=lambda path: path.name == last):
                path.rename(place / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _place(folder: Path) -> Path:
    """Return where a folder is: `.` has no name, and `new/..` exists although `new` does not."""
    return Path(os.path.realpath(folder))
