"""Print a table of finished runs (network, data, mode, mIoU, seeds, device), and the commands that repeat them.

python scripts/model_zoo.py runs/quickstart runs/hrnet              # folders of runs
python scripts/model_zoo.py results/quickstart.json runs/sweep/results.json
python scripts/model_zoo.py runs/quickstart --output results/quickstart.json    # also writes the rows as JSON
"""

from __future__ import annotations

import json
import shlex
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from msctr_hf.commands.command_line import one_sentence
from msctr_hf.commands.spelling import SpellingParser
from msctr_hf.errors import UsageError
from msctr_hf.models.configuration_msctr import MsctrConfig
from msctr_hf.training.description import DRAWN_IMAGES
from msctr_hf.training.run_folder import RESULTS_FILE, RUN_FILE, read_json, read_log, write_json
from msctr_hf.training.settings import purpose

_SCORES = ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou")
_SETTINGS = ("contrastive_mode", "contrastive_sampling", "train_images", "seed", "max_steps", "batch_size")
_DEFAULTS = {name: getattr(MsctrConfig, name) for name in ("decode_head", "contrastive_mode", "contrastive_sampling")}
_TRAINING_SCRIPTS = ("train.py", "control.py")
_TEACHER_TERM = "pseudo_cross_entropy"  # in the log, if the steps before a line had unlabeled images
_ENVIRONMENT = ("device", "mixed_precision", "versions", "git_commit")


def describe(folder: Path, arm: str | None = None) -> dict[str, Any]:
    """Describe the run in a folder: its scores, its cost, the command that repeats it.

    `images_per_second` is the median of the log, without validation, or a mean of two medians if only some steps had a
    teacher; `used_mb` is the largest value of the log.

    Args:
        folder (`Path`): `OUTPUT_DIR` of `scripts/train.py`.
        arm (`str`, *optional*): Name of the run in a comparison; its contrastive mode by default.

    Raises:
        UsageError: If the folder holds no finished run.
    """
    results, run = read_json(folder / RESULTS_FILE), read_json(folder / RUN_FILE)
    if not results or not run:
        raise UsageError(f"{folder} holds no finished run: {RESULTS_FILE} or {RUN_FILE} is missing.")
    if results["mean_iou"] is None:
        raise UsageError(f"{folder} has no score, because no pixel of its validation images is labeled.")
    settings = {**_DEFAULTS, **run["settings"]}
    log = [line for line in read_log(folder) if "images_per_second" in line]
    return {
        "network": _network(settings),
        "arm": arm or settings["contrastive_mode"],
        "dataset": settings["dataset"],
        "split": "validation",
        **{name: settings.get(name) for name in _SETTINGS},
        "subset_seed": run.get(DRAWN_IMAGES, {}).get("subset_seed"),
        "max_steps": run.get("duration", settings).get("max_steps"),
        **{name: results[name] for name in _SCORES},
        "images_per_second": _images_per_second(log),
        "used_mb": max(line["used_mb"] for line in log),
        **{name: run[name] for name in _ENVIRONMENT},
        "command": _command(run["command"]),
    }


def _images_per_second(log: Sequence[dict[str, Any]]) -> float:
    """Average the median speeds of the phases without and with a teacher, of which every line has as many steps."""
    phases = [
        [line["images_per_second"] for line in log if (_TEACHER_TERM in line) == has_teacher]
        for has_teacher in (False, True)
    ]
    speeds = [(statistics.median(phase), len(phase)) for phase in phases if phase]
    return statistics.harmonic_mean(*zip(*speeds, strict=True))


def _network(settings: dict[str, Any]) -> str:
    """Name the decode head and backbone, or the model that training started from, without the folders above it."""
    start = settings.get("model_name_or_path")
    if start is None:
        return f"{settings['decode_head']}, {settings['backbone']}"
    return Path(start).name if Path(start).is_absolute() or Path(start).exists() else start


def _command(started_as: str) -> str:
    """Build the command that repeats a run, without the flags of its start and with placeholders for local paths."""
    program, *given = shlex.split(started_as)
    script = Path(program).name
    # started by a script of this repository, or by `msctr train`
    words, flag = ["python", f"scripts/{script if script in _TRAINING_SCRIPTS else 'train.py'}"], ""
    for word in given[1:] if given[:1] == ["train"] else given:
        flag = word if word.startswith("--") else flag
        name = flag.removeprefix("--")
        if name == "output_dir" or purpose(name).launch_only:
            continue
        is_local = purpose(name).is_path and word != flag and (Path(word).is_absolute() or Path(word).exists())
        words.append(name.upper() if is_local else word)
    return shlex.join(words)


def read_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read the rows of run folders, and of files with lists of rows.

    Raises:
        UsageError: If a path is neither.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        if path.is_dir():
            rows.append(describe(path))
            continue
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} is neither the folder of a run nor a file with rows of runs: {error}") from error
        if not isinstance(content, list):
            raise UsageError(f"{path} does not hold a list of runs.")
        rows += content
    return rows


def zoo_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format a table with a line for every network, data set, arm and length, with mean and deviation over seeds."""
    lines = ["| network | data | mode | steps | mIoU | seeds | device | commit |", "|---|---|---|---|---|---|---|---|"]
    for (network, dataset, split, arm, steps), runs in _groups(rows).items():
        scores = [100 * run["mean_iou"] for run in runs]
        score = f"{statistics.mean(scores):.2f}" + (f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else "")
        seeds = ", ".join(str(run["seed"]) for run in runs)
        commits = ", ".join(sorted({(run["git_commit"] or "unknown")[:7] for run in runs}))
        facts = (network, f"{dataset} {split}", arm, f"{steps:,}", score, seeds, runs[0]["device"], commits)
        lines.append(f"| {' | '.join(facts)} |")
    return "\n".join(lines)


def zoo_commands(rows: Sequence[dict[str, Any]]) -> str:
    """List, for every line of the table, the shell command of its first seed."""
    blocks = []
    for (network, dataset, _, arm, steps), runs in _groups(rows).items():
        words = textwrap.wrap(runs[0]["command"], 110, break_long_words=False, break_on_hyphens=False)
        blocks.append(f"# {network}: {dataset}, {arm}, {steps:,} steps\n" + " \\\n    ".join(words))
    return "\n".join(blocks)


def _groups(rows: Sequence[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        few = f" ({row['train_images']} training images)" if row.get("train_images") else ""
        key = (row["network"], row["dataset"] + few, row["split"], row["arm"], row["max_steps"])
        groups.setdefault(key, []).append(row)
    return groups


def main(argv: Sequence[str]) -> None:
    """Print the table of the runs that the command line names."""
    parser = SpellingParser("python scripts/model_zoo.py RUN [RUN ...]", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or JSON files with rows of runs")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    options = parser.parse_args(argv)
    with one_sentence():
        rows = read_rows(options.runs)
        if options.output is not None:
            write_json(options.output, rows)
        print(zoo_table(rows), zoo_commands(rows), sep="\n\n")
