"""The folder of a run. Files are replaced whole: whoever reads one finds the old content or the new.

OUTPUT_DIR/                     the best validated model, for `from_pretrained`
    results.json predictions.png
    run.json config.yaml log.jsonl tensorboard/ profile/ not_finite.json
    last/                       the last model, for `from_pretrained`
    checkpoints/step_N/         states of everything, to go on from
    .replaced/                  the run that was here before, until this one has saved something
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import nn

from ..errors import UsageError
from ..models.image_processing_msctr import MsctrImageProcessor
from .settings import purpose

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
LOG_FILE = "log.jsonl"
NOT_FINITE_FILE = "not_finite.json"
PREDICTIONS_FILE = "predictions.png"
CHECKPOINTS = "checkpoints"
LAST = "last"
_REPLACED = ".replaced"
_PARTIAL = ".partial"


def check_output_dir(output_dir: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse a folder that holds something, unless the run goes on there or replaces another run.

    Raises:
        UsageError: If the folder may not be used.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"`output_dir`: {output_dir} is a file.")
    if resume or is_empty(output_dir):
        return
    if not (output_dir / RUN_FILE).exists() and not (output_dir / _REPLACED).exists():
        raise UsageError(f"`output_dir`: {output_dir} is not empty and holds no run; choose another folder.")
    if not overwrite:
        raise UsageError(
            f"`output_dir`: {output_dir} holds another run; choose another folder, continue it with `resume='auto'`, "
            "or replace it with `overwrite_output_dir`."
        )


def is_empty(output_dir: Path) -> bool:
    """Whether nothing lies there."""
    return not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir()))


def holds_a_model(output_dir: Path) -> bool:
    """Whether a run has saved anything worth keeping."""
    return any((output_dir / name).exists() for name in (RESULTS_FILE, LAST, CHECKPOINTS))


def set_aside(output_dir: Path) -> None:
    """Move the run that is to be replaced out of the way, until the new one has saved something."""
    if is_empty(output_dir):
        return
    replaced = output_dir / _REPLACED
    if replaced.exists() and not holds_a_model(output_dir):
        bring_back(output_dir)  # the attempt before this one was ended before it saved anything
    shutil.rmtree(replaced, ignore_errors=True)
    entries = list(output_dir.iterdir())
    replaced.mkdir()
    for entry in entries:
        entry.rename(replaced / entry.name)


def bring_back(output_dir: Path) -> None:
    """Put the run that was set aside back, in place of what lies there."""
    replaced = output_dir / _REPLACED
    if not replaced.exists():
        return
    for entry in output_dir.iterdir():
        if entry != replaced:
            remove(entry)
    for entry in replaced.iterdir():
        entry.rename(output_dir / entry.name)
    replaced.rmdir()


def forget_what_was_set_aside(output_dir: Path) -> None:
    """Remove the replaced run for good."""
    shutil.rmtree(output_dir / _REPLACED, ignore_errors=True)


def save_model(
    model: nn.Module,
    image_processor: MsctrImageProcessor,
    folder: Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a `from_pretrained` folder; its files replace older ones when all of them are written.

    `state_dict` holds the weights where they are not in `model` itself.
    """
    partial = folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, state_dict=state_dict)
        image_processor.save_pretrained(partial)
        for path in sorted(partial.iterdir()):
            sync(path)
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_run_file(output_dir: Path, description: dict[str, Any]) -> None:
    """Write run.json; where a run goes on, with the descriptions of its earlier starts."""
    earlier = read_json(output_dir / RUN_FILE)
    before = earlier.pop("earlier_starts", [])
    starts = {"earlier_starts": [*before, earlier]} if earlier else {}
    write_json(output_dir / RUN_FILE, {**description, **starts})


def write_config(output_dir: Path, settings: dict[str, Any]) -> None:
    """Write config.yaml, with which `--config` starts the same run."""
    kept = {name: value for name, value in settings.items() if value is not None and not purpose(name).of_a_start}
    text = yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, width=119)
    replace_file(output_dir / CONFIG_FILE, f"# msctr train --config {CONFIG_FILE}\n{text}")


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """Every entry of log.jsonl."""
    return [json.loads(line) for line in (output_dir / LOG_FILE).read_text().splitlines()]


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write or replace a PNG."""
    with _written_whole(path) as partial:
        picture.save(partial, format="PNG")


def read_json(path: Path) -> dict[str, Any]:
    """Read a dict; empty where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Write readable JSON."""
    replace_file(path, json.dumps(content, indent=2) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write or replace a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _written_whole(path) as partial:
        partial.write_text(text)
    sync(path.parent)


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Where to write: takes the place of `path` when all of it is on the disk, and goes away if it cannot be."""
    partial = path.with_name(f"{_PARTIAL}_{path.name}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Let a file, or the names in a folder, reach the disk, so that they outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
