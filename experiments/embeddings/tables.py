"""Print the tables of docs/embeddings.md from results/planted_errors and results/clicks.

python scripts/embedding_tables.py
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..evidence.paired_tests import t_interval
from ..evidence.provenance import ROOT
from .networks import ARMS
from .planted_errors import KINDS

RULES = {
    "check_labels": "`msctr check-labels`",
    "probability_and_area": "1 - probability of the label, times the factor of the area",
    "probability": "1 - probability of the label",
    "random": "the regions of `msctr check-labels` in random order",
}
CLICKED = {  # arm and features -> name
    ("ce", "decode_head"): "ce, decode head",
    ("ms_cs", "decode_head"): "ms_cs, decode head",
    ("ms_cs", "projection"): "ms_cs, projection",
}
Records = Mapping[str, Mapping[int, Mapping[str, Any]]]  # arm -> seed -> record


def main(argv: Sequence[str]) -> None:
    """Print both tables."""
    parser().parse_args(argv)
    print(planted_table(read(ROOT / "results/planted_errors")))
    print("\n" + clicks_table(read(ROOT / "results/clicks")))


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command, which has no flags."""
    return argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


def read(folder: Path) -> Records:
    """Read the records of a folder.

    Raises:
        ValueError: If arms have different seeds, or runs of a seed are of different machines or code.
    """
    records: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        records[record["arm"]][record["seed"]] = record
    first, *others = records.values()
    for other in others:
        if set(other) != set(first):
            raise ValueError(f"{folder}: the arms have different seeds, {sorted(first)} and {sorted(other)}.")
        for seed in first:
            if any(first[seed][name] != other[seed][name] for name in ("machine", "code")):
                raise ValueError(f"{folder}: the runs of seed {seed} are of different machines or code.")
    return records


def planted_table(records: Records) -> str:
    """Format precision and recall of every rule, their means and, in brackets, every seed, and the errors by kind."""
    lines = ["| network | order of the regions | precision of the first 50 | recall |", "|---|---|---|---|"]
    for arm, by_seed in records.items():
        for rule, name in RULES.items():
            measured = [record["rules"][rule] for _, record in sorted(by_seed.items())]
            cells = [_with_seeds([each[measure] for each in measured]) for measure in ("precision_at_50", "recall")]
            lines.append(f"| {arm} | {name} | {' | '.join(cells)} |")
    kinds = " | ".join(KINDS)
    lines += ["", f"| found by `msctr check-labels` | {kinds} |", f"|---|{'---|' * len(KINDS)}"]
    for arm, by_seed in records.items():
        planted, found = (
            {kind: sum(record[name][kind] for record in by_seed.values()) for kind in KINDS}
            for name in ("errors", "found_by_kind")
        )
        lines.append(f"| {arm} | " + " | ".join(f"{found[kind]} of {planted[kind]}" for kind in KINDS) + " |")
    return "\n".join(lines)


def clicks_table(records: Records) -> str:
    """Format the IoU of every class at the threshold that the clicks in the training split choose, and the difference.

    The threshold is one for all seeds: that with the largest mean over seeds of the mean IoU. Intervals are those of
    Student's t over seeds, of 95 %.
    """
    columns = {key: [record["features"][key[1]] for _, record in sorted(records[key[0]].items())] for key in CLICKED}
    thresholds = next(iter(records["ce"].values()))["thresholds"]
    chosen = {
        key: int(np.mean([each["tuning_mean_iou"] for each in found], axis=0).argmax())
        for key, found in columns.items()
    }
    scores = {
        key: {
            measure: {name: [each[measure][name][chosen[key]] for each in found] for name in found[0][measure]}
            for measure in ("iou", "background")
        }
        for key, found in columns.items()
    }
    means = {
        key: {measure: np.mean(list(scores[key][measure].values()), axis=0).tolist() for measure in scores[key]}
        for key in CLICKED
    }
    lines = [f"| | {' | '.join(CLICKED.values())} |", f"|---|{'---|' * len(CLICKED)}"]

    def add(name: str, cells: Sequence[str]) -> None:
        lines.append(f"| {name} | {' | '.join(cells)} |")

    add("threshold", [f"{thresholds[chosen[key]]:.2f}" for key in CLICKED])
    add("mean IoU", [_with_interval(means[key]["iou"]) for key in CLICKED])
    add("background reported", [_with_interval(means[key]["background"]) for key in CLICKED])
    for label in scores["ce", "decode_head"]["iou"]:
        add(label, [f"{100 * statistics.fmean(scores[key]['iou'][label]):.1f} %" for key in CLICKED])
    of_ce, of_contrast = (means[arm, "decode_head"]["iou"] for arm in ARMS)
    differences = [100 * (other - base) for base, other in zip(of_ce, of_contrast, strict=True)]
    low, high = t_interval(differences)
    each = ", ".join(f"{value:+.1f}" for value in differences)
    lines += [
        "",
        f"Mean IoU of ms_cs less that of ce, decode head, {len(differences)} seeds: "
        f"{statistics.fmean(differences):+.1f} points, 95 % interval {low:+.1f} to {high:+.1f} (by seed: {each}).",
    ]
    return "\n".join(lines)


def _with_seeds(values: Sequence[float]) -> str:
    return f"{100 * statistics.fmean(values):.1f} % ({', '.join(f'{100 * value:.1f}' for value in values)})"


def _with_interval(values: Sequence[float]) -> str:
    low, high = t_interval(values)
    return f"{100 * statistics.fmean(values):.1f} % ± {50 * (high - low):.1f}"
