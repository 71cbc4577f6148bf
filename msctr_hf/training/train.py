"""Training run from its settings to its results, or a dry run."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..data.settings import DataSettings
from ..errors import UsageError
from ..evaluation.scoring import iou_table
from .checkpointing import find_checkpoint
from .devices import refuse_missing_trackers, tf32_products
from .duration import plan_duration
from .interruption import StopRequest
from .loop import WITHOUT_SCORE, TrainingLoop
from .processes import join_processes, locked_on_main
from .replacement import restore
from .run_folder import check_output_dir, holds_a_log, holds_a_model, is_empty, read_log
from .settings import ModelSettings, TrainingSettings
from .setup import Setup

DRY_RUN_STEPS, DRY_RUN_IMAGES = 2, 4


@contextmanager
def reserved(arguments: TrainingSettings) -> Iterator[None]:
    """Connect the processes of a run, and lock its folder until the end: for `train`, and pushing what it saved.

    A dry run locks its temporary folder, since it may try the settings of a run that is in progress.

    Raises:
        UsageError: In all processes, if another run uses the folder.
    """
    join_processes()
    with locked_on_main(_dry_run_folder(arguments) if arguments.dry_run else Path(arguments.output_dir)):
        yield


def train(
    model_arguments: ModelSettings,
    data_arguments: DataSettings,
    arguments: TrainingSettings,
    settings: dict[str, Any],
    publish: Callable[[Path], None] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Train a network, validate it, and keep the best and the last model; the folder must be `reserved`.

    Args:
        model_arguments, data_arguments, arguments: Settings of the initial network, the data and training.
        settings (`dict`): Settings of `MsctrConfig` by name.
        publish (`Callable`, *optional*): Called by the main process with the folder of every new best model.
        command (`str`, *optional*): Command that starts the same run, for run.json; by default that of this process.

    Returns:
        `dict`: Results of the best model, as in `results.json`; empty after a dry run, or if no validated network was
            finite.

    Raises:
        UsageError: If the input is not valid, a file cannot be written, or another process has ended. A folder that
            this call created is removed if nothing was logged or saved yet, and a run that should be replaced is
            restored if nothing was saved yet; earlier checkpoints stay valid.
        Interrupted: If a signal stopped the run after it saved a checkpoint, from which it can be resumed.
    """
    output_dir = Path(arguments.output_dir)
    check_output_dir(output_dir, overwrite=arguments.overwrite_output_dir, resume=arguments.resume is not None)
    if arguments.dry_run:
        _dry_run(model_arguments, data_arguments, arguments, settings)
        return {}
    was_empty = is_empty(output_dir)
    try:
        with tf32_products(arguments.tf32), StopRequest() as stop:
            setup = Setup(model_arguments, data_arguments, arguments, settings, command=command)
            setup.start()
            return TrainingLoop(setup, stop, publish).run()
    except BaseException as error:
        if PartialState().is_main_process and not holds_a_model(output_dir):
            _clean_up(output_dir, was_empty)
        if _lost_another_process(error):
            raise UsageError("Another process of this run has ended; its message says why.") from error
        raise


def _clean_up(output_dir: Path, was_empty: bool) -> None:
    """Clean up after a run that saved nothing: restore the run that it should replace, or remove its folder.

    A folder with a log is kept, since hours of training may have gone into it.
    """
    with suppress(OSError):  # the user should see the error that ended the run, and not one of the cleanup
        restored = restore(output_dir)
        if restored is not None:
            print(f"\n{restored}", file=sys.stderr)
        elif was_empty and not holds_a_log(output_dir):
            shutil.rmtree(output_dir, ignore_errors=True)


def _lost_another_process(error: BaseException) -> bool:
    """Return whether an error means that another process has ended.

    NCCL raises exceptions of its own types. gloo raises a plain RuntimeError, and the remaining processes cannot ask
    each other which one is missing, since each waits in a different call; so errors are recognized by their text.
    """
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error) and PartialState().num_processes > 1
    )


def _dry_run(
    model_arguments: ModelSettings,
    data_arguments: DataSettings,
    arguments: TrainingSettings,
    settings: dict[str, Any],
) -> None:
    """Train for two steps, with everything that belongs to a run, in a temporary folder next to `output_dir`."""
    folder = _dry_run_folder(arguments)
    refuse_missing_trackers(arguments.report_to)
    in_folder = [name for name in arguments.report_to if name == "tensorboard"]  # others would keep a run of two steps
    learns_from_labels_alone = arguments.unlabeled_start_step >= (arguments.max_steps or math.inf)
    short = replace(
        arguments,
        output_dir=str(folder),
        overwrite_output_dir=False,
        resume=None,
        max_steps=DRY_RUN_STEPS,
        num_train_epochs=None,
        logging_steps=1,
        report_to=in_folder or ["none"],
        validation_steps=DRY_RUN_STEPS,
        checkpointing_steps=1,
        unlabeled_start_step=DRY_RUN_STEPS if learns_from_labels_alone else 0,
        profile=False,
    )
    shutil.rmtree(folder, ignore_errors=True)  # left behind by a dry run that was killed
    try:
        with tf32_products(arguments.tf32), StopRequest() as stop:
            setup = Setup(model_arguments, data_arguments, short, settings, validation_images=DRY_RUN_IMAGES)
            max_steps = plan_duration(arguments, setup.epochs).max_steps
            setup.start()
            TrainingLoop(setup, stop).run()
            setup.resume_from(find_checkpoint(folder, "auto"))
        if setup.accelerator.is_main_process:
            last = [line for line in read_log(folder) if "images_per_second" in line][-1]
            seconds = max_steps * setup.images_per_step / last["images_per_second"]
            print(
                f"dry run: training, validation, saving and loading work; {last['used_mb']:.0f} MB in use, "
                f"{last['images_per_second']:.1f} images a second, so {max_steps} steps take about "
                f"{_format_seconds(seconds)} without validation"
            )
    finally:
        if PartialState().is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def _dry_run_folder(arguments: TrainingSettings) -> Path:
    output_dir = Path(arguments.output_dir).resolve()  # `..` has no name
    return output_dir.with_name(f".{output_dir.name}.dry_run")


def _format_seconds(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def print_results(results: dict[str, Any], output_dir: str | Path) -> None:
    """Print the scores of all classes and the output folder, on the main process."""
    if not PartialState().is_main_process:
        return
    if results["mean_iou"] is not None:
        print(iou_table(results))
    which, metric = f"best at step {results['step']}", results.get(WITHOUT_SCORE)
    if metric is not None:
        which = f"no labeled pixel for {metric}, so the newest model was kept, of step {results['step']}"
    print(f"{which}; model, results.json and predictions.png are in {output_dir}")
