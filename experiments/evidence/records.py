"""Records of runs: small JSON files, which are committed and picked up on another machine.

results/EXPERIMENT/runs/ARM[_FOLD]_seed_N.json
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msctr_hf.errors import UsageError
from msctr_hf.training.run_folder import read_json, write_json

from ..model_zoo import describe
from ..sweep import SweepRun
from .plan import Experiment
from .verdict import group_score

RUNS = "runs"
Key = tuple[str, int, str]  # arm, seed, fold
_NEEDED = ("arm", "seed", "mean_iou", "per_category_iou", "machine", "code")
_SCORES = ("images", "mean_iou", "per_category_iou", "mean_boundary_iou", "per_category_boundary_iou")
_SCORES_OF_VIDEO = ("images", "mean_iou", "per_category_iou")


def record_path(folder: Path, key: Key) -> Path:
    """Return the path of the record of a run below the folder of an experiment."""
    arm, seed, fold = key
    return folder / RUNS / f"{'_'.join([arm, *([fold] if fold else [])])}_seed_{seed}.json"


def read_records(experiment: Experiment, folder: Path) -> dict[Key, dict[str, Any]]:
    """Read the records of all runs of an experiment that are finished.

    Raises:
        UsageError: If a file is not the record that its name says, or is that of another version of the experiment, or
            of a run that was cut.
    """
    for arm in experiment.arms.values():
        beyond = [record_path(folder, (arm.name, seed, "")) for seed in arm.seeds if not arm.runs_with(seed)]
        if there := [path for path in beyond if path.exists()]:
            raise UsageError(
                f"{there[0]} is there, though {arm.name} is cut to {arm.cut_to} seeds: only runs that were not made "
                "can be cut; raise `cut_to:`."
            )
    records = {}
    for key in experiment.runs():
        path = record_path(folder, key)
        if not path.exists():
            continue
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read ({error}); remove it, and the run is repeated.") from error
        missing = [name for name in _NEEDED if name not in record]
        if missing or (record["arm"], record["seed"], record.get("fold") or "") != key:
            raise UsageError(
                f"{path} is not the record of {key[0]}, seed {key[1]}; remove it, and the run is repeated."
            )
        if record.get("plan", experiment.fingerprint(key[0])) != experiment.fingerprint(key[0]):
            raise UsageError(
                f"{path} was made when the file of the experiment fixed other seeds, flags or steps, and such runs "
                "are not pooled: restore that file, or give the new one another name."
            )
        records[key] = record
    return records


def write_record(
    experiment: Experiment, run: SweepRun, folder: Path, machine: Mapping[str, Any], code: str, minutes: float | None
) -> dict[str, Any]:
    """Write the record of a finished run.

    Args:
        experiment (`Experiment`): Its experiment.
        run (`SweepRun`): The run.
        folder (`Path`): Folder of the experiment in `results/`.
        machine (`Mapping`): Description of the machine.
        code (`str`): Hash of the code.
        minutes (`float`, *optional*): Minutes since its last start, with validation and scoring, if they are known.
    """
    described, scores = describe(run.folder, run.arm), read_json(run.scores)
    record = {
        "experiment": experiment.name,
        "purpose": experiment.purpose,
        "plan": experiment.fingerprint(run.arm),
        "arm": run.arm,
        "seed": run.seed,
        "fold": run.fold or None,
        "control": run.control,
        "network": described["network"],
        "dataset": described["dataset"],
        "split": experiment.split,
        **{name: scores[name] for name in _SCORES if name in scores},
        "videos": {
            video: {name: of[name] for name in _SCORES_OF_VIDEO} for video, of in scores.get("videos", {}).items()
        },
        "groups": {name: group_score(scores["per_category_iou"], of) for name, of in experiment.groups.items()},
        "max_steps": described["max_steps"],
        "batch_size": described["batch_size"],
        "step_cost": described["batch_size"] / described["images_per_second"],  # seconds, the median of the log
        "minutes": minutes,
        "used_mb": described["used_mb"],
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "commit": described["git_commit"],
        "code": code,
        "machine": dict(machine),
        **{name: described[name] for name in ("device", "mixed_precision", "versions", "command")},
        "score_command": None if run.scoring is None else _score_command(run.scoring),
    }
    write_json(record_path(folder, (run.arm, run.seed, run.fold)), record)
    return record


def _score_command(scoring: tuple[str, ...]) -> str:
    words = ["python", "scripts/score_videos.py", "--model", "RUN/last", *scoring, "--output_dir", "RUN/scores"]
    if "--data_dir" in words:
        words[words.index("--data_dir") + 1] = "DATA_DIR"
    return shlex.join(words)
