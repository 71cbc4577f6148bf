"""Processes of a run: they find each other, and the main process acts for all of them."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from ..errors import UsageError
from ..folder_lock import locked


def join_processes(cpu: bool = False) -> PartialState:
    """Connect this process with the others that a launcher has started, before anything is read or written.

    Args:
        cpu (`bool`): Whether to use the CPU even if there is a GPU.
    """
    is_ours_to_leave = not torch.distributed.is_initialized()
    # `Accelerator` reads this variable, but `PartialState`, which it would find initialized, does not
    state = PartialState(cpu=cpu or parse_flag_from_env("ACCELERATE_USE_CPU"))
    if is_ours_to_leave:
        atexit.register(leave_process_group)
    return state


def leave_process_group() -> None:
    """Destroy the process group, if there still is one, before the interpreter shuts down.

    Otherwise gloo's threads can release tensors when Python is no longer able to, and abort a process that has
    succeeded ("terminate called without an active exception", PyTorch's pull request 179291).
    """
    if torch.distributed.is_initialized():
        gc.collect()  # a network that still refers to the group would keep its threads
        torch.distributed.destroy_process_group()


def on_main(function: Callable[[], Any]) -> Any:
    """Call a function in the main process and return its result, or raise its `UsageError`, in all processes.

    The others may not have access to the same folders.
    """
    found: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            found[0] = function()
        except UsageError as error:
            found[1] = str(error)
    result, fault = broadcast_object_list(found)
    if fault is not None:
        raise UsageError(fault)
    return result


@contextmanager
def locked_on_main(folder: Path | None) -> Iterator[None]:
    """Lock a folder for all processes of this run, as `locked` does for one.

    Raises:
        UsageError: In all processes, if it is locked already.
    """
    with ExitStack() as lock:
        on_main(lambda: lock.enter_context(locked(folder)))
        yield
