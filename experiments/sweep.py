"""One recipe, several arms, several seeds: a run each, in processes of their own, restartable run by run."""

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
NEVER_BEFORE_THE_END = 10**9  # steps, for runs whose length is given in epochs


class Arm(NamedTuple):
    """What is compared: a contrastive mode, and further flags of `scripts/train.py`."""

    name: str
    flags: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Arm:
        """'ms_cs', 'ms_cs --flag value' or 'NAME: ms_cs --flag value'.

        Raises:
            UsageError: If the text does not look like this, or the arm has flags and no name.
        """
        found = _ARM.fullmatch(text.strip())
        if not found or (found["flags"] and not found["name"]):
            raise UsageError(
                f"--arms: {text!r} must be a mode (ce, ms, ms_cs), or look like 'NAME: MODE --flag value'."
            )
        flags = shlex.split(found["flags"] or "")
        return cls(found["name"] or found["mode"], ("--contrastive_mode", found["mode"], *flags))


class SweepRun(NamedTuple):
    """One run: the flags of `scripts/train.py`, where it lies, and the settings that follow."""

    arm: str
    seed: int
    folder: Path
    flags: list[str]
    settings: dict[str, Any]

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        """A run is validated at its end only, so results are those of its last step."""
        duration = read_json(self.folder / RUN_FILE).get("duration", self.settings)
        return read_json(self.folder / RESULTS_FILE).get("step", 0) == duration["max_steps"]


def plan_runs(arms: Sequence[Arm], seeds: Sequence[int], output_dir: Path, flags: Sequence[str]) -> list[SweepRun]:
    """All runs, one seed after the other, so that what is finished early can be compared in pairs.

    Every run is validated after its last step only: the best of many looks would flatter whichever looks best often.

    Args:
        arms (`Sequence[Arm]`): What is compared; the first is the baseline.
        seeds (`Sequence[int]`): Seeds of initialization, data order and augmentation; the same for every arm.
        output_dir (`Path`): Folder of the sweep.
        flags (`Sequence[str]`): Of `scripts/train.py`, the same for all.

    Raises:
        UsageError: If names or seeds repeat, or a folder holds a run with other settings.
    """
    for name, values in (("arms", [arm.name for arm in arms]), ("seeds", list(seeds))):
        if len(set(values)) < len(values):
            raise UsageError(f"--{name}: every one once, got {values}.")
    runs = []
    for seed in seeds:
        for arm in arms:
            folder = output_dir / arm.name / f"seed_{seed}"
            own = [*flags, *arm.flags, "--seed", str(seed), "--output_dir", str(folder)]
            last = _settings(own)["max_steps"] or NEVER_BEFORE_THE_END
            own += ["--validation_steps", str(last)]
            runs.append(SweepRun(arm.name, seed, folder, own, _settings(own)))
            _check_settings(runs[-1])
    return runs


def _settings(flags: Sequence[str]) -> dict[str, Any]:
    """What `scripts/train.py` makes of its flags; faulty ones end here, before the first run."""
    model, data, training, _, network_settings = command_line().parse(flags)
    return {**as_mapping(model, data, training), **network_settings}


def _check_settings(run: SweepRun) -> None:
    before = read_json(run.folder / RUN_FILE).get("settings")
    if before is None:
        return
    before = add_missing(before, run.settings)
    different = [name for name in changed(before, run.settings) if purpose(name).on_resume != "free"]
    if different:
        name = different[0]
        raise UsageError(
            f"{run.folder} holds a run with other settings: {name} was {before.get(name)!r} and is "
            f"{run.settings.get(name)!r}. Choose another --output_dir, or remove that folder."
        )


def run_all(runs: Sequence[SweepRun], script: Path, parallel: int, tell: Callable[[str], None]) -> None:
    """Do what is not finished yet, `parallel` runs at a time; an interrupted run goes on from its checkpoint.

    Args:
        runs (`Sequence[SweepRun]`): In the order in which they start.
        script (`Path`): `scripts/train.py` of this repository.
        parallel (`int`): Runs at a time; on a CPU they share its cores.
        tell (`Callable`): Gets a line for every run that ends.

    Raises:
        UsageError: If a run fails; others are told to save and to stop.
        Interrupted: If this process was told to stop.
    """
    waiting = [run for run in runs if not run.finished]
    threads = str(max(1, (os.cpu_count() or 1) // parallel))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    active: dict[subprocess.Popen, tuple[SweepRun, float]] = {}
    try:
        with StopRequest() as stop:
            while (waiting or active) and not stop.came:
                while waiting and len(active) < parallel:
                    run = waiting.pop(0)
                    active[_start(run, script, environment)] = run, time.monotonic()
                for process in [process for process in active if process.poll() is not None]:
                    run, since = active.pop(process)
                    _check(run, process.returncode)
                    score, minutes = read_json(run.folder / RESULTS_FILE)["mean_iou"], (time.monotonic() - since) / 60
                    tell(f"{run.arm}, seed {run.seed}: mIoU {100 * score:.2f} %, {minutes:.1f} minutes")
                time.sleep(_POLL_SECONDS)
    finally:
        for process in active:
            process.terminate()  # saves a checkpoint
        for process in active:
            process.wait()
    if stop.came:
        raise Interrupted("stopped; the same command goes on where this one was")


def _start(run: SweepRun, script: Path, environment: dict[str, str]) -> subprocess.Popen:
    run.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(script), *run.flags, "--resume", "auto"]
    with run.log.open("a") as log:
        # a session of its own: Ctrl-C reaches the sweep alone, which tells each run once; told twice, it ends unsaved
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def _check(run: SweepRun, exit_code: int) -> None:
    if exit_code == 0:
        return
    lines = run.log.read_text().strip().splitlines() or ["it printed nothing"]
    raise UsageError(
        f"{run.arm}, seed {run.seed} ended with exit code {exit_code}: {lines[-1]} (all of it: {run.log})"
    )
