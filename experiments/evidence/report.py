"""Tables and figure of an experiment whose runs are all finished."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .plan import Comparison, Experiment
from .verdict import Records, paired, scores_by_seed

Record = Mapping[str, Any]


def markdown(experiment: Experiment, records: Records, verdict: Mapping[str, Any]) -> str:
    """Format the result of an experiment, which needs all of its runs.

    Args:
        experiment (`Experiment`): The experiment.
        records (`Mapping`): Records of all runs.
        verdict (`Mapping`): What `judge` returned for them.
    """
    if experiment.purpose == "selection":
        return _selection(experiment, records, verdict)
    parts = [_conclusion(verdict), _comparisons(verdict), _arms(experiment, records)]
    parts += [_classes(experiment, records), *_remarks(experiment, records, verdict)]
    return "\n\n".join(parts)


def _conclusion(verdict: Mapping[str, Any]) -> str:
    primary = verdict["primary"]
    shown = "shown" if primary["shown"] else "not shown"
    if verdict["exploratory"]:
        shown = "exploratory, since results were looked at before all runs were finished: nothing is shown"
    p_value = "" if primary["p_sign_flip"] is None else f", p = {_p(primary['p_sign_flip'])}"
    return f"**{primary['arm']} - {primary['baseline']}: {_points(primary)}{p_value}, {primary['n']} seeds: {shown}.**"


def _comparisons(verdict: Mapping[str, Any]) -> str:
    lines = [
        "| points of mIoU | seeds | difference, 95 % interval | p | p, Holm | shown |",
        "|---|---|---|---|---|---|",
    ]
    for row in (verdict["primary"], *verdict["secondary"]):
        adjusted = _p(row["p_holm"]) if "p_holm" in row else "primary"
        cells = [f"{row['arm']} - {row['baseline']}", str(row["n"]), _points(row), _p(row["p_sign_flip"]), adjusted]
        lines.append(f"| {' | '.join(cells)} | {'yes' if row['shown'] else 'no'} |")
    return "\n".join(lines)


def _points(row: Mapping[str, Any]) -> str:
    interval = "" if row["low"] is None else f" ({row['low']:+.2f} to {row['high']:+.2f})"
    return f"{row['mean']:+.2f}{interval}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _arms(experiment: Experiment, records: Records) -> str:
    """Format scores and costs of all arms: means over their seeds."""
    some = next(iter(records.values()))
    columns: dict[str, Callable[[Record], float | None]] = {"mIoU": lambda record: record["mean_iou"]}
    columns |= {group: lambda record, group=group: record["groups"][group] for group in experiment.groups}  # type: ignore[misc]
    columns["boundary IoU"] = lambda record: record["mean_boundary_iou"]
    columns |= {video: lambda record, video=video: record["videos"][video]["mean_iou"] for video in some["videos"]}  # type: ignore[misc]
    lines = [
        f"| | steps | seeds | {' | '.join(columns)} | s / step | min / run |",
        "|---" * (len(columns) + 5) + "|",
    ]
    for arm in experiment.arms:
        own = [record for (name, _, _), record in records.items() if name == arm]
        scores = [_mean_and_deviation([column(record) for record in own]) for column in columns.values()]
        costs = [_median(record[name] for record in own) for name in ("step_cost", "minutes")]
        cells = [arm, f"{own[0]['max_steps']:,}", str(len(own)), *scores, *costs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.2f}" if known else ""


def _mean_and_deviation(values: Sequence[float | None]) -> str:
    if None in values:
        return "absent"
    points = [100 * value for value in values]
    deviation = f" ± {statistics.stdev(points):.2f}" if len(points) > 1 else ""
    return f"{statistics.fmean(points):.2f}{deviation}"


def _classes(experiment: Experiment, records: Records) -> str:
    """Format the IoU of every class for the primary baseline, and the paired differences of all comparisons."""
    pairs = [*dict.fromkeys([experiment.primary, *experiment.secondary])]
    names = [f"{pair.arm} - {pair.baseline}" for pair in pairs]
    lines = [f"| IoU | {experiment.primary.baseline} | {' | '.join(names)} |", "|---" * (len(pairs) + 2) + "|"]
    for name in next(iter(records.values()))["per_category_iou"]:
        scores = _class_scores(records, name)
        if any(None in seeds.values() for seeds in scores.values()):
            lines.append(f"| {name} | absent |{' |' * len(pairs)}")
            continue
        differences = [f"{statistics.fmean(paired(pair, scores).values()):+.1f}" for pair in pairs]
        baseline = statistics.fmean(scores[experiment.primary.baseline].values())
        lines.append(f"| {name} | {baseline:.1f} | {' | '.join(differences)} |")
    return "\n".join(lines)


def _class_scores(records: Records, name: str) -> dict[str, dict[int, Any]]:
    scores: dict[str, dict[int, Any]] = {}
    for (arm, seed, _), record in records.items():
        iou = record["per_category_iou"][name]
        scores.setdefault(arm, {})[seed] = None if iou is None else 100 * iou
    return scores


def _remarks(experiment: Experiment, records: Records, verdict: Mapping[str, Any]) -> list[str]:
    some = next(iter(records.values()))
    videos = ", ".join(f"{of['images']} of {video}" for video, of in some["videos"].items())
    lines = [
        f"- End point: mean IoU of one confusion matrix over the {some['images']} images of {some['dataset']} "
        f"{some['split']} ({videos}), at one scale, by the network of the last step.",
        "- Intervals are over seeds and, with few labels, the subsets that they draw; they hold for these images. "
        "Those of comparisons after the first are not adjusted.",
    ]
    for row in verdict["calibration"]:
        deviation = "" if row["deviation"] is None else f", deviation {row['deviation']:.2f}"
        lines.append(
            f"- Chance alone: {row['arm']} - {row['baseline']} has a mean of {row['mean']:+.2f}{deviation} points "
            f"over {row['n']} seeds."
        )
    lines += [
        f"- Cut for time: {arm.name}, which was planned with {len(arm.seeds)} seeds, was run with {arm.cut_to}."
        for arm in experiment.arms.values()
        if arm.cut_to is not None
    ]
    dates = sorted(record["finished"][:10] for record in records.values())
    machines = sorted({record["machine"]["processor"] for record in records.values()})
    codes = sorted({record["code"] for record in records.values()})
    lines.append(
        f"- {len(records)} runs, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, on {' and '.join(machines)}; "
        f"code {', '.join(codes)}. The runs of a seed share one machine and one code."
    )
    return ["\n".join(lines)]


def _selection(experiment: Experiment, records: Records, verdict: Mapping[str, Any]) -> str:
    folds = list(experiment.folds)
    lines = [f"| | {' | '.join(folds)} | mean | chosen |", "|---" * (len(folds) + 3) + "|"]
    for arm in experiment.arms:
        of_fold = [_mean_of(records, arm, fold) for fold in folds]
        chosen = ", ".join(family for family, of in verdict["chosen"].items() if of == arm)
        cells = [arm, *of_fold, f"{100 * verdict['mean_iou'][arm]:.2f}", chosen]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Rule: {verdict['rule']}; {len(experiment.seeds)} seeds."])


def _mean_of(records: Records, arm: str, fold: str) -> str:
    scores = [100 * record["mean_iou"] for key, record in records.items() if (key[0], key[2]) == (arm, fold)]
    return f"{statistics.fmean(scores):.2f}"


def draw_differences(experiment: Experiment, records: Records, path: Path) -> None:
    """Draw the difference of every seed, with the mean and the 95 % interval, one line for each comparison."""
    from matplotlib.figure import Figure

    from .paired_tests import t_interval

    scores = scores_by_seed(records)
    pairs: list[Comparison] = experiment.comparisons
    figure = Figure(figsize=(7.5, 0.9 + 0.55 * len(pairs)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="0.6", linewidth=1)
    for place, pair in enumerate(pairs):
        values = list(paired(pair, scores).values())
        axis.plot(values, [place] * len(values), "o", color=f"C{place}", alpha=0.6, markersize=5)
        if len(values) > 1:
            low, high = t_interval(values)
            axis.plot([low, high], [place + 0.28] * 2, color=f"C{place}", linewidth=2)
        axis.plot(statistics.fmean(values), place + 0.28, "|", color=f"C{place}", markersize=10)
    axis.set_yticks(range(len(pairs)), [f"{pair.arm} - {pair.baseline}" for pair in pairs])
    axis.set_ylim(len(pairs) - 0.4, -0.6)
    axis.set_xlabel("difference in points of mIoU: every seed, mean and 95 % interval")
    figure.savefig(path, dpi=130)
