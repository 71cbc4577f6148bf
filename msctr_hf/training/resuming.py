"""Rules for resuming from a checkpoint: which settings may differ from those of the run that wrote it.

`Setup.resume_from` restores the states; `TrainingLoop.finish_what_was_due` completes what an interruption cut off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..settings import changed
from .checkpointing import SETTINGS_FILE, Progress
from .run_folder import read_json
from .settings import add_missing, in_full, purpose, purposes

LENGTH = "length"  # key of a checkpoint's settings: numbers of steps that were derived from them
_DERIVED_FROM = ("max_steps", "num_train_epochs", "validation_steps")

# settings that split the images of a step into batches and processes
_BATCH = (*(name for name, info in purposes().items() if info.on_resume == "batch"), "num_processes")


def compare_settings(checkpoint: Path, settings: dict[str, Any]) -> list[str]:
    """Check that a run can be resumed from a checkpoint with these settings.

    Args:
        checkpoint (`Path`): Folder of a complete checkpoint.
        settings (`dict`): All settings of the run to resume, and `num_processes`.

    Returns:
        `list[str]`: Sentences about settings that differ and are allowed to.

    Raises:
        UsageError: If the settings describe another run; the message lists all differences.
    """
    saved = _read_settings(checkpoint)
    if not saved:
        raise UsageError(f"`resume`: {checkpoint} does not contain {SETTINGS_FILE}; another version wrote it.")
    saved = add_missing(saved, settings)
    meant = changed(in_full(saved), in_full(settings))
    different = [name for name in changed(saved, settings) if name in meant]
    refused = [name for name in different if name not in _BATCH and purpose(name).on_resume == "refused"]
    if refused:
        listed = "; ".join(f"{name} was {saved.get(name)!r} and is {settings.get(name)!r}" for name in refused)
        raise UsageError(
            f"`resume`: {checkpoint} belongs to a run with other settings: {listed}. Keep them, or start a new run "
            "from its last model with `model_name_or_path='OUTPUT_DIR/last'`."
        )
    before, now = (_unlabeled_per_step(each) for each in (saved, settings))
    if before != now:
        raise UsageError(
            f"`resume`: a step saw {before} images without labels and would see {now}; their number must not change: "
            "keep `unlabeled_dir` or `unlabeled`, and set `unlabeled_batch_size`."
        )
    notes = [
        f"{name} was {_in_words(saved.get(name))} and is {_in_words(settings.get(name))} from here on."
        for name in different
        if purpose(name).on_resume == "announced"
    ]
    if settings.get("streaming") and "num_workers" in different:
        notes.append(
            f"num_workers was {saved.get('num_workers')} and is {settings['num_workers']} from here on: the order of "
            "a stream depends on it, so images of this epoch may be seen twice or not at all."
        )
    if any(name in different for name in _BATCH):
        notes.append(_compare_batches(saved, settings))
    return notes


def _in_words(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _compare_batches(saved: dict[str, Any], settings: dict[str, Any]) -> str:
    """Check that a step sees as many images as before, and describe the new split."""
    before, now = (_images_per_step(each) for each in (saved, settings))
    if before != now:
        per_process = before / (settings["num_processes"] * settings["gradient_accumulation_steps"])
        hint = f" Use `batch_size={per_process:.0f}`." if per_process.is_integer() else ""
        raise UsageError(
            f"`resume`: a step saw {_split(saved)} = {before} images and would see {_split(settings)} = {now}; their "
            f"number must not change.{hint}"
        )
    if settings.get("streaming"):
        raise UsageError(
            f"`resume`: a stream that was read by {_split(saved)} cannot be resumed by {_split(settings)}; keep the "
            "split."
        )
    return (
        f"The {now} images of a step were {_split(saved)} and are {_split(settings)} from here on: the order of the "
        "data stays the same, the random numbers of anchors and dropout change."
    )


def _images_per_step(settings: dict[str, Any]) -> int:
    return settings["batch_size"] * settings["gradient_accumulation_steps"] * settings["num_processes"]


def _unlabeled_per_step(settings: dict[str, Any]) -> int:
    if settings.get("unlabeled") is None and settings.get("unlabeled_dir") is None:
        return 0
    per_batch = settings.get("unlabeled_batch_size") or settings["batch_size"]
    return per_batch * settings["gradient_accumulation_steps"] * settings["num_processes"]


def _split(settings: dict[str, Any]) -> str:
    return (
        f"{settings['batch_size']} x {settings['gradient_accumulation_steps']} batches x "
        f"{settings['num_processes']} processes"
    )


def splits_as_before(checkpoint: Path, settings: dict[str, Any]) -> bool:
    """Return whether the images of a step are split into batches and processes as in the checkpoint."""
    meant = changed(in_full(_read_settings(checkpoint)), in_full(settings))
    return not any(name in meant for name in _BATCH)


def length_before(checkpoint: Path, settings: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of steps that the run had before, which another split of a step must not change.

    An epoch drops the images that do not fill a batch of all processes, so another split could make it longer.

    Args:
        checkpoint (`Path`): Folder of a complete checkpoint.
        settings (`dict`): All settings of the run to resume.

    Returns:
        `dict[str, int]`: `max_steps` and `validation_steps`; empty if the settings that they were derived from have
        changed, or an older version wrote the checkpoint.
    """
    saved = read_json(checkpoint / SETTINGS_FILE)
    is_same = all(saved.get(name) == settings.get(name) for name in _DERIVED_FROM)
    return saved.get(LENGTH, {}) if is_same else {}


def _read_settings(checkpoint: Path) -> dict[str, Any]:
    saved = read_json(checkpoint / SETTINGS_FILE)
    return {name: value for name, value in saved.items() if name != LENGTH}


def count_images_of_older_version(progress: Progress, checkpoint: Path) -> list[str]:
    """Convert the position in the data if the checkpoint is of a version that counted batches.

    Returns:
        `list[str]`: A sentence about what changes from here on, if something does.
    """
    if progress.batches_in_epoch is None:
        return []
    saved = read_json(checkpoint / SETTINGS_FILE)
    progress.images_in_epoch = progress.batches_in_epoch * saved["batch_size"] * saved["num_processes"]
    progress.batches_in_epoch = None
    if saved["gradient_accumulation_steps"] == 1:
        return []
    return [
        f"{checkpoint} is of an older version, in which the last step of an epoch could have fewer batches: from here "
        "on all steps have the same number, and epochs and an exponential schedule are counted by images."
    ]
