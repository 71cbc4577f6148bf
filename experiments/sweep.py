"""Run one recipe with several arms and seeds; every run is a separate process that can be resumed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msctr_hf.commands.train import command_line
from msctr_hf.errors import UsageError
from msctr_hf.settings import as_mapping, changed
from msctr_hf.training.interruption import Interrupted, StopRequest
from msctr_hf.training.run_folder import RESULTS_FILE, RUN_FILE, read_json
from msctr_hf.training.settings import add_missing, purpose

DEFAULT_ARMS = ("ce", "ms", "ms_cs", "budget: ms_cs --contrastive_sampling budget --contrastive_max_anchors 1024")
_ARM = re.compile(r"(?:(?P<name>\w[\w.+-]*):\s*)?(?P<mode>ce|ms|ms_cs)(?P<flags>\s.*)?")
_POLL_SECONDS = 0.5
BEYOND_ANY_RUN = 10**9  # validation_steps of a run in epochs, so that only its last step is validated


class Arm(NamedTuple):
    """One arm of a comparison: a contrastive mode, and further flags of `scripts/train.py`."""

    name: str
    flags: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Arm:
        """Parse 'ms_cs', 'NAME: ms_cs' or 'NAME: ms_cs --flag value'.

        Raises:
            UsageError: If the text has another form, or the arm has flags but no name.
        """
        found = _ARM.fullmatch(text.strip())
        if not found or (found["flags"] and not found["name"]):
            raise UsageError(
                f"--arms: {text!r} must be a mode (ce, ms, ms_cs), or look like 'NAME: MODE --flag value'."
            )
        flags = shlex.split(found["flags"] or "")
        return cls(found["name"] or found["mode"], ("--contrastive_mode", found["mode"], *flags))


class SweepRun(NamedTuple):
    """One run of a sweep: its folder, its flags for `scripts/train.py`, and the settings parsed from them."""

    arm: str
    seed: int
    folder: Path
    flags: list[str]
    settings: dict[str, Any]

    @property
    def log(self) -> Path:
        """Path of the file with the output of the run."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        """Whether the run has been validated after its last step, which is its only validation."""
        duration = read_json(self.folder / RUN_FILE).get("duration", self.settings)
        return read_json(self.folder / RESULTS_FILE).get("step", 0) == duration["max_steps"]


def plan_runs(arms: Sequence[Arm], seeds: Sequence[int], output_dir: Path, flags: Sequence[str]) -> list[SweepRun]:
    """Plan all runs, one seed after the other, so that an unfinished sweep already has runs to compare.

    Every run is validated only after its last step: the best of several validations would favor arms whose scores
    fluctuate.

    Args:
        arms (`Sequence[Arm]`): Arms of the comparison; the first is the baseline.
        seeds (`Sequence[int]`): Seeds of initialization, data order and augmentation; the same for every arm.
        output_dir (`Path`): Folder of the sweep.
        flags (`Sequence[str]`): Flags of `scripts/train.py`, the same for all runs.

    Raises:
        UsageError: If names or seeds repeat, or a folder holds a run with other settings.
    """
    for name, values in (("arms", [arm.name for arm in arms]), ("seeds", list(seeds))):
        if len(set(values)) < len(values):
            raise UsageError(f"--{name}: every entry must be given once, got {values}.")
    runs = []
    for seed in seeds:
        for arm in arms:
            folder = output_dir / arm.name / f"seed_{seed}"
            own = [*flags, *arm.flags, "--seed", str(seed), "--output_dir", str(folder)]
            last = _settings(own)["max_steps"] or BEYOND_ANY_RUN
            own += ["--validation_steps", str(last)]
            runs.append(SweepRun(arm.name, seed, folder, own, _settings(own)))
            _check_settings(runs[-1])
    return runs


def _settings(flags: Sequence[str]) -> dict[str, Any]:
    """Parse flags as `scripts/train.py` does, so that faulty ones are refused before the first run."""
    model, data, training, _, network_settings = command_line().parse(flags)
    return {**as_mapping(model, data, training), **network_settings}


def _check_settings(run: SweepRun) -> None:
    before = read_json(run.folder / RUN_FILE).get("settings")
    if before is None:
        return
    before = add_missing(before, run.settings)
    different = [name for name in changed(before, run.settings) if purpose(name).on_resume != "free"]
    if run.settings["mixed_precision"] == "auto":  # run.json has the precision that this stood for
        different = [name for name in different if name != "mixed_precision"]
    if different:
        name = different[0]
        raise UsageError(
            f"{run.folder} holds a run with other settings: {name} was {before.get(name)!r} and is "
            f"{run.settings.get(name)!r}. Choose another --output_dir, or remove that folder."
        )


def run_all(runs: Sequence[SweepRun], script: Path, parallel: int, report: Callable[[str], None]) -> None:
    """Run all unfinished runs, `parallel` at a time; an interrupted run resumes from its checkpoint.

    Args:
        runs (`Sequence[SweepRun]`): All runs, in the order in which they start.
        script (`Path`): `scripts/train.py` of this repository.
        parallel (`int`): Runs at a time; on a CPU they share its cores.
        report (`Callable`): Called with one line for every run that ends.

    Raises:
        UsageError: If a run fails; the others save a checkpoint and stop.
        Interrupted: If this process received SIGTERM or Ctrl-C.
    """
    waiting = [run for run in runs if not run.finished]
    threads = str(max(1, (os.cpu_count() or 1) // parallel))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    active: dict[subprocess.Popen, tuple[SweepRun, float]] = {}
    try:
        with StopRequest() as stop:
            while (waiting or active) and not stop.requested:
                while waiting and len(active) < parallel:
                    run = waiting.pop(0)
                    active[_start(run, script, environment)] = run, time.monotonic()
                for process in [process for process in active if process.poll() is not None]:
                    run, since = active.pop(process)
                    _check(run, process.returncode)
                    score, minutes = _score(run), (time.monotonic() - since) / 60
                    report(f"{run.arm}, seed {run.seed}: mIoU {100 * score:.2f} %, {minutes:.1f} minutes")
                time.sleep(_POLL_SECONDS)
    finally:
        for process in active:
            process.terminate()  # SIGTERM, at which a run saves a checkpoint
        for process in active:
            process.wait()
    if stop.requested:
        raise Interrupted("stopped; the same command resumes where this one stopped")


def _start(run: SweepRun, script: Path, environment: dict[str, str]) -> subprocess.Popen:
    run.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(script), *run.flags, "--resume", "auto"]
    with run.log.open("a") as log:
        # In a session of its own, Ctrl-C reaches the sweep alone, which signals every run once: a run that gets a
        # second signal ends without saving.
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def _score(run: SweepRun) -> float:
    score = read_json(run.folder / RESULTS_FILE).get("mean_iou")
    if score is None:  # no finite network, or no labeled pixel
        raise UsageError(f"{run.arm}, seed {run.seed} ended without a score (complete output: {run.log}).")
    return score


def _check(run: SweepRun, exit_code: int) -> None:
    if exit_code == 0:
        return
    lines = run.log.read_text().strip().splitlines() or ["it printed nothing"]
    raise UsageError(
        f"{run.arm}, seed {run.seed} ended with exit code {exit_code}: {lines[-1]} (complete output: {run.log})"
    )
