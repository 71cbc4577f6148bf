"""Checkpoints in OUTPUT_DIR/checkpoints/step_N that are either complete or ignored.

A checkpoint is written to a temporary folder, fsynced and renamed; then its marker is written, which lists every file
with size and checksum. A folder without a marker is not a checkpoint, and corrupt ones are skipped.

The result of a validation is added to the checkpoint of its step as a separate file, with its own checksum and by a
single rename. The files that the marker lists never change, so a kill at any time leaves a valid checkpoint: either
one whose validation is still due, or one whose validation is done.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import SCALER_NAME, gather_object
from safetensors import SafetensorError

from ..errors import UsageError, shorten
from .data_record import DATA_FILE
from .run_folder import CHECKPOINTS, MARKER, read_json, replace_file, share_permissions, sync, write_json

SETTINGS_FILE = "settings.json"
PROGRESS_FILE = "progress.json"  # written after a validation; it overrides the progress in states.pt
NO_SCORE = -1.0  # below every score
_SHARED_FILE = "states.pt"
_PARTIAL = ".partial"
_CHANGED_BY_A_VALIDATION = (
    "validated_step", "best_score", "best_results", "validations_without_best", "measured_on",
)  # fmt: skip
_FORMER_NAMES = {"best_mean_iou": "best_score"}  # names in checkpoints of older versions
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # raised by Python, by torch.save and by safetensors


@dataclass
class Progress:
    """Progress of a run, which is saved with every checkpoint."""

    step: int = 0
    epoch: int = 0
    images_in_epoch: int = 0  # images of this epoch that were trained on, in all processes
    batches_in_epoch: int | None = None  # in checkpoints of older versions, instead of `images_in_epoch`
    validated_step: int = 0
    best_score: float = NO_SCORE  # best value of `metric_for_best_model`
    best_results: dict[str, Any] = field(default_factory=dict)
    validations_without_best: int = 0  # number of validations in a row, up to the newest, without a new best model
    measured_on: dict[str, Any] = field(default_factory=dict)  # validation set and classes of the best score
    skipped_steps: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the values for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of a checkpoint, even if an older version wrote it."""
        for name, value in state.items():
            setattr(self, _FORMER_NAMES.get(name, name), value)

    def forget_scores(self, measured_on: dict[str, Any]) -> None:
        """Begin again with the best score, on another validation set, and repeat the validation of this step."""
        self.best_score, self.best_results, self.validations_without_best = NO_SCORE, {}, 0
        self.validated_step = min(self.validated_step, self.step - 1)
        self.measured_on = measured_on


class Stateful(Protocol):
    """Object whose state is part of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and values of built-in types."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restore a state that `state_dict` returned."""


@dataclass(frozen=True)
class States:
    """States in a checkpoint in addition to network, optimizer and random numbers, which Accelerate saves.

    Accelerate could save these too, but would read them back as pickles that may run code.

    Args:
        shared (`dict[str, Stateful]`): Objects whose state is the same in all processes.
        own (`dict[str, Stateful]`): Objects whose state differs between processes.
    """

    shared: dict[str, Stateful]
    own: dict[str, Stateful]

    def save(self, folder: Path, accelerator: Accelerator) -> None:
        """Write the states of this process; the main process also writes the shared ones."""
        torch.save({name: one.state_dict() for name, one in self.own.items()}, folder / _own_file(accelerator))
        if accelerator.is_main_process:
            torch.save({name: one.state_dict() for name, one in self.shared.items()}, folder / _SHARED_FILE)

    def load(self, folder: Path, accelerator: Accelerator, *, own: bool) -> None:
        """Restore the shared states and, if `own`, the states of this process."""
        files = [(_SHARED_FILE, self.shared), *([(_own_file(accelerator), self.own)] if own else [])]
        for name, states in files:
            saved = torch.load(folder / name, map_location="cpu", weights_only=True)
            for key, one in states.items():
                one.load_state_dict(saved[key])


