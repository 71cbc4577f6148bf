"""Run one recipe with several arms and seeds; every run is a separate process that can be resumed."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
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
from msctr_hf.training.run_folder import LAST, RESULTS_FILE, RUN_FILE, read_json
from msctr_hf.training.settings import add_missing, purpose

DEFAULT_ARMS = ("ce", "ms", "ms_cs", "budget: ms_cs --contrastive_sampling budget --contrastive_max_anchors 1024")
_ARM = re.compile(r"(?:(?P<name>\w[\w.+-]*):\s*)?(?P<mode>ce|ms|ms_cs)(?P<flags>\s.*)?")
_SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
_POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1  # of prctl(2)
SCORES = "scores"  # folder in that of a run with the scores of its last network
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
    """One run of a sweep.

    Args:
        arm (`str`): Name of its arm.
        seed (`int`): Its seed.
        folder (`Path`): Its folder.
        flags (`list[str]`): Its flags for `scripts/train.py`.
        settings (`dict[str, Any]`): The settings parsed from them.
        fold (`str`): Part of the data that it is scored on, if the sweep has several.
        control (`str`, *optional*): First argument of `scripts/control.py`, which then trains it.
        scoring (`tuple[str, ...]`, *optional*): Flags of `scripts/score_videos.py`, which scores its last network when
            it is trained; without them its own validation is its score.
    """

    arm: str
    seed: int
    folder: Path
    flags: list[str]
    settings: dict[str, Any]
    fold: str = ""
    control: str | None = None
    scoring: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Arm, fold and seed in words."""
        return ", ".join([self.arm, *([self.fold] if self.fold else []), f"seed {self.seed}"])

    @property
    def log(self) -> Path:
        """Path of the file with the output of the run."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def scores(self) -> Path:
        """Path of the file with the scores of the run."""
        return self.folder / (RESULTS_FILE if self.scoring is None else f"{SCORES}/{RESULTS_FILE}")

    @property
    def trained(self) -> bool:
        """Whether the run has been validated after its last step, which is its only validation."""
        duration = read_json(self.folder / RUN_FILE).get("duration", self.settings)
        return read_json(self.folder / RESULTS_FILE).get("step", 0) == duration["max_steps"]

    @property
    def finished(self) -> bool:
        """Whether the run is trained and scored."""
        return self.trained and self.scores.exists()

    def next_command(self) -> list[str]:
        """Return the command that trains or resumes the run or, when it is trained, the one that scores it."""
        if self.trained and self.scoring is not None:
            return [
                *(str(_SCRIPTS / "score_videos.py"), "--model", str(self.folder / LAST), *self.scoring),
                *("--output_dir", str(self.scores.parent)),
            ]
        script = ["train.py"] if self.control is None else ["control.py", self.control]
        return [str(_SCRIPTS / script[0]), *script[1:], *self.flags, "--resume", "auto"]


def plan_runs(arms: Sequence[Arm], seeds: Sequence[int], output_dir: Path, flags: Sequence[str]) -> list[SweepRun]:
    """Plan all runs, one seed after the other, so that an unfinished sweep already has runs to compare.

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
    return [
        plan_run(arm.name, seed, output_dir / arm.name / f"seed_{seed}", [*flags, *arm.flags])
        for seed in seeds
        for arm in arms
    ]


def plan_run(arm: str, seed: int, folder: Path, flags: Sequence[str], **more: Any) -> SweepRun:
    """Plan one run, which is validated only after its last step.

    The best of several validations would favor arms whose scores fluctuate.

    Args:
        arm (`str`): Name of its arm.
        seed (`int`): Seed of initialization, data order and augmentation.
        folder (`Path`): Its folder.
        flags (`Sequence[str]`): Its flags of `scripts/train.py` but those of seed, folder and validation.
        more: Further fields of `SweepRun`.

    Raises:
        UsageError: If the folder holds a run with other settings.
    """
    own = [*flags, "--seed", str(seed), "--output_dir", str(folder)]
    settings = _settings(own)
    settings["validation_steps"] = settings["max_steps"] or BEYOND_ANY_RUN
    own += ["--validation_steps", str(settings["validation_steps"])]
    run = SweepRun(arm, seed, folder, own, settings, **more)
    _check_settings(run)
    return run


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


