"""Files of experiments: everything that must be fixed before the first run.

purpose: confirmation              # or selection
flags: --config ... --max_steps 720 --mixed_precision bf16     # of `scripts/train.py`, the same for all runs
seeds: [100, 101, 102, ...]
minutes: 12                        # of a run with these steps and its scoring; an upper bound, for --time_left
threads: 1                         # of a run
groups: {rare: [pole, ...]}        # classes whose mean IoU is reported too
arms:
  chosen: {run: ms_cs --contrastive_loss_weight 0.03}     # a mode and flags of its own
  ce_time: {run: ce, equal_time: true}                    # as many steps as the time of the first primary arm buys
  ce: {run: ce, seeds: 8}                                 # only the first 8 seeds
  teacher: {run: ..., steps: 500}                         # steps of its own; null until --measure_step_cost
  placebo: {like: chosen, control: placebo, seeds: 8}     # see controls.py
  same: {like: ce, control: same, seeds: 6, cut_to: 3}    # planned with 6 seeds, cut for time; no primary arm

A confirmation also has:

split: test
step_cost: 1.08                    # cost of a step of the primary arm over one of ce: --measure_step_cost
primary: [chosen, ce_time]         # an arm and what it is compared with: the only claim
secondary: [[chosen, ce], [chosen, placebo]]
calibration: [[same, ce]]          # only their spread is reported
reported: [ms]                     # optional: arms that are compared with nothing

A selection also has:

folds:                             # lists of image names: what is trained on, and the video that is left out
  without_0016E5: {train: camvid_0001TP_0006R0.txt, validation: camvid_0016E5.txt}
families: {contrast: [...], ce: [...]}     # of each, the arm with the highest mean over folds and seeds is chosen
at_rest: 0.5                       # optional: instead, the first from which on none gains more over the one before it
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from msctr_hf.errors import UsageError, first_line

from ..sweep import Arm
from .controls import CONTROLS
from .paired_tests import MAX_PAIRS

_COMMON = {"purpose", "flags", "seeds", "minutes", "threads", "groups", "arms"}
_OF_PURPOSE = {
    "confirmation": {"split", "step_cost", "primary", "secondary", "calibration", "reported"},
    "selection": {"folds", "families", "at_rest"},
}
_OPTIONAL = {"secondary", "calibration", "reported", "groups", "at_rest"}
_OF_ARM = {"run", "like", "equal_time", "steps", "control", "seeds", "cut_to"}
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "flags": ("text", (str,)),
    "minutes": ("a number", (int, float)),
    "threads": ("a whole number", (int,)),
    "arms": ("a mapping", (dict,)),
    "step_cost": ("a number or null", (int, float, type(None))),
    "at_rest": ("a number", (int, float)),
}
_FIXED = ("--max_steps", "--mixed_precision")  # flags that every file must give


class Comparison(NamedTuple):
    """Arm and the arm with which it is compared."""

    arm: str
    baseline: str


class PlannedArm(NamedTuple):
    """Arm of an experiment.

    Args:
        name (`str`): Name of the arm.
        flags (`tuple[str, ...]`, *optional*): Its own flags of `scripts/train.py`; `None` while they are not chosen.
        steps (`int`, *optional*): Number of training steps; `None` while the cost of a step is not measured.
        control (`str`, *optional*): Name of a change of the loss in `CONTROLS`.
        seeds (`tuple[int, ...]`): Seeds with which it was planned.
        cut_to (`int`, *optional*): Number of them with which it is run, if time forced a cut.
    """

    name: str
    flags: tuple[str, ...] | None
    steps: int | None
    control: str | None
    seeds: tuple[int, ...]
    cut_to: int | None = None

    def runs_with(self, seed: int) -> bool:
        """Say whether the arm is run with a seed."""
        return seed in self.seeds[: self.cut_to]


class Fold(NamedTuple):
    """Lists of the names of images, as paths of text files."""

    train: Path
    validation: Path


@dataclass(frozen=True)
class Experiment:
    """Content of the file of an experiment.

    Args:
        name (`str`): Name of the file without its ending.
        purpose (`str`): `"selection"`, which never loads the test split, or `"confirmation"`.
        flags (`tuple[str, ...]`): Flags of `scripts/train.py` that all runs have.
        steps (`int`): Training steps of all arms but those with equal time or steps of their own.
        seeds (`tuple[int, ...]`): All seeds, in the order in which they are run.
        minutes (`float`): Upper bound of the minutes that a run with `steps` takes.
        threads (`int`): Threads of a run.
        arms (`Mapping[str, PlannedArm]`): Arms by name, in the order in which those of a seed are run.
        groups (`Mapping[str, Sequence[str]]`): Groups of classes whose mean IoU is reported.
        split (`str`): Split that is scored.
        primary (`Comparison`, *optional*): The comparison that a confirmation may claim.
        secondary, calibration (`Sequence[Comparison]`): Further comparisons; those of which only the spread counts.
        folds (`Mapping[str, Fold]`): Folds of a selection by name; empty for a confirmation.
        families (`Mapping[str, Sequence[str]]`): Arms of a selection of which one is chosen.
        at_rest (`float`, *optional*): Points that an arm of a selection, and any after it, may gain at most.
    """

    name: str
    purpose: Literal["selection", "confirmation"]
    flags: tuple[str, ...]
    steps: int
    seeds: tuple[int, ...]
    minutes: float
    threads: int
    arms: Mapping[str, PlannedArm]
    groups: Mapping[str, Sequence[str]]
    split: str
    primary: Comparison | None
    secondary: Sequence[Comparison]
    calibration: Sequence[Comparison]
    folds: Mapping[str, Fold]
    families: Mapping[str, Sequence[str]]
    at_rest: float | None = None

    @property
    def comparisons(self) -> list[Comparison]:
        """All comparisons, the primary one first."""
        return [*([self.primary] if self.primary else []), *self.secondary, *self.calibration]

    def runs(self) -> list[tuple[str, int, str]]:
        """List (arm, seed, fold) of all runs, seed by seed; the fold is empty without folds."""
        return [
            (arm.name, seed, fold)
            for seed in self.seeds
            for arm in self.arms.values()
            if arm.runs_with(seed)
            for fold in self.folds or ("",)
        ]

    def fingerprint(self, arm: str) -> str:
        """Return a hash of what the file fixes for the runs of an arm, the planned number of seeds included.

        Records of another version of the file are not judged: seeds that were added later would be pooled. A cut does
        not change it, since the report states it.
        """
        planned = [value for name, value in self.arms[arm]._asdict().items() if name != "cut_to"]
        fixed = [self.purpose, self.split, self.flags, self.seeds, list(self.folds), *planned]
        return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:16]

    def check_is_chosen(self) -> None:
        """Refuse an experiment of which something is still to be chosen.

        Raises:
            UsageError: If an arm has no flags yet.
        """
        for arm in self.arms.values():
            if arm.flags is None:
                raise UsageError(
                    f"{self.name}: the arm {arm.name} has no `run:` yet; write what was chosen into the file and "
                    "commit it before the first run."
                )

    def check_is_complete(self) -> None:
        """Refuse an experiment of which something is still to be chosen or measured.

        Raises:
            UsageError: If an arm has no flags yet, or the cost of a step is missing.
        """
        self.check_is_chosen()
        for arm in self.arms.values():
            if arm.steps is None:
                raise UsageError(
                    f"{self.name}: the steps of the arm {arm.name} are not measured yet; --measure_step_cost prints "
                    "the lines for the file, which must be committed before the first run."
                )


def read_experiment(path: Path) -> Experiment:
    """Read the file of an experiment.

    Raises:
        UsageError: If the file cannot be read, a key is missing or unknown, or values contradict each other.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error
    try:
        return _experiment(path, content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _experiment(path: Path, content: Any) -> Experiment:
    purpose = content.get("purpose") if isinstance(content, dict) else None
    if purpose not in _OF_PURPOSE:
        raise UsageError(f"`purpose:` must be one of {', '.join(_OF_PURPOSE)}, got {purpose!r}.")
    allowed = _COMMON | _OF_PURPOSE[purpose]
    if unknown := sorted(set(map(str, content)) - allowed):
        raise UsageError(f"a {purpose} has no {unknown}; its keys are {sorted(allowed)}.")
    if missing := sorted(allowed - set(content) - _OPTIONAL):
        raise UsageError(f"{missing} are missing.")
    for name, (described, kinds) in _KINDS.items():
        if name in content and not isinstance(content[name], kinds):
            raise UsageError(f"`{name}:` must be {described}, got {content[name]!r}.")
    flags = tuple(shlex.split(content["flags"]))
    seeds = _seeds(content["seeds"])
    arms = _arms(content["arms"], seeds, _steps(flags, purpose), content.get("step_cost"))
    primary = _comparison(content["primary"]) if purpose == "confirmation" else None
    experiment = Experiment(
        name=path.stem,
        purpose=purpose,
        flags=flags,
        steps=_steps(flags, purpose),
        seeds=seeds,
        minutes=float(content["minutes"]),
        threads=int(content["threads"]),
        arms=arms,
        groups=content.get("groups") or {},
        split=content.get("split", "validation"),
        primary=primary,
        secondary=[_comparison(pair) for pair in content.get("secondary") or []],
        calibration=[_comparison(pair) for pair in content.get("calibration") or []],
        folds={
            name: Fold(*(path.parent / lists[split] for split in Fold._fields))
            for name, lists in (content.get("folds") or {}).items()
        },
        families=content.get("families") or {},
        at_rest=content.get("at_rest"),
    )
    _check_names(experiment, content.get("reported") or [])
    return experiment


def _comparison(pair: Any) -> Comparison:
    if not isinstance(pair, list) or len(pair) != 2:
        raise UsageError(f"a comparison must be [arm, baseline], got {pair!r}.")
    return Comparison(*map(str, pair))


def _steps(flags: Sequence[str], purpose: str) -> int:
    for flag in _FIXED:
        if flag not in flags:
            raise UsageError(f"`flags:` must give {flag}, so that it is fixed before the first run.")
    if flags[flags.index("--mixed_precision") + 1] == "auto":
        raise UsageError("`flags:` must give --mixed_precision bf16 or no: with auto, machines would differ.")
    return int(flags[flags.index("--max_steps") + 1])


def _seeds(seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds or len(set(seeds)) < len(seeds) or len(seeds) > MAX_PAIRS:
        raise UsageError(f"`seeds:` must list 1 to {MAX_PAIRS} different numbers, got {seeds!r}.")
    return tuple(seeds)


def _arms(
    given: Mapping[str, Mapping[str, Any]], seeds: tuple[int, ...], steps: int, step_cost: float | None
) -> dict[str, PlannedArm]:
    arms: dict[str, PlannedArm] = {}
    for name, arm in given.items():
        if unknown := sorted(set(arm) - _OF_ARM):
            raise UsageError(f"the arm {name} has unknown keys {unknown}; choose from {sorted(_OF_ARM)}.")
        if ("run" in arm) == ("like" in arm):
            raise UsageError(f"the arm {name} must have either `run:` or `like:`.")
        if "like" in arm and "run" not in given.get(arm["like"], {}):
            raise UsageError(f"the arm {name} is like {arm['like']!r}, which is not an arm with `run:`.")
        if arm.get("control") not in (None, *CONTROLS):
            raise UsageError(f"the arm {name}: `control:` is one of {sorted(CONTROLS)}, not {arm['control']!r}.")
        if not 1 <= arm.get("seeds", len(seeds)) <= len(seeds):
            raise UsageError(f"the arm {name} is run with {arm['seeds']} seeds, but there are {len(seeds)}.")
        planned = seeds[: arm.get("seeds", len(seeds))]
        if not 1 <= arm.get("cut_to", 1) <= len(planned):
            raise UsageError(
                f"the arm {name} is cut to {arm['cut_to']} seeds, but it was planned with {len(planned)}."
            )
        if "steps" in arm and (arm.get("equal_time") or not isinstance(arm["steps"], (int, type(None)))):
            raise UsageError(
                f"the arm {name}: `steps:` must be a whole number or null, and excludes `equal_time:`, got "
                f"{arm['steps']!r}."
            )
        run = given[arm["like"]]["run"] if "like" in arm else arm["run"]
        own_steps: int | None = arm.get("steps", steps)
        if arm.get("equal_time"):
            own_steps = None if step_cost is None else math.ceil(steps * step_cost)
        flags = None if run is None else Arm.parse(f"{name}: {run}").flags
        arms[name] = PlannedArm(name, flags, own_steps, arm.get("control"), planned, arm.get("cut_to"))
    return arms


def _check_names(experiment: Experiment, reported: Sequence[str]) -> None:
    named = set(reported) | {name for comparison in experiment.comparisons for name in comparison}
    named |= {name for family in experiment.families.values() for name in family}
    if unknown := sorted(named - set(experiment.arms)):
        raise UsageError(f"{unknown} are compared, but are not among the arms {list(experiment.arms)}.")
    if unused := sorted(set(experiment.arms) - named):
        raise UsageError(f"the arms {unused} are compared with nothing.")
    if len(set(experiment.comparisons)) < len(experiment.comparisons):
        raise UsageError("a comparison is listed twice.")
    if experiment.purpose == "selection":
        for word in (*experiment.flags, *(flag for arm in experiment.arms.values() for flag in arm.flags or ())):
            if "test" in re.split("[=+]", word):
                raise UsageError(f"a selection never loads the test split; remove {word!r} from the flags.")
    if experiment.purpose == "selection" and not experiment.folds:
        raise UsageError("a selection leaves videos out, so `folds:` must name at least one.")
    if experiment.primary is not None and experiment.primary.arm == experiment.primary.baseline:
        raise UsageError("`primary:` must name two arms.")
    whole = experiment.primary or experiment.arms  # every arm of a selection
    if cut := [name for name in whole if experiment.arms[name].cut_to is not None]:
        raise UsageError(f"the arms {cut} decide the result and cannot be cut; remove `cut_to:`.")
