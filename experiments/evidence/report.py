"""Tables and figure of an experiment whose runs are all finished."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .plan import Comparison, Experiment
from .verdict import MIN_PAIRS, Records, paired, scores_by_seed

Record = Mapping[str, Any]
# The name of a score, and what reads it from a record. A group or a video may have the name of a class.
Column = tuple[str, Callable[[Record], "float | None"]]


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
    if primary["worse"]:
        shown = f"no gain: {primary['arm']} is worse"
    if verdict["exploratory"]:
        shown = "exploratory, since results were looked at before all runs were finished: nothing is shown"
    p_value = "" if primary["p_sign_flip"] is None else f", p {_p(primary['p_sign_flip'], equals='= ')}"
    return f"**{primary['arm']} - {primary['baseline']}: {_points(primary)}{p_value}, {primary['n']} seeds: {shown}.**"


def _comparisons(verdict: Mapping[str, Any]) -> str:
    lines = [
        "| points of mIoU | seeds | difference, 95 % interval | deviation | p | p, Holm | shown |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in (verdict["primary"], *verdict["secondary"]):
        adjusted = _p(row["p_holm"]) if "p_holm" in row else "primary"
        shown = "no: worse" if row["worse"] else "yes" if row["shown"] else "no"
        lines.append(f"| {' | '.join([*_difference(row), _p(row['p_sign_flip']), adjusted, shown])} |")
    for row in verdict["calibration"]:
        lines.append(f"| {' | '.join(_difference(row))} | | | chance alone |")
    return "\n".join(lines)


def _difference(row: Mapping[str, Any]) -> list[str]:
    deviation = "" if row["deviation"] is None else f"{row['deviation']:.2f}"
    return [f"{row['arm']} - {row['baseline']}", str(row["n"]), _points(row), deviation]


def _points(row: Mapping[str, Any]) -> str:
    interval = "" if row.get("low") is None else f" ({row['low']:+.2f} to {row['high']:+.2f})"
    return f"{row['mean']:+.2f}{interval}"


def _p(value: float | None, equals: str = "") -> str:
    if value is None:
        return ""
    return f"{equals}{value:.4f}" if value >= 0.00005 else "< 0.0001"


def _arms(experiment: Experiment, records: Records) -> str:
    """Format scores and costs of all arms: means over their seeds."""
    columns = _summaries(experiment, next(iter(records.values())))
    lines = [
        f"| | steps | seeds | {' | '.join(name for name, _ in columns)} | s / step | min / run |",
        "|---" * (len(columns) + 5) + "|",
    ]
    for arm in experiment.arms:
        own = [record for (name, _, _), record in records.items() if name == arm]
        scores = [_mean_and_deviation([column(record) for record in own]) for _, column in columns]
        costs = [_median(record[name] for record in own) for name in ("step_cost", "minutes")]
        cells = [arm, f"{own[0]['max_steps']:,}", str(len(own)), *scores, *costs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _summaries(experiment: Experiment, some: Record) -> list[Column]:
    """Return the mean IoU, those of groups, the boundary IoU, and the mean IoU of videos."""
    return [
        ("mIoU", lambda record: record["mean_iou"]),
        *((group, lambda record, group=group: record["groups"][group]) for group in experiment.groups),
        ("boundary IoU", lambda record: record["mean_boundary_iou"]),
        *((video, lambda record, video=video: record["videos"][video]["mean_iou"]) for video in some["videos"]),
    ]


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
    """Format all scores but the mean IoU for the primary baseline, and the paired differences of all comparisons."""
    pairs = [*dict.fromkeys([experiment.primary, *experiment.secondary])]
    names = [f"{pair.arm} - {pair.baseline}" for pair in pairs]
    lines = [f"| IoU | {experiment.primary.baseline} | {' | '.join(names)} |", "|---" * (len(pairs) + 2) + "|"]
    some = next(iter(records.values()))
    columns: list[Column] = [
        *((name, lambda record, name=name: record["per_category_iou"][name]) for name in some["per_category_iou"]),
        *_summaries(experiment, some)[1:],
    ]
    for name, column in columns:
        scores: dict[str, dict[int, Any]] = {}
        for (arm, seed, _), record in records.items():
            score = column(record)
            scores.setdefault(arm, {})[seed] = None if score is None else 100 * score
        if any(None in seeds.values() for seeds in scores.values()):
            lines.append(f"| {name} | absent |{' |' * len(pairs)}")
            continue
        differences = [f"{statistics.fmean(paired(pair, scores).values()):+.1f}" for pair in pairs]
        baseline = statistics.fmean(scores[experiment.primary.baseline].values())
        lines.append(f"| {name} | {baseline:.1f} | {' | '.join(differences)} |")
    return "\n".join(lines)


def _remarks(experiment: Experiment, records: Records, verdict: Mapping[str, Any]) -> list[str]:
    some = next(iter(records.values()))
    videos = ", ".join(f"{of['images']} of {video}" for video, of in some["videos"].items())
    lines = [
        f"- End point: mean IoU of one confusion matrix over the {some['images']} images of {some['dataset']} "
        f"{some['split']} ({videos}), at one scale, by the network of the last step.",
        "- Intervals are over seeds and, with few labels, the subsets that they draw; they hold for these images. "
        "Those of comparisons after the first are not adjusted.",
        "- The rows of arms are means ± deviations over the seeds of each arm. Arms with different numbers of seeds "
        "are compared only by the tables of differences, which pair them seed by seed; no test was made of the "
        "differences of classes, groups, boundaries and videos.",
    ]
    lines += [
        f"- The deviation of {row['arm']} - {row['baseline']} is a rough estimate, from {row['n']} seeds."
        for row in verdict["calibration"]
        if row["n"] < MIN_PAIRS
    ]
    lines += [
        f"- Cut for time: {arm.name}, which was planned with {len(arm.seeds)} seeds, was run with {arm.cut_to}."
        for arm in experiment.arms.values()
        if arm.cut_to is not None
    ]
    dates = sorted(record["finished"][:10] for record in records.values())
    machines = sorted({record["machine"]["processor"] for record in records.values()})
    lines.append(
        f"- {len(records)} runs, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, on {' and '.join(machines)}. "
        f"The runs of a seed share one machine and one code: {_commits(records)}."
    )
    return ["\n".join(lines)]


def _commits(records: Records) -> str:
    """Say at which commits the seeds of every code were run."""
    seeds: dict[str, set[int]] = {}
    commits: dict[str, set[str]] = {}
    for (_, seed, _), record in records.items():
        seeds.setdefault(record["code"], set()).add(seed)
        commit = record["commit"]  # none where git does not read the clone
        commits.setdefault(record["code"], set()).add(commit[:7] if commit else "a commit unknown to git")
    return "; ".join(
        f"{', '.join(sorted(commits[code]))} (seeds {', '.join(map(str, sorted(of_code)))})"
        for code, of_code in sorted(seeds.items(), key=lambda item: min(item[1]))
    )


def _selection(experiment: Experiment, records: Records, verdict: Mapping[str, Any]) -> str:
    folds = list(experiment.folds)
    lines = [
        f"| | steps | {' | '.join(folds)} | mean | min / run | chosen |",
        "|---" * (len(folds) + 5) + "|",
    ]
    for arm, planned in experiment.arms.items():
        of_fold = [_mean_of(records, arm, fold) for fold in folds]
        chosen = ", ".join(family for family, of in verdict["chosen"].items() if of == arm)
        minutes = _median(record["minutes"] for key, record in records.items() if key[0] == arm)
        cells = [arm, f"{planned.steps:,}", *of_fold, f"{100 * verdict['mean_iou'][arm]:.2f}", minutes, chosen]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Rule: {verdict['rule']}; {len(experiment.seeds)} seeds."])


def _mean_of(records: Records, arm: str, fold: str) -> str:
    scores = [100 * record["mean_iou"] for key, record in records.items() if (key[0], key[2]) == (arm, fold)]
    return f"{statistics.fmean(scores):.2f}"


def draw_differences(experiment: Experiment, records: Records, path: Path) -> None:
    """Draw the difference of every seed and the mean, one line for each comparison.

    All but the comparisons of which only the spread counts have a 95 % interval.
    """
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
        if len(values) > 1 and pair not in experiment.calibration:
            low, high = t_interval(values)
            axis.plot([low, high], [place + 0.28] * 2, color=f"C{place}", linewidth=2)
        axis.plot(statistics.fmean(values), place + 0.28, "|", color=f"C{place}", markersize=10)
    kinds = {experiment.primary: "primary, "} | dict.fromkeys(experiment.calibration, "chance alone, ")
    counts = [len(paired(pair, scores)) for pair in pairs]
    names = [
        f"{pair.arm} - {pair.baseline}\n{kinds.get(pair, '')}{n} seeds" for pair, n in zip(pairs, counts, strict=True)
    ]
    axis.set_yticks(range(len(pairs)), names)
    axis.set_ylim(len(pairs) - 0.4, -0.6)
    axis.set_xlabel(
        "difference in points of mIoU: every seed, mean and 95 % interval\n(those after the first are not adjusted)"
    )
    figure.savefig(path, dpi=130)
