"""Interruption of a run by a signal: SIGTERM of a scheduler, or Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: "try again later"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """Exception of a run that a signal stopped after it saved a checkpoint; commands exit with `EXIT_INTERRUPTED`."""


class StopRequest:
    """Context that records SIGTERM and SIGINT in `requested`; the same signal again acts as outside the context.

    A signal of the other kind is recorded too: SIGTERM of a scheduler, a minute after Ctrl-C, must not cost the steps.
    In other threads than the main one, where Python does not allow signal handlers, signals are not recorded.

    Args:
        reaction (`str`): What the process does after the first signal, for the line that reports it.
    """

    def __init__(self, reaction: str = "saving a checkpoint") -> None:
        self.reaction = reaction
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.getsignal(number)  # first, since the signal may arrive at once
                signal.signal(number, self._record)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore_handlers()

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        # not print, which is not reentrant: the signal may arrive while something is being printed
        os.write(
            2,
            f"\n{signal.Signals(number).name}: {self.reaction}; send it again to end immediately\n".encode(),
        )
        self._restore_handler(signal.Signals(number))

    def _restore_handlers(self) -> None:
        for number in _SIGNALS:
            self._restore_handler(number)

    def _restore_handler(self, number: signal.Signals) -> None:
        handler = self._previous.pop(number, None)  # none if the signal arrived again meanwhile
        if handler is not None:
            signal.signal(number, handler)
