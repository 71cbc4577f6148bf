"""Report a sweep: differences from the baseline paired by seed, and curves of the terms of the loss."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msctr_hf.training.run_folder import LOG_FILE, read_log

from .evidence.paired_tests import t_interval
from .sweep import SweepRun

_TERM = re.compile(r"cross_entropy|auxiliary|contrastive/stage_\w+")


class Comparison(NamedTuple):
    """One arm compared with the baseline; `None` where there is nothing to compare.

    Args:
        arm (`str`): Name of the arm.
        scores (`list[float]`): mIoU of every seed.
        difference (`float`, *optional*): Mean difference from the baseline, paired by seed.
        interval (`float`, *optional*): Half the width of its 95 % interval (Student's t); needs two pairs.
        per_class (`dict[str, float]`): IoU of every class for the baseline, differences from it for others; NaN for a
            class that no validation image contains.
        time, memory (`float`): Time per image and largest memory, as ratios to the baseline.
    """

    arm: str
    scores: list[float]
    difference: float | None
    interval: float | None
    per_class: dict[str, float]
    time: float
    memory: float


def compare_arms(rows: Sequence[dict[str, Any]], baseline: str) -> list[Comparison]:
    """Compare every arm with the baseline, seed by seed.

    Args:
        rows (`Sequence[dict]`): Runs as `describe` returns them; the runs of a sweep may be finished only in part.
        baseline (`str`): Name of the arm to compare with.
    """
    runs: dict[str, dict[int, dict]] = {}
    for row in rows:
        runs.setdefault(row["arm"], {})[row["seed"]] = row
    arms = sorted(runs, key=lambda arm: arm != baseline)  # the baseline first, the others in the order of their runs
    return [_compare(arm, runs[arm], runs.get(baseline, {}), arm == baseline) for arm in arms]


def _compare(arm: str, runs: dict[int, dict], baseline: dict[int, dict], is_baseline: bool) -> Comparison:
    pairs = [(run, baseline[seed]) for seed, run in runs.items() if seed in baseline]
    differences = [run["mean_iou"] - base["mean_iou"] for run, base in pairs]
    per_class = {}
    for name in next(iter(runs.values()))["per_category_iou"]:
        ious = [(run["per_category_iou"][name], base["per_category_iou"][name]) for run, base in pairs]
        per_class[name] = _mean(
            [iou if is_baseline else iou - of_baseline for iou, of_baseline in ious if None not in (iou, of_baseline)]
        )
    return Comparison(
        arm,
        [run["mean_iou"] for run in runs.values()],
        None if is_baseline or not pairs else _mean(differences),
        None if is_baseline or len(pairs) < 2 else _half_interval(differences),
        per_class,
        _mean([base["images_per_second"] / run["images_per_second"] for run, base in pairs]),
        _mean([run["used_mb"] / base["used_mb"] for run, base in pairs]),
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if values else float("nan")


def _half_interval(differences: Sequence[float]) -> float:
    low, high = t_interval(differences)
    return (high - low) / 2


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Format a table of arms with differences and costs, and a table of classes; the baseline comes first in both."""
    first, *others = comparisons
    lines = [
        f"| | seeds | mIoU | difference, 95 % interval | time / {first.arm} | memory / {first.arm} |",
        "|---|---|---|---|---|---|",
    ]
    for each in comparisons:
        deviation = f" ± {100 * statistics.stdev(each.scores):.2f}" if len(each.scores) > 1 else ""
        difference = "" if each.difference is None else f"{100 * each.difference:+.2f}"
        interval = "" if each.interval is None else f" ± {100 * each.interval:.2f}"
        lines.append(
            f"| {each.arm} | {len(each.scores)} | {100 * statistics.mean(each.scores):.2f}{deviation} | "
            f"{difference}{interval} | {each.time:.2f} | {each.memory:.2f} |"
        )
    lines += [
        "",
        f"| IoU | {' | '.join([first.arm, *(each.arm for each in others)])} |",
        "|---" * (len(comparisons) + 1) + "|",
    ]
    for name, iou in first.per_class.items():
        cells = [f"{100 * iou:.1f}", *(f"{100 * each.per_class[name]:+.1f}" for each in others)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_curves(runs: Sequence[SweepRun], path: Path) -> None:
    """Draw every term of the loss over the steps: one panel per term, one line per arm, the mean over its seeds."""
    from matplotlib.figure import Figure

    colors = {arm: f"C{place}" for place, arm in enumerate(dict.fromkeys(run.arm for run in runs))}
    curves: dict[str, dict[str, dict[int, list[float]]]] = {}  # term -> arm -> step -> values
    for run in runs:
        for line in read_log(run.folder) if (run.folder / LOG_FILE).exists() else []:
            for term in filter(_TERM.fullmatch, line):
                curves.setdefault(term, {}).setdefault(run.arm, {}).setdefault(line["step"], []).append(line[term])
    columns = min(4, len(curves))
    grid = (-(-len(curves) // columns), columns)
    figure = Figure(figsize=(3.6 * columns, 2.6 * grid[0]), layout="constrained")
    panels = figure.subplots(*grid, squeeze=False)
    for panel in panels.flat[len(curves) :]:
        panel.set_axis_off()
    for panel, (term, arms) in zip(panels.flat, curves.items(), strict=False):
        for arm, steps in arms.items():
            means = [statistics.mean(values) for values in steps.values()]
            panel.plot(list(steps), means, label=arm, color=colors[arm], linewidth=1)
        panel.set_title(term, fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
    panels.flat[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
