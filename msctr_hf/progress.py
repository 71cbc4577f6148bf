"""Progress of long loops: a bar in a terminal or a notebook, a plain line every so often in files and pipes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import Any, TextIO

from tqdm.auto import tqdm
from tqdm.std import tqdm as terminal_bar

SECONDS_BETWEEN_LINES = 30.0


def progress(
    entries: Iterable[Any] | None = None,
    *,
    title: str,
    unit: str,
    total: int | None = None,
    start: int = 0,
    shown: bool = True,
    keep: bool = False,
) -> Any:
    """Show the progress of a loop on stderr; iterate over the result, or call its `update`.

    Args:
        entries (`Iterable`, *optional*): Entries that the loop iterates over; without them, call `update`.
        title (`str`): Name of the work, such as "training".
        unit (`str`): Name of one entry, in the singular, such as "step".
        total (`int`, *optional*): Number of entries; the length of `entries` by default.
        start (`int`): Number of entries that were done before.
        shown (`bool`): Whether this process shows anything. Where several work together, only the main process may:
            bars of two processes overwrite each other.
        keep (`bool`): Whether the finished bar stays in the terminal; in a file, whether the last line is written
            even if the loop has written no other.

    Returns:
        `tqdm` in a terminal or a notebook, `ProgressLines` elsewhere; both are context managers too.
    """
    if shown and _draws_bars():
        return tqdm(entries, desc=title, unit=unit, total=total, initial=start, leave=keep)
    silent = not shown or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return ProgressLines(entries, title, unit, total, start, silent, keep)


def is_terminal() -> bool:
    """Return whether stderr, where progress is shown, is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(text: str, file: TextIO | None = None) -> None:
    """Print a message immediately, to stdout by default, above the bars that a terminal shows."""
    stream = sys.stdout if file is None else file
    if _draws_bars():
        terminal_bar.write(text, file=stream)  # hides the bars while it prints
    else:
        print(text, file=stream)
    # files and pipes buffer stdout but not stderr: without this, lines and progress come in the wrong order
    stream.flush()


def _draws_bars() -> bool:
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return in_notebook or is_terminal()


class ProgressLines:
    """Replacement for `tqdm` in files and pipes: it writes whole lines, at most one every 30 seconds and the last."""

    def __init__(
        self,
        entries: Iterable[Any] | None,
        title: str,
        unit: str,
        total: int | None = None,
        start: int = 0,
        silent: bool = False,
        keep: bool = True,
    ):
        self.entries = () if entries is None else entries
        self.title = title
        self.unit = unit
        self.total = (length_hint(self.entries) or None) if total is None else total  # None for a stream
        self.start = self.n = start
        self.silent = silent
        self.keep = keep
        self._values: dict[str, Any] = {}
        self._started = self._written = time.monotonic()
        self._written_at: int | None = None  # value of `n` in the last line

    def __iter__(self) -> Iterator[Any]:
        with self:
            for entry in self.entries:
                yield entry
                self.update()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def update(self, n: float | None = 1) -> None:
        """Count `n` more, and write a line if the last one is old enough."""
        self.n += int(n or 0)
        if time.monotonic() - self._written >= SECONDS_BETWEEN_LINES:
            self._write()

    def set_postfix(self, **values: Any) -> None:
        """Set the values that the next lines show at their end."""
        self._values = values

    def close(self) -> None:
        """Write the last line."""
        if self.n != self._written_at and (self.keep or self._written_at is not None):
            self._write()

    def _write(self) -> None:
        self._written, self._written_at = time.monotonic(), self.n
        if not self.silent:
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        elapsed, done = time.monotonic() - self._started, self.n - self.start
        of_total = f"/{self.total}" if self.total else ""
        parts = [f"{self.title}: {self.n}{of_total} {self.unit}s", f"{tqdm.format_interval(elapsed)} elapsed"]
        if self.total and done > 0 and self.n < self.total:
            parts.append(f"{tqdm.format_interval(elapsed / done * (self.total - self.n))} left")
        return ", ".join([*parts, *(f"{name}={value}" for name, value in self._values.items())])