def _own_file(accelerator: Accelerator) -> str:
    return f"states_{accelerator.process_index}.pt"


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    step: int,
    states: States,
    settings: dict[str, Any],
    *,
    keep: int,
    temporary: bool = False,
    data: dict[str, Any] | None = None,
) -> None:
    """Save model, optimizer, schedule, random numbers and progress; all processes must call it.

    When the checkpoint is complete, older ones are removed, and also those of later steps, which are left over if a
    run was resumed from an older checkpoint.

    Args:
        accelerator (`Accelerator`): Accelerator, which saves model, optimizer and random numbers.
        output_dir (`Path`): Folder of the run, which all processes can access.
        step (`int`): Number of the step, which is part of the name of the checkpoint.
        states (`States`): States that Accelerate does not save.
        settings (`dict`): Settings of the run, which are compared when it is resumed.
        keep (`int`): Number of checkpoints to keep, not counting temporary ones.
        temporary (`bool`): Whether the next checkpoint removes this one, because it was saved for a validation or an
            interruption and must not displace those that the user asked for.
        data (`dict`, *optional*): Record of the data of the run, which is compared when it is resumed.

    Raises:
        UsageError: If a process cannot write the checkpoint; its files are removed, and older ones stay.
    """
    folder = output_dir / CHECKPOINTS / f"step_{step}"
    partial = folder.with_name(f".{folder.name}{_PARTIAL}")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    older = newest_step(output_dir)
    advice = f"resume from step {older} with `resume='auto'`" if older else "start again"
    what = f"The checkpoint of step {step} in {folder.parent}"

    def save_state() -> None:
        partial.mkdir(parents=True, exist_ok=True)  # raises an error that Accelerate would only log
        accelerator.save_state(str(partial))
        states.save(partial, accelerator)

    def complete() -> None:
        write_json(partial / SETTINGS_FILE, settings)
        if data is not None:
            write_json(partial / DATA_FILE, data)
        _complete(partial, folder, {"step": step, **({"temporary": True} if temporary else {})})

    try:
        write_on_all_ranks(accelerator, save_state, what, advice)
        write_on_main(accelerator, complete, what, advice)
    except UsageError:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        _rotate(folder.parent, step, keep)


def load_state(accelerator: Accelerator, checkpoint: Path) -> list[str]:
    """Restore model, optimizer and random numbers, which Accelerate saved; all processes must call it.

    Accelerate expects a scale of the loss if the precision is fp16, but a checkpoint of another precision has none.

    Returns:
        `list[str]`: A sentence about the scale of the loss, if it starts anew.
    """
    scaler = accelerator.scaler
    if scaler is None or (checkpoint / SCALER_NAME).exists():
        accelerator.load_state(str(checkpoint))
        return []
    # the optimizers have it too, and restoring the states of FSDP2 takes a step
    holders = [accelerator, *accelerator._optimizers]
    try:
        for holder in holders:
            holder.scaler = None
        accelerator.load_state(str(checkpoint))
    finally:
        for holder in holders:
            holder.scaler = scaler
    return ["fp16 scales the loss, and the checkpoint is of another precision, so the scale starts anew"]


def write_on_all_ranks(
    accelerator: Accelerator, write: Callable[[], None], what: str, advice: str = "resume with `resume='auto'`"
) -> None:
    """Call `write` in every process; if it fails in one of them, raise its error in all.

    Raises:
        UsageError: If a process cannot write; the message says what failed, why, and what to do.
    """
    message, cause = None, None
    try:
        write()
    except WRITE_ERRORS as error:
        message = shorten(str(error)) or type(error).__name__
        cause = error
    failures = [text for text in gather_object([message]) if text is not None]
    if failures:
        raise UsageError(
            f"{what} could not be written ({failures[0]}); check free space and permissions there, then {advice}."
        ) from cause


def write_on_main(
    accelerator: Accelerator, write: Callable[[], None], what: str, advice: str = "resume with `resume='auto'`"
) -> None:
    """Call `write` in the main process; if it fails, raise its error in all processes.

    Raises:
        UsageError: If a process cannot write; the message says what failed, why, and what to do.
    """
    write_on_all_ranks(accelerator, write if accelerator.is_main_process else lambda: None, what, advice)


