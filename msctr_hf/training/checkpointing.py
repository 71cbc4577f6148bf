"""The folder of a run: checkpoints to go on from, and the saved model.

OUTPUT_DIR/                     the best validated model, for `from_pretrained`
    results.json run.json log.jsonl predictions.png tensorboard/
    last/                       the last model, for `from_pretrained`
    checkpoints/step_N/         states of everything, to go on from
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from ..models.image_processing_msctr import MsctrImageProcessor

RUN_FILE = "run.json"
RESULTS_FILE = "results.json"
_COMPLETE = "COMPLETE"


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    epoch: int = 0
    batches_in_epoch: int = 0
    best_mean_iou: float = -1.0

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate's checkpoints."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From Accelerate's checkpoints."""
        for name, value in state.items():
            setattr(self, name, value)


def check_output_dir(output_dir: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse a folder that holds something, unless the run goes on there or replaces another run.

    Raises:
        ValueError: If the folder may not be used.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir: {output_dir} is a file.")
    if resume or not output_dir.exists() or not any(output_dir.iterdir()):
        return
    if not (output_dir / RUN_FILE).exists():
        raise ValueError(f"--output_dir: {output_dir} is not empty and holds no run; choose another folder.")
    if not overwrite:
        raise ValueError(
            f"--output_dir: {output_dir} holds another run; choose another folder, continue it with --resume auto, or "
            "replace it with --overwrite_output_dir."
        )


def holds_a_model(output_dir: Path) -> bool:
    """Whether a run has saved anything worth keeping."""
    return any((output_dir / name).exists() for name in (RESULTS_FILE, "last", "checkpoints"))


def find_checkpoint(output_dir: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from: the newest complete one for `auto`, else the named one; `None` to start anew.

    Raises:
        ValueError: If the named checkpoint is none.
    """
    if resume is None:
        return None
    if resume == "auto":
        complete = [path for path in (output_dir / "checkpoints").glob("step_*") if (path / _COMPLETE).exists()]
        return max(complete, key=_step, default=None)
    if not (Path(resume) / _COMPLETE).exists():
        raise ValueError(f"--resume: {resume} is no complete checkpoint (OUTPUT_DIR/checkpoints/step_N).")
    return Path(resume)


def save_checkpoint(accelerator: Accelerator, output_dir: Path, progress: Progress, keep: int) -> None:
    """Save the states of model, optimiser, schedule, random numbers and progress; older checkpoints are removed."""
    folder = output_dir / "checkpoints" / f"step_{progress.step}"
    accelerator.save_state(str(folder))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (folder / _COMPLETE).touch()
        checkpoints = sorted(folder.parent.glob("step_*"), key=_step)
        for old in checkpoints[: max(0, len(checkpoints) - keep)]:
            shutil.rmtree(old)


def save_model(
    accelerator: Accelerator, model: PreTrainedModel, image_processor: MsctrImageProcessor, folder: Path
) -> None:
    """Write a `from_pretrained` folder, by the main process alone."""
    if accelerator.is_main_process:
        unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
        unwrapped.save_pretrained(folder)
        image_processor.save_pretrained(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Read a dict; empty where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dict as readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))
