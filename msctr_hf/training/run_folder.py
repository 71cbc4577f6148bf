"""Folder of a run. Files are replaced by renaming: a reader finds the old or the new content, never a part.

OUTPUT_DIR/                     the best validated model, for `from_pretrained`
    results.json predictions.png pseudo_labels.png
    run.json config.yaml log.jsonl tensorboard/ profile/ not_finite.json
    last/                       the last model, for `from_pretrained`
    checkpoints/step_N/         all states, to resume from
.OUTPUT_DIR.replaced/           the run that was in OUTPUT_DIR before, until this one has saved a checkpoint
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import nn

from ..errors import UsageError
from ..models.contrastive_adapter import ContrastiveAdapter
from ..models.image_processing_msctr import MsctrImageProcessor
from .settings import purpose

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
LOG_FILE = "log.jsonl"
NOT_FINITE_FILE = "not_finite.json"
PREDICTIONS_FILE = "predictions.png"
PSEUDO_LABELS_FILE = "pseudo_labels.png"  # of the newest validation, if there are images without labels
CHECKPOINTS = "checkpoints"
MARKER = "COMPLETE"  # last file of a checkpoint to be written
LAST = "last"
OLD_REPLACED = ".replaced"  # folder in OUTPUT_DIR in which older versions kept the run to replace
_PARTIAL = ".partial"
_HOW_TO_REPEAT = f"# the same run in another folder: msctr train --config {CONFIG_FILE} --output_dir NEW"
_IS_WINDOWS = os.name == "nt"


def check_output_dir(output_dir: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse a folder that is not empty, unless the run resumes or replaces the run in it.

    Raises:
        UsageError: If the folder may not be used.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"`output_dir`: {output_dir} is a file.")
    replaced = replaced_folder(output_dir)
    if resume or (is_empty(output_dir) and not replaced.exists()):
        return
    if not overwrite and replaced.exists() and not holds_a_model(output_dir):
        raise UsageError(
            f"`output_dir`: the run of {output_dir} is in {replaced}, because the run that should replace it ended "
            "before it saved anything; rename it back, or replace it with `overwrite_output_dir`."
        )
    holds_a_run = (output_dir / RUN_FILE).exists() or (output_dir / OLD_REPLACED).exists()
    if not is_empty(output_dir) and not holds_a_run:
        raise UsageError(f"`output_dir`: {output_dir} is not empty and does not hold a run; choose another folder.")
    if not overwrite:
        raise UsageError(
            f"`output_dir`: {output_dir} holds another run; choose another folder, resume it with `resume='auto'`, "
            "or replace it with `overwrite_output_dir`."
        )


def refuse_models_and_runs(output_dir: Path, instead: str = "evaluation") -> None:
    """Refuse a folder that a command other than training may not write to, since the files of a run are there.

    Args:
        output_dir (`Path`): The folder.
        instead (`str`): Name of a folder below it, which the message suggests.

    Raises:
        UsageError: If the folder holds a model or a run, or is a file.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"`output_dir`: {output_dir} is a file.")
    if any((output_dir / name).exists() for name in ("config.json", RUN_FILE)):
        raise UsageError(
            f"`output_dir`: {output_dir} holds a model or a run, whose files could be replaced; name another "
            f"folder, such as {output_dir / instead}."
        )


def is_empty(output_dir: Path) -> bool:
    """Return whether a folder is empty or does not exist."""
    return not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir()))


def holds_a_model(output_dir: Path) -> bool:
    """Return whether a run has saved a checkpoint or a model."""
    saved = (RESULTS_FILE, f"{LAST}/config.json", f"{CHECKPOINTS}/*/{MARKER}")
    return any(any(output_dir.glob(pattern)) for pattern in saved)


def holds_a_log(output_dir: Path) -> bool:
    """Return whether a run has logged anything."""
    log = output_dir / LOG_FILE
    return log.exists() and log.stat().st_size > 0


def replaced_folder(output_dir: Path) -> Path:
    """Return the path, next to a folder, of the run that is replaced until the new one has saved a checkpoint."""
    folder = output_dir.resolve()
    return folder.with_name(f".{folder.name}.replaced")


def share_permissions(folder: Path) -> None:
    """Give `.safetensors` files the permissions of their neighbors.

    safetensors makes them readable only by their owner, whatever the umask, so that nobody else could use the model.
    The neighbors show what the umask and the folder allow; the umask itself cannot be read without changing it.
    """
    for path in folder.rglob("*.safetensors"):
        neighbors = (each for each in path.parent.iterdir() if each.is_file() and each.suffix != ".safetensors")
        if (neighbor := next(neighbors, None)) is not None:
            with suppress(PermissionError):  # some file systems have no permissions
                path.chmod(neighbor.stat().st_mode & 0o777)


def save_model(
    model: nn.Module,
    image_processor: MsctrImageProcessor,
    folder: Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a folder for `from_pretrained`, whose files replace older ones when all of them are written.

    `state_dict` contains the weights if they are split over processes.
    """
    partial = folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    try:
        # a run resumes from its own checkpoints: the projection head is saved for embeddings of pixels
        options = {"save_heads": model.projection_head is not None} if isinstance(model, ContrastiveAdapter) else {}
        model.save_pretrained(partial, state_dict=state_dict, **options)
        image_processor.save_pretrained(partial)
        share_permissions(partial)
        for path in sorted(partial.iterdir()):
            sync(path)
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_run_file(output_dir: Path, description: dict[str, Any]) -> None:
    """Write run.json, which for a resumed run also contains the descriptions of its earlier starts."""
    earlier = read_json(output_dir / RUN_FILE)
    before = earlier.pop("earlier_starts", [])
    starts = {"earlier_starts": [*before, earlier]} if earlier else {}
    write_json(output_dir / RUN_FILE, {**description, **starts})


def write_config(output_dir: Path, settings: dict[str, Any]) -> None:
    """Write config.yaml, from which `--config` starts the same run in another folder."""
    kept = {name: value for name, value in settings.items() if value is not None and not purpose(name).launch_only}
    text = yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, width=119)
    replace_file(output_dir / CONFIG_FILE, f"{_HOW_TO_REPEAT}\n{text}")


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """Read all entries of log.jsonl."""
    return [json.loads(line) for line in (output_dir / LOG_FILE).read_text(encoding="utf-8").splitlines()]


def save_image(image: Image.Image, path: Path) -> None:
    """Write or replace a PNG."""
    with _written_whole(path) as partial:
        image.save(partial, format="PNG")


def read_json(path: Path) -> dict[str, Any]:
    """Read a dict from a JSON file; return an empty dict if the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Write or replace a JSON file, indented for people."""
    replace_file(path, json.dumps(content, indent=2) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write or replace a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    sync(path.parent)


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which replaces `path` when it is on the disk, or is removed if writing fails."""
    partial = path.with_name(f"{_PARTIAL}_{path.name}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_unfinished(output_dir: Path) -> None:
    """Remove files that were being written when an earlier start of the run was killed."""
    for path in output_dir.glob(f"{_PARTIAL}_*"):
        path.unlink()


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, so that they survive a power failure.

    Windows opens no folders, and flushes only files that are open for writing.
    """
    if _IS_WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if _IS_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
