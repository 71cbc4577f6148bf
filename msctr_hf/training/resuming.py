"""Resuming from a checkpoint: what may differ from the run that wrote it, and what may not.

`Setup.resume_from` takes its states over, `TrainingLoop.finish_what_was_due` makes up for what was cut off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..settings import changed
from .checkpointing import SETTINGS_FILE, Progress
from .run_folder import read_json
from .settings import add_missing, purpose, purposes

# how the images of a step are split
_BATCH = (*(name for name, about in purposes().items() if about.on_resume == "batch"), "num_processes")


def compare_settings(checkpoint: Path, settings: dict[str, Any]) -> list[str]:
    """Check that a run can go on from a checkpoint with these settings.

    Args:
        checkpoint (`Path`): A complete one.
        settings (`dict`): All settings of the run, with `num_processes`.

    Returns:
        `list[str]`: sentences about what differs, but does no harm.

    Raises:
        UsageError: If the settings describe another run; the message names every difference.
    """
    saved = read_json(checkpoint / SETTINGS_FILE)
    if not saved:
        raise UsageError(f"`resume`: {checkpoint} holds no {SETTINGS_FILE}; it was written by another version.")
    saved = add_missing(saved, settings)
    different = changed(saved, settings)
    refused = [name for name in different if name not in _BATCH and purpose(name).on_resume == "refused"]
    if refused:
        listed = "; ".join(f"{name} was {saved.get(name)!r} and is {settings.get(name)!r}" for name in refused)
        raise UsageError(
            f"`resume`: {checkpoint} is of a run with other settings: {listed}. Keep them, or start a new run from "
            "its last model with `model_name_or_path='OUTPUT_DIR/last'`."
        )
    notes = [
        f"{name} was {_in_words(saved.get(name))} and is {_in_words(settings.get(name))} from here on."
        for name in different
        if purpose(name).on_resume == "announced"
    ]
    if any(name in different for name in _BATCH):
        notes.append(_compare_batches(saved, settings))
    return notes


def _in_words(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _compare_batches(saved: dict[str, Any], settings: dict[str, Any]) -> str:
    """One step must see as many images as before; how they are split may change."""
    before, now = (_images_per_step(each) for each in (saved, settings))
    if before != now:
        per_process = before / (settings["num_processes"] * settings["gradient_accumulation_steps"])
        hint = f" `batch_size={per_process:.0f}` would." if per_process.is_integer() else ""
        raise UsageError(
            f"`resume`: a step saw {_split(saved)} = {before} images and would see {_split(settings)} = {now}; they "
            f"must stay as many.{hint}"
        )
    if settings.get("streaming"):
        raise UsageError(
            f"`resume`: a stream read by {_split(saved)} cannot be taken up by {_split(settings)}; keep the split."
        )
    return (
        f"A step's {now} images were {_split(saved)} and are {_split(settings)} from here on: the order of the data "
        "stays, the random numbers of anchors and dropout do not."
    )


def _images_per_step(settings: dict[str, Any]) -> int:
    return settings["batch_size"] * settings["gradient_accumulation_steps"] * settings["num_processes"]


def _split(settings: dict[str, Any]) -> str:
    return (
        f"{settings['batch_size']} x {settings['gradient_accumulation_steps']} batches x "
        f"{settings['num_processes']} processes"
    )


def splits_as_before(checkpoint: Path, settings: dict[str, Any]) -> bool:
    """Whether batches and processes are those of the checkpoint."""
    saved = read_json(checkpoint / SETTINGS_FILE)
    return all(saved.get(name) == settings.get(name) for name in _BATCH)


def move_to_the_same_image(progress: Progress, checkpoint: Path, settings: dict[str, Any]) -> None:
    """Count the batches of the epoch as this split of a step counts them."""
    saved = read_json(checkpoint / SETTINGS_FILE)
    images = progress.batches_in_epoch * saved["batch_size"] * saved["num_processes"]
    progress.batches_in_epoch = images // (settings["batch_size"] * settings["num_processes"])