def _complete(partial: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Rename a folder when all of its files are on the disk, then write its marker."""
    share_permissions(partial)
    files = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file()):
        sync(path)
        files[path.relative_to(partial).as_posix()] = {"bytes": path.stat().st_size, "sha256": _checksum(path)}
    sync(partial)
    if folder.exists():
        _remove(folder)
    partial.rename(folder)
    sync(folder.parent)
    replace_file(folder / MARKER, json.dumps({**facts, "files": files}, indent=1) + "\n")


def replace_progress(checkpoint: Path, progress: Progress) -> None:
    """Add the result of the validation of its step to a checkpoint, by a single rename."""
    # only what a validation changes: the position in the data belongs to the states of this checkpoint
    state = {name: getattr(progress, name) for name in _CHANGED_BY_A_VALIDATION}
    write_json(checkpoint / PROGRESS_FILE, {"progress": state, "sha256": _checksum_of_progress(state)})


def load_progress(checkpoint: Path, progress: Progress) -> None:
    """Restore the progress that the validation of the step added to a checkpoint, if it was done."""
    if (checkpoint / PROGRESS_FILE).exists():
        progress.load_state_dict(read_json(checkpoint / PROGRESS_FILE)["progress"])


def _checksum_of_progress(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rotate(checkpoints: Path, step: int, keep: int) -> None:
    """Remove all checkpoints except the newest of all and the newest `keep` of those that the user asked for."""
    stale = [path for path in checkpoints.iterdir() if path.name.endswith(_PARTIAL)]
    numbered = _numbered(checkpoints)
    stale += [path for number, path in numbered if number > step or not (path / MARKER).exists()]
    complete = [path for _, path in numbered if path not in stale]
    asked_for = [path for path in complete if not _is_temporary(path)][-keep:]
    for path in [*stale, *(path for path in complete[:-1] if path not in asked_for)]:
        _remove(path)


def _is_temporary(checkpoint: Path) -> bool:
    try:
        return bool(read_json(checkpoint / MARKER).get("temporary", False))
    except (ValueError, AttributeError, OSError):
        return False  # a corrupt one is kept as long as those that the user asked for


def _remove(checkpoint: Path) -> None:
    (checkpoint / MARKER).unlink(missing_ok=True)  # first, so that a partly removed folder is not a checkpoint
    shutil.rmtree(checkpoint)


def _numbered(checkpoints: Path) -> list[tuple[int, Path]]:
    """List the folders step_N with their numbers, sorted by N."""
    numbers = ((path.name.removeprefix("step_"), path) for path in checkpoints.glob("step_*"))
    return sorted((int(number), path) for number, path in numbers if number.isdigit())


def newest_step(output_dir: Path) -> int | None:
    """Return the step of the newest complete checkpoint, or `None` if there is none."""
    steps = [step for step, path in _numbered(output_dir / CHECKPOINTS) if (path / MARKER).exists()]
    return max(steps, default=None)


def find_checkpoint(output_dir: Path, resume: str | None) -> Path | None:
    """Find the checkpoint to resume from: the newest valid one for `"auto"`, or the named one.

    Corrupt checkpoints are skipped with a warning.

    Returns:
        `Path`, *optional*: Folder of the checkpoint; `None` if the run starts from the beginning.

    Raises:
        UsageError: If the named checkpoint, or all existing ones, are corrupt.
    """
    if resume is None:
        return None
    if resume != "auto":
        if (fault := find_fault(Path(resume))) is not None:
            raise UsageError(f"`resume`: {fault}; name another (OUTPUT_DIR/checkpoints/step_N), or use auto.")
        return Path(resume)
    faults: list[str] = []
    for _, path in reversed(_numbered(output_dir / CHECKPOINTS)):
        if not (path / MARKER).exists():
            continue  # a kill left it incomplete, which is expected and needs no warning
        if (fault := find_fault(path)) is None:
            for text in faults:
                warnings.warn(f"{text}; resuming from {path.name} instead.", stacklevel=2)
            return path
        faults.append(fault)
    if faults:
        raise UsageError(
            f"`resume='auto'`: {faults[0]}, and no older one exists; start again with `overwrite_output_dir`."
        )
    return None


def find_fault(checkpoint: Path) -> str | None:
    """Describe why a checkpoint cannot be used, in a sentence without a period; return `None` if it can."""
    marker = checkpoint / MARKER
    if not marker.exists():
        return f"{checkpoint} is not a complete checkpoint"
    try:
        files = read_json(marker)["files"].items()
        for name, written in files:
            path = checkpoint / name
            if not path.is_file():
                return f"{checkpoint} is corrupt: {name} is missing"
            if path.stat().st_size != written["bytes"] or _checksum(path) != written["sha256"]:
                return f"{checkpoint} is corrupt: {name} has changed since it was written"
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, OSError):
        return f"{checkpoint} is corrupt: {MARKER} cannot be read"
    return _find_fault_of_progress(checkpoint)


def _find_fault_of_progress(checkpoint: Path) -> str | None:
    path = checkpoint / PROGRESS_FILE
    if not path.exists():
        return None  # the validation is still due
    try:
        written = read_json(path)
        if written["sha256"] != _checksum_of_progress(written["progress"]):
            return f"{checkpoint} is corrupt: {PROGRESS_FILE} has changed since it was written"
    except (ValueError, KeyError, TypeError, OSError):
        return f"{checkpoint} is corrupt: {PROGRESS_FILE} cannot be read"
    return None
