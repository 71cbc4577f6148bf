"""Stopping a run by a signal: SIGTERM of a scheduler, or Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: "try again later"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """A run was told to stop and has saved a checkpoint; `msctr train` then exits with `EXIT_INTERRUPTED`."""


class StopRequest:
    """Record SIGTERM and SIGINT within a `with` block; a second signal acts as if there were no block.

    Outside of the main thread, where Python does not allow signal handlers, signals are left alone.

    Args:
        reaction (`str`): What follows from the first signal, for the line that answers it.
    """

    def __init__(self, reaction: str = "saving a checkpoint") -> None:
        self.reaction = reaction
        self.came = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._give_back()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        # not print, which is not reentrant: the signal may have come while something was being printed
        os.write(2, f"\n{signal.Signals(number).name}: {self.reaction}; once more ends at once\n".encode())
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
