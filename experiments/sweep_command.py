"""Compare contrastive modes: one recipe, several arms, several seeds, one table.

python scripts/sweep.py --config configs/camvid/upernet_efficientnet_lite0.yaml --data_dir CAMVID --seeds 0 1 2
python scripts/sweep.py --config ... --arms ce "warm: ms_cs --contrastive_temperature 0.2"

python scripts/sweep.py --experiment experiments/plans/camvid_46.yaml --data_dir CAMVID --parallel 2 --time_left 300

With --experiment, a file fixes arms, seeds and end point, and nothing is compared before all of its runs are finished:
experiments/evidence/plan.py describes the file, experiments/evidence/bench.py the results.

Every flag that is not listed here is passed to scripts/train.py. The same command, started again, skips finished runs
and resumes interrupted ones. Runs are validated only after their last step. A run is one process; on several GPUs,
start this command once per GPU (CUDA_VISIBLE_DEVICES) with different seeds, then once with all seeds for the table.

OUTPUT_DIR/ARM/seed_N/    a run of scripts/train.py; seed_N.log is its output
OUTPUT_DIR/results.json   settings, scores and costs of every finished run, and the command that repeats it
OUTPUT_DIR/report.md      means, differences from the first arm paired by seed, IoUs of classes
OUTPUT_DIR/curves.png     curves of the terms of the loss

Exit codes: 0 all runs are finished; 2 a run failed or the input is faulty; 75 stopped by SIGTERM or Ctrl-C, or by
--time_left.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from msctr_hf.commands.command_line import one_sentence
from msctr_hf.commands.spelling import SpellingParser
from msctr_hf.commands.train import command_line
from msctr_hf.errors import UsageError
from msctr_hf.training.run_folder import read_json, replace_file, write_json

from .model_zoo import describe
from .sweep import DEFAULT_ARMS, Arm, SweepRun, plan_runs, run_all
from .sweep_report import compare_arms, draw_curves, markdown


def main(argv: Sequence[str]) -> None:
    """Run the sweep that the command line describes."""
    options, flags = parser().parse_known_args(argv)
    with one_sentence():
        if missing := [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]:
            raise UsageError(f"The report needs {' and '.join(missing)}: pip install '.[figures]'.")
        if options.parallel < 1:
            raise UsageError(f"--parallel must be at least 1, got {options.parallel}.")
        if options.experiment is None:
            sweep(options, flags)
        else:
            experiment(options, flags)


def experiment(options: argparse.Namespace, flags: Sequence[str]) -> None:
    """Run the experiment of a file, or measure what the file still lacks."""
    from .evidence.bench import Options, print_step_cost, run_experiment

    if options.arms is not None or options.seeds is not None:
        raise UsageError("--arms and --seeds are in the file of the experiment; leave them out.")
    folder = options.output_dir or Path("runs") / options.experiment.stem
    chosen = Options(folder, tuple(flags), options.parallel, options.time_left, options.peek)
    (print_step_cost if options.measure_step_cost else run_experiment)(options.experiment, chosen)


def sweep(options: argparse.Namespace, flags: Sequence[str]) -> None:
    """Run all unfinished runs of the arms and seeds of the command line, and report all runs."""
    for name in ("time_left", "peek", "measure_step_cost"):
        if getattr(options, name):
            raise UsageError(f"--{name} needs --experiment.")
    folder = options.output_dir or Path("runs/sweep")
    arms = [Arm.parse(text) for text in options.arms or DEFAULT_ARMS]
    runs = plan_runs(arms, options.seeds or [0, 1, 2], folder, flags)
    print(
        f"{len(runs)} runs, {sum(run.finished for run in runs)} of them finished; {options.parallel} at a time",
        flush=True,
    )

    def report(run: SweepRun, minutes: float) -> None:
        score = read_json(run.scores)["mean_iou"]
        print(f"{run.name}: mIoU {100 * score:.2f} %, {minutes:.1f} minutes", flush=True)
        write_report(runs, folder)

    run_all(runs, options.parallel, report)
    print(write_report(runs, folder))


def write_report(runs: list[SweepRun], folder: Path) -> str:
    """Write rows, tables and curves of the finished runs, and return the tables."""
    finished = [run for run in runs if run.finished]
    rows = [describe(run.folder, run.arm) for run in finished]
    write_json(folder / "results.json", rows)
    if all(row["arm"] != runs[0].arm for row in rows):
        return ""  # no run of the baseline is finished yet, so there is nothing to compare with
    text = markdown(compare_arms(rows, runs[0].arm))
    replace_file(folder / "report.md", f"# Sweep\n\n{text}\n")
    draw_curves(finished, folder / "curves.png")
    return text


def parser() -> argparse.ArgumentParser:
    """Build the parser of the sweep's own flags; all others are passed to `scripts/train.py`."""
    whole = SpellingParser("python scripts/sweep.py", __doc__, passed_on=command_line()._option_string_actions)
    whole.add_argument("--output_dir", type=Path, help="folder of all runs (runs/sweep, or runs/EXPERIMENT)")
    whole.add_argument(
        "--arms",
        nargs="+",
        help=f"arms, the baseline first: 'MODE' or 'NAME: MODE --flag value' {DEFAULT_ARMS}",
    )
    whole.add_argument("--seeds", type=int, nargs="+", help="seeds of every arm (0 1 2)")
    whole.add_argument("--parallel", type=int, default=1, help="runs at a time; on a CPU they share its cores (1)")
    whole.add_argument("--experiment", type=Path, help="file of an experiment, in place of --arms and --seeds")
    whole.add_argument("--time_left", type=float, help="minutes until all runs of an experiment must have ended")
    whole.add_argument("--peek", action="store_true", help="compare before the end, so that nothing can be shown")
    whole.add_argument(
        "--measure_step_cost",
        action="store_true",
        help="print the line `step_cost:` for the file of an experiment, or the `steps:` of its arms in the time of "
        "the first; --model_name_or_path names the trained network from which steps with a teacher start",
    )
    return whole
