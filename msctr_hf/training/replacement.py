"""Replacement of a run (`overwrite_output_dir`), which is kept under another name until the new run has saved.

OUTPUT_DIR is renamed to .OUTPUT_DIR.replaced in the same folder. The renamed run is removed when the new one has saved
a checkpoint, and gets its name back if the new one ends before that. A kill in between leaves both folders; the next
start then keeps the old run until it has saved a checkpoint itself.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from ..errors import as_usage_error
from .run_folder import OLD_REPLACED, holds_a_log, holds_a_model, is_empty, replaced_folder, sync


def put_aside(output_dir: Path) -> None:
    """Rename the folder of the run to replace, unless an earlier start has renamed it and saved nothing."""
    output_dir, replaced = output_dir.resolve(), replaced_folder(output_dir)
    if is_empty(output_dir):
        return
    if (output_dir / OLD_REPLACED).exists() and not replaced.exists() and not holds_a_model(output_dir):
        (output_dir / OLD_REPLACED).rename(replaced)  # the other files are of a start that saved nothing
    if replaced.exists() and not holds_a_model(output_dir):
        _clear_attempt(output_dir)
        return
    shutil.rmtree(replaced, ignore_errors=True)  # the run in OUTPUT_DIR replaced it by saving a checkpoint
    with as_usage_error(OSError, prefix=f"`overwrite_output_dir`: {output_dir} cannot be renamed to keep the old run; "
                        "choose another `output_dir`: "):  # fmt: skip
        output_dir.rename(replaced)
    sync(replaced.parent)


def restore(output_dir: Path) -> str | None:
    """Rename the replaced run back and return a sentence about it, or `None` if no run was replaced."""
    output_dir, replaced = output_dir.resolve(), replaced_folder(output_dir)
    if not replaced.exists():
        return None
    failed = _clear_attempt(output_dir) if output_dir.exists() else None
    replaced.rename(output_dir)
    sync(output_dir.parent)
    kept = "" if failed is None else f"; the log of the new one is in {failed}"
    return f"{output_dir} holds the old run again, which was not replaced{kept}"


def remove_replaced(output_dir: Path) -> None:
    """Remove the replaced run, because the new one has saved a checkpoint."""
    shutil.rmtree(replaced_folder(output_dir), ignore_errors=True)


def _clear_attempt(output_dir: Path) -> Path | None:
    """Remove the folder of a run that saved nothing, or rename it if the run has logged something."""
    if not holds_a_log(output_dir):
        shutil.rmtree(output_dir)
        return None
    names = (output_dir.with_name(f".{output_dir.name}.failed_{number}") for number in itertools.count(1))
    failed = next(path for path in names if not path.exists())
    output_dir.rename(failed)
    return failed