def run_all(
    runs: Sequence[SweepRun],
    parallel: int,
    report: Callable[[SweepRun, float], None],
    *,
    threads: int | None = None,
    may_start: Callable[[SweepRun, Sequence[Active]], bool] = lambda run, active: True,
) -> None:
    """Train and score all unfinished runs, `parallel` at a time; an interrupted run resumes from its checkpoint.

    Args:
        runs (`Sequence[SweepRun]`): All runs, in the order in which they start.
        parallel (`int`): Runs at a time; on a CPU they share its cores.
        report (`Callable`): Called with every run that ends and its minutes.
        threads (`int`, *optional*): Threads of every run; by default those of OMP_NUM_THREADS, or an equal share.
        may_start (`Callable`): Called before a run starts, with the active ones; if it is false, no other run starts.

    Raises:
        UsageError: If a run fails; the others save a checkpoint and stop.
        Interrupted: If this process received SIGTERM or Ctrl-C, or `may_start` was false.
    """
    waiting = [run for run in runs if not run.finished]
    share = str(max(1, (os.cpu_count() or 1) // parallel))
    environment = {"OMP_NUM_THREADS": share, **os.environ}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    active: dict[subprocess.Popen, Active] = {}
    num_left = 0
    try:
        with StopRequest() as stop:
            while (waiting or active) and not stop.requested:
                while waiting and len(active) < parallel:
                    if not may_start(waiting[0], list(active.values())):
                        num_left, waiting = len(waiting), []
                        break
                    run = waiting.pop(0)
                    active[_start(run, environment)] = Active(run, time.monotonic())
                for process in [process for process in active if process.poll() is not None]:
                    run, since = active.pop(process)
                    _check(run, process)
                    if run.finished:
                        report(run, (time.monotonic() - since) / 60)
                    else:  # trained, but not scored
                        active[_start(run, environment)] = Active(run, since)
                time.sleep(_POLL_SECONDS)
    finally:
        for process in active:
            process.terminate()  # SIGTERM, at which a run saves a checkpoint
        for process in active:
            process.wait()
    if stop.requested:
        raise Interrupted("stopped; the same command resumes where this one stopped")
    if num_left:
        raise Interrupted(f"{num_left} runs are left, which do not fit into --time_left; the same command starts them")


class Active(NamedTuple):
    """Run that is being trained or scored, and when it started on the monotonic clock, in seconds."""

    run: SweepRun
    since: float


def _start(run: SweepRun, environment: dict[str, str]) -> subprocess.Popen:
    run.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *run.next_command()]
    with run.log.open("a") as log:
        # In a session of its own, Ctrl-C reaches the sweep alone, which signals every run once: a run that gets a
        # second signal ends without saving.
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_end_with_the_parent if sys.platform == "linux" else None,
        )


def _end_with_the_parent() -> None:
    """Let the kernel send SIGTERM to this process, which then saves a checkpoint, if the sweep is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _check(run: SweepRun, process: subprocess.Popen) -> None:
    if process.returncode != 0:
        lines = run.log.read_text().strip().splitlines() or ["it printed nothing"]
        raise UsageError(
            f"{run.name} ended with exit code {process.returncode}: {lines[-1]} (complete output: {run.log})"
        )
    scored = process.args == [sys.executable, *run.next_command()] or run.finished
    # no finite network, or no labeled pixel
    if (scored and not run.finished) or (run.finished and read_json(run.scores).get("mean_iou") is None):
        raise UsageError(f"{run.name} ended without a score (complete output: {run.log}).")
