"""Locks of output folders, so that two processes never write the files of one folder at the same time.

The lock of FOLDER is a file .FOLDER.lock next to it: the folder itself may be renamed or replaced, and an empty one
stays empty. A folder at which a volume is mounted is locked itself, since next to it every container has another
file; such a folder cannot be renamed. The kernel releases the lock when its process ends, however it ends; a file that
a killed process leaves behind locks nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UsageError, brief_reason, warn_caller

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TRIES = 100  # of other processes that remove the file between two system calls of this one

_held: set[int] = set()  # descriptors of the locks of this process


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Keep other processes, and other threads of this one, from locking a folder.

    Where the file system has no locks, a warning says so, and nothing is locked.

    Args:
        folder (`Path`, *optional*): Folder that this process is about to read and write, which need not exist;
            nothing is locked without one.

    Raises:
        UsageError: If it is locked already, in which case the message names the process if it is known, or if its path
            cannot be followed. Nothing is changed then.
    """
    if folder is None:
        yield
        return
    try:
        resolved = folder.resolve()  # all links to a folder have the same lock
        path = resolved if os.path.ismount(resolved) else resolved.parent / f".{resolved.name}.lock"
        missing = [parent for parent in path.parents if not parent.exists()]
    except (OSError, RuntimeError) as error:  # before Python 3.13, links in a circle are a RuntimeError
        raise UsageError(
            f"`output_dir`: {folder} cannot be reached ({brief_reason(error)}); choose another folder."
        ) from error
    descriptor = None
    try:
        descriptor = _acquire(path)
    except BlockingIOError:
        raise UsageError(
            f"`output_dir`: {folder} is in use by {_holder(path)}; wait until it ends, or choose another folder."
        ) from None
    except OSError as error:
        warn_caller(f"{folder} cannot be locked ({brief_reason(error)}); start nothing else in it until this ends.")
    try:
        yield
    finally:
        if descriptor in _held:  # not in a forked copy of this process
            if path != resolved:
                with suppress(OSError):
                    path.unlink()  # before it is released, so that nobody else can have locked it yet
            _close(descriptor)
            for parent in missing:
                with suppress(OSError):  # it is not empty
                    parent.rmdir()


def _acquire(path: Path) -> int:
    """Create a file, unless the path is a folder, lock it and return its descriptor.

    Raises:
        BlockingIOError: If another process, or another call in this one, holds the lock.
        OSError: If the file cannot be created or locked.
    """
    if fcntl is None:
        raise OSError("this system has no flock")
    is_folder = path.is_dir()
    flags = os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    for tries_left in reversed(range(_TRIES)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:
            if tries_left:
                continue  # another process has just removed the empty folder around it
            raise  # no file can be created in this folder: /proc
        _held.add(descriptor)
        try:
            # Not lockf, whose locks belong to the process: two threads, as in a notebook, would both get it, and
            # closing any other descriptor of the file would release it. The price of flock, that forked processes
            # share the lock and could keep it after a kill of this one, is paid by `_close_copies`.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(path, descriptor):
                if not is_folder:
                    os.truncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except OSError as error:
            if not is_folder and not isinstance(error, BlockingIOError):
                path.unlink(missing_ok=True)  # the file system has no locks
            _close(descriptor)
            raise
        _close(descriptor)  # its holder removed the file after it was opened here, and before it was locked
    raise BlockingIOError  # others lock and release it all the time


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace", encoding="utf-8") or "another process"
    return "another process"


def _close(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _close_copies() -> None:
    """Close the copies of the locks in a forked process, such as a worker that loads data.

    Closing a copy does not release the lock; a copy that stays open would keep it when this process is killed.
    """
    while _held:
        os.close(_held.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=_close_copies)
