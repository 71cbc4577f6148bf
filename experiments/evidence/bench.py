"""Run an experiment to its end, and only then compare its arms.

results/EXPERIMENT/runs/ARM_seed_N.json    record of a finished run: scores, costs, machine, code, command; committed
results/EXPERIMENT/verdict.json            what the runs show, once all are there; choice.json of a selection
results/EXPERIMENT/report.md               tables for docs/results.md
results/EXPERIMENT/differences.png         the difference of every seed
results/ledger.json                        all experiments that touched a test split
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from msctr_hf.commands.train import command_line
from msctr_hf.data.folder_spec import FOLDER
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.precision import has_bf16
from msctr_hf.training.run_folder import CHECKPOINTS, read_json, replace_file, write_json

from ..sweep import Active, SweepRun, plan_run, run_all
from . import provenance
from .folds import write_fold
from .ledger import note_test_score
from .plan import Experiment, PlannedArm, read_experiment
from .records import Key, read_records, record_path, write_record
from .report import draw_differences, markdown
from .step_cost import REPETITIONS, measure_step_cost
from .time_left import TimeLeft
from .verdict import Records, compare, describe_missing, judge, missing_runs, mixed_seeds, scores_by_seed

RESULTS = provenance.ROOT / "results"
PEEKED = "peeked.json"
OF_THIS_MACHINE = ("--data_dir", "--backbone_weights", "--report_to", "--num_workers")  # all others are in the file
TRAINED = "--model_name_or_path"  # the network from which a measurement of steps starts


class Options(NamedTuple):
    """What a start of an experiment may choose.

    Args:
        output_dir (`Path`): Folder of the runs.
        flags (`tuple[str, ...]`): Flags of `scripts/train.py` about this machine, see `OF_THIS_MACHINE`.
        parallel (`int`): Runs at a time.
        time_left (`float`, *optional*): Minutes until all runs must have ended.
        peek (`bool`): Whether to compare what is finished, which makes the experiment exploratory forever.
        results (`Path`): Folder of the results of all experiments.
    """

    output_dir: Path
    flags: tuple[str, ...]
    parallel: int = 1
    time_left: float | None = None
    peek: bool = False
    results: Path = RESULTS


def run_experiment(path: Path, options: Options) -> None:
    """Run what is missing of an experiment, and judge it when nothing is.

    Raises:
        UsageError: If the file is faulty, not complete or not committed, the code has local changes, the processor
            lacks the precision of the file, or a run fails.
        Interrupted: If a signal stopped the runs, or no other fits into the time left.
    """
    experiment = read_experiment(path)
    folder = options.results / experiment.name
    is_complete = not missing_runs(experiment, read_records(experiment, folder))
    if options.peek and not is_complete:
        print(_peek(experiment, folder))
        return
    if experiment.purpose == "confirmation":
        provenance.refuse_uncommitted(path)
    if not is_complete:
        _run_missing(experiment, folder, options)
    print(conclude(experiment, folder))


def _run_missing(experiment: Experiment, folder: Path, options: Options) -> None:
    experiment.check_is_complete()
    _check_flags(options.flags)
    _check_precision(experiment)
    machine, code = provenance.describe_machine(experiment.threads), provenance.hash_of_code()
    records = read_records(experiment, folder)
    unpaired = _unpaired(experiment, records, machine, code)
    records = {key: record for key, record in records.items() if key[1] not in unpaired}
    runs = [
        run
        for run in plan_experiment(
            experiment, options.output_dir / provenance.folder_name(machine, code), options.flags
        )
        if (run.arm, run.seed, run.fold) not in records
    ]
    print(f"{experiment.name}: {len(runs)} of {len(experiment.runs())} runs are left", flush=True)

    def make_room(seed: int) -> None:
        if keys := unpaired.pop(seed, []):
            count = f"{len(keys)} of {sum(key[1] == seed for key in experiment.runs())}"
            print(f"seed {seed}: {count} runs are of another machine or code; it is run again whole", flush=True)
        for key in keys:
            record_path(folder, key).unlink()

    def keep(run: SweepRun, minutes: float | None) -> None:
        make_room(run.seed)
        record = write_record(experiment, run, folder, machine, code, minutes)
        if experiment.split == "test":
            note_test_score(experiment, record["dataset"], options.results)
        shutil.rmtree(run.folder / CHECKPOINTS, ignore_errors=True)  # of a finished run, whose networks stay
        # no score of a confirmation: two of them would already be a difference
        score = f"mIoU {100 * record['mean_iou']:.2f} %, " if experiment.purpose == "selection" else ""
        print(f"{run.name}: {score}{'' if minutes is None else f'{minutes:.1f} minutes'}", flush=True)

    for run in [run for run in runs if run.finished]:  # scored, but the sweep was killed before it wrote the record
        keep(run, None)
        runs.remove(run)
    limit = TimeLeft(
        math.inf if options.time_left is None else options.time_left,
        runs,
        options.parallel,
        experiment.minutes / experiment.steps,
    )

    def may_start(run: SweepRun, active: Sequence[Active]) -> bool:
        """Keep the records of a seed on another machine until it is certain that the seed is run again here."""
        if not limit.may_start(run, active):
            return False
        if provenance.hash_of_code() != code:
            raise UsageError(
                "the code changed since this start, so that the other runs of a seed would not pair with its first "
                "ones: start again, and it is run again whole."
            )
        make_room(run.seed)
        return True

    def keep_and_measure(run: SweepRun, minutes: float) -> None:
        keep(run, minutes)
        limit.measured(run, minutes)

    run_all(runs, options.parallel, keep_and_measure, threads=experiment.threads, may_start=may_start)


def plan_experiment(experiment: Experiment, output_dir: Path, flags: Sequence[str]) -> list[SweepRun]:
    """Plan all runs of an experiment, seed by seed, and write the folders of its folds.

    Args:
        experiment (`Experiment`): The experiment.
        output_dir (`Path`): Folder for the runs and the folds.
        flags (`Sequence[str]`): Flags of `scripts/train.py` about this machine.
    """
    data = command_line().parse([*experiment.flags, *flags])[1]
    folds = {name: output_dir / "folds" / name for name in experiment.folds}
    for name, folder in folds.items():
        write_fold(experiment.folds[name], data.dataset, data.data_dir, folder)
    runs = []
    for name, seed, fold in experiment.runs():
        arm = experiment.arms[name]
        where = ["--dataset", FOLDER, "--data_dir", str(folds[fold])] if fold else _data_dir(data)
        runs.append(
            plan_run(
                name,
                seed,
                output_dir / name / fold / f"seed_{seed}",
                [*experiment.flags, *_without_data_dir(flags), *where, *_of_arm(arm)],
                fold=fold,
                control=arm.control,
                scoring=None if fold else _scoring(experiment, data),
            )
        )
    return runs


def _of_arm(arm: PlannedArm) -> list[str]:
    return [*(arm.flags or ()), "--max_steps", str(arm.steps)]


def _scoring(experiment: Experiment, data: Any) -> tuple[str, ...]:
    return ("--dataset", data.dataset, *_data_dir(data), "--split", experiment.split, "--num_workers", "1")


def _data_dir(data: Any) -> list[str]:
    return [] if data.data_dir is None else ["--data_dir", str(data.data_dir)]


def _without_data_dir(flags: Sequence[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data_dir")
    return parser.parse_known_args(flags)[1]


def _check_flags(flags: Sequence[str], accepted: Sequence[str] = OF_THIS_MACHINE) -> None:
    for word in flags:
        if word.startswith("--") and word.split("=")[0] not in accepted:
            raise UsageError(
                f"{word} is not accepted, since the file of an experiment fixes it; only {', '.join(accepted)} are "
                "not in the file."
            )


def _check_precision(experiment: Experiment) -> None:
    precision = experiment.flags[experiment.flags.index("--mixed_precision") + 1]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if precision == "bf16" and has_bf16(device) is False:
        raise UsageError(
            f"{experiment.name} is fixed to bf16, which this machine only emulates: run it on another, or fix float32 "
            "(--mixed_precision no) in the file before its first run."
        )


def _unpaired(experiment: Experiment, records: Records, machine: dict[str, Any], code: str) -> dict[int, list[Key]]:
    """List the records of seeds that cannot be completed here, and must be run again whole, by seed."""
    unpaired = {}
    for seed in experiment.seeds:
        wanted = [key for key in experiment.runs() if key[1] == seed]
        there = {key: records[key] for key in wanted if key in records}
        from_here = all((record["machine"], record["code"]) == (machine, code) for record in there.values())
        if there and (mixed_seeds(there) or (len(there) < len(wanted) and not from_here)):
            unpaired[seed] = list(there)
    return unpaired


def conclude(experiment: Experiment, folder: Path) -> str:
    """Write the verdict and the report of an experiment, and return the report; without all runs, say so instead."""
    records = read_records(experiment, folder)
    if missing := missing_runs(experiment, records):
        return describe_missing(missing, len(experiment.runs()))
    verdict = judge(experiment, records, exploratory=(folder / PEEKED).exists())
    text = markdown(experiment, records, verdict)
    write_json(folder / ("verdict.json" if experiment.purpose == "confirmation" else "choice.json"), verdict)
    replace_file(folder / "report.md", f"# {experiment.name}\n\n{text}\n")
    if experiment.purpose == "confirmation":
        draw_differences(experiment, records, folder / "differences.png")
    return text


def _peek(experiment: Experiment, folder: Path) -> str:
    """Compare the runs that are finished, and mark the experiment as exploratory from now on."""
    records = read_records(experiment, folder)
    if experiment.purpose == "selection":
        raise UsageError("--peek is for confirmations; a selection prints the score of every run.")
    scores = scores_by_seed({key: record for key, record in records.items() if key[1] not in mixed_seeds(records)})
    if len(scores.get(experiment.primary.arm, {}).keys() & scores.get(experiment.primary.baseline, {}).keys()) < 2:
        raise UsageError("--peek needs two seeds of which both primary arms are finished; nothing was marked.")
    looks = read_json(folder / PEEKED).get("looks", [])
    write_json(folder / PEEKED, {"looks": [*looks, {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "runs": len(records)}]})
    only = replace(experiment, secondary=[], calibration=[])
    primary = compare(only, scores, exploratory=True)["primary"]
    return (
        f"exploratory, after {len(records)} of {len(experiment.runs())} runs, so that nothing can be shown any more: "
        f"{primary['arm']} - {primary['baseline']} {primary['mean']:+.2f} "
        f"({primary['low']:+.2f} to {primary['high']:+.2f}), {primary['n']} seeds"
    )


def print_step_cost(path: Path, options: Options) -> None:
    """Measure what a step costs, and print the lines for the file: `step_cost:`, or the `steps:` of all arms.

    Raises:
        UsageError: If the file is faulty or lacks the flags of an arm, the processor lacks its precision, or arms have
            a teacher and no trained network is given, from which it would be as sure of its labels as in a run.
    """
    experiment = read_experiment(path)
    _check_flags(options.flags, (*OF_THIS_MACHINE, TRAINED))
    _check_precision(experiment)
    if experiment.primary is None or experiment.arms[experiment.primary.arm].steps != experiment.steps:
        _print_steps(experiment, options)
        return
    arm, baseline = (experiment.arms[name] for name in experiment.primary)
    if arm.flags is None or baseline.flags is None:
        experiment.check_is_complete()
    _check_teachers(experiment, options)
    cost, origin = _step_cost(experiment, options, arm, baseline)
    print(f"step_cost: {cost:.3f}  # {origin}")


def _check_teachers(experiment: Experiment, options: Options) -> None:
    if any(word.split("=")[0] == TRAINED for word in options.flags):
        return
    for arm in experiment.arms.values():
        if arm.flags is not None and command_line().parse([*experiment.flags, *arm.flags])[1].has_unlabeled:
            raise UsageError(
                f"--measure_step_cost needs {TRAINED}, the folder of a trained network: the teacher of {arm.name} "
                "would be sure of nothing with random weights, and its labels would cost less than in a run."
            )


def _print_steps(experiment: Experiment, options: Options) -> None:
    """Print how many steps every arm has in the time of the first arm.

    Steps before and after unlabeled images join are measured separately.
    """
    experiment.check_is_chosen()
    baseline, *others = experiment.arms.values()
    if baseline.steps != experiment.steps:
        raise UsageError(f"--measure_step_cost: the first arm, {baseline.name}, must have the steps of `flags:`.")
    _check_teachers(experiment, options)
    for arm in others:
        cost, origin = _step_cost(experiment, options, arm, baseline, "--unlabeled_start_step", "0")
        before = command_line().parse([*experiment.flags, *(arm.flags or ())])[2].unlabeled_start_step
        cost_before = _step_cost(experiment, options, arm, baseline)[0] if before else cost
        steps = before + math.floor((experiment.steps - before * cost_before) / cost)
        costs = f"a step costs {cost:.3f}, the first {before} {cost_before:.3f}" if before else f"{cost:.3f}"
        print(f"{arm.name}: {{steps: {steps}}}  # {costs}: {origin}")


def _step_cost(
    experiment: Experiment, options: Options, arm: PlannedArm, baseline: PlannedArm, *changes: str
) -> tuple[float, str]:
    """Measure the cost of a step of an arm over that of another, and say how."""
    common = [*experiment.flags, *options.flags, "--seed", str(experiment.seeds[0])]
    cost = measure_step_cost(
        [*common, *(arm.flags or ()), *changes], [*common, *(baseline.flags or ())], experiment.threads
    )
    machine = provenance.describe_machine(experiment.threads)
    return cost.ratio, (
        f"{1000 * cost.arm:.0f} ms / {1000 * cost.baseline:.0f} ms, median of {REPETITIONS} repetitions, "
        f"{machine['processor']}, torch {machine['torch']}, {time.strftime('%Y-%m-%d')}"
    )
