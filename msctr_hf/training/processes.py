"""Processes of a run: they find each other, and the main process acts for all of them."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, get_int_from_env, parse_flag_from_env

from ..errors import UsageError
from ..folder_lock import locked

# variables in which launchers state the number of processes that they have started; torchrun and Accelerate set the
# first, and take precedence over an MPI that has started them
_NUMBERS_OF_PROCESSES = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]

# The main process alone counts the pixels of a large data set, for example, while the others wait for it; by default
# NCCL would end them after 10 minutes. The launcher ends all at once where one fails; where one hangs, they wait so
# long.
_LONGEST_WAIT = timedelta(hours=2)


def join_processes(cpu: bool = False) -> PartialState:
    """Connect this process with the others that a launcher has started, before anything is read or written.

    Args:
        cpu (`bool`): Whether to use the CPU even if there is a GPU.

    Raises:
        UsageError: If Accelerate does not connect the processes, so that each would do the work of all.
    """
    is_ours_to_leave = not torch.distributed.is_initialized()
    # `Accelerator` reads this variable, but `PartialState`, which it would find initialized, does not
    state = PartialState(cpu=cpu or parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_LONGEST_WAIT)
    if is_ours_to_leave:
        atexit.register(leave_process_group)
    started = get_int_from_env(_NUMBERS_OF_PROCESSES, 1)
    if started > state.num_processes:
        raise UsageError(
            f"A launcher has started {started} processes, but Accelerate does not connect them on this machine "
            f"(device {state.device}), so each would do all of the work in the same folder; launch one process, or "
            "use a configuration for the devices of this machine, which for processes on CPUs is "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {started} ..."
        )
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
