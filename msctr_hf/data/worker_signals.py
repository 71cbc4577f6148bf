"""Signal handling of data-loading workers, which must outlive a signal so that the run can finish its step."""

from __future__ import annotations

import os
import signal
import threading


def ignore_signals(worker_id: int) -> None:
    """Make a worker ignore Ctrl-C, and SIGTERM from any process but its parent; to be used as `worker_init_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # missing on macOS, where a signal ends a worker, and with it the run
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_the_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
