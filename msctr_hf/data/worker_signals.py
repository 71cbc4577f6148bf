"""Keep data-loading workers alive when a scheduler signals the run, which needs them to finish its step."""

from __future__ import annotations

import os
import signal
import threading


def ignore_signals(worker_id: int) -> None:
    """Let a worker ignore Ctrl-C, and SIGTERM from anyone but the process that started it (`worker_init_fn`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # missing on macOS, where a signaled worker ends, and the run with it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_the_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
