"""Being told to stop: a scheduler's SIGTERM, or Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: "try again later"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """A run was told to stop and has saved where it stands; `msctr train` exits with `EXIT_INTERRUPTED`."""


class StopRequest:
    """Remembers SIGTERM and SIGINT within a `with` block; a second signal acts as it would have without.

    Args:
        reaction (`str`): What the first signal leads to, for the line that answers it.
    """

    def __init__(self, reaction: str = "saving a checkpoint") -> None:
        self.reaction = reaction
        self.came = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # others may not handle signals
            self._previous = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._give_back()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        # not print: the signal may have come while something was being printed
        os.write(2, f"\n{signal.Signals(number).name}: {self.reaction}; once more ends at once\n".encode())
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
