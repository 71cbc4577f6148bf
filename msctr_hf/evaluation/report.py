"""Report of an evaluation: Markdown, figures, and tables of confusions and of all images."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .mean_iou import ConfusionMatrix, ratio
from .scoring import CLASS_SCORES, Scores, percent
from .visualization import contact_sheet

_CONFUSION, _WORST = "confusion.png", "worst.png"
NAMES_IN_FIGURE = 60  # with more classes, the figure has no names


def write_report(
    folder: Path, results: dict[str, Any], scores: Scores, classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> list[str]:
    """Write all files of a report except `results.json`; return notes on files that could not be written.

    Figures of an earlier report are removed: this one may show other scores, or have no such figure.

    Args:
        folder (`Path`): Folder of the report, which is created if it does not exist.
        results (`dict`): Content of `results.json`.
        scores (`Scores`): Confusion matrix and scores of all images.
        classes (`Sequence[str]`): Names of the classes.
        palette (`Sequence`): RGB colors of the classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_confusion(folder / "confusion.csv", scores.confusion, classes)
    with open(folder / "images.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(scored.image_id, f"{scored.mean_iou:.6f}") for scored in scores.images]
        csv.writer(file).writerows([("image_id", "mean_iou"), *rows])
    notes, figures = [], []
    for name in (_CONFUSION, _WORST):
        (folder / name).unlink(missing_ok=True)
    try:
        confusion_figure(scores.confusion, classes, folder / _CONFUSION)
        figures.append(_CONFUSION)
    except ImportError:
        notes.append(f"{_CONFUSION} was left out: it needs matplotlib (pip install matplotlib).")
    if scores.worst:
        shown = [scored.shown for scored in scores.worst if scored.shown is not None]
        contact_sheet(shown, palette, classes).save(folder / _WORST)
        figures.append(_WORST)
    (folder / "report.md").write_text(markdown_report(results, scores, figures), encoding="utf-8")
    return notes


def markdown_report(results: dict[str, Any], scores: Scores, figures: Sequence[str]) -> str:
    """Format settings, means, classes, groups, confusions and the worst images as Markdown."""
    facts = ("model", "dataset", "split", "images", "class_order", "git_commit")
    settings = [(key, results[key]) for key in facts if key in results]
    settings += [(key, value) for key, value in results.get("protocol", {}).items() if value not in (None, False)]
    parts = [
        f"# {results.get('dataset', 'Evaluation')}: mIoU {percent(results['mean_iou'])}",
        "\n".join(f"- {key}: {value}" for key, value in settings),
        _class_table(results),
    ]
    if results.get("groups"):
        rows = [
            (name, percent(group["mean_iou"]), percent(group["merged_iou"]))
            for name, group in results["groups"].items()
        ]
        parts.append(_table(("group", "mean IoU of its classes", "IoU as one class"), rows))
    if results["largest_confusions"]:
        rows = [
            (each["class"], each["predicted_as"], percent(each["share"])) for each in results["largest_confusions"]
        ]
        parts.append(_table(("class", "predicted as", "share of its pixels"), rows))
    if scores.worst:
        worst = [(scored.image_id, percent(scored.mean_iou)) for scored in scores.worst]
        parts.append(_table(("worst images", "mean IoU"), worst))
    parts += [f"![{name}]({name})" for name in figures]
    parts.append("Classes absent from both labels and predictions are excluded from the means.")
    return "\n\n".join(parts) + "\n"


def confusion_figure(confusion: ConfusionMatrix, classes: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix as shares of the labeled pixels, and as shares of the predicted pixels.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    matrix = confusion.matrix
    panels = (
        ("by labels: recall on the diagonal", ratio(matrix, matrix.sum(axis=1, keepdims=True))),
        (
            "by predictions: precision on the diagonal",
            ratio(matrix, matrix.sum(axis=0, keepdims=True)),
        ),
    )
    named = len(classes) <= NAMES_IN_FIGURE
    side = max(5.0, 0.28 * len(classes) + 2) if named else 10.0
    figure = Figure(figsize=(2 * side + 1, side + 0.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (title, shares) in zip(axes, panels, strict=True):
        shown = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
        axis.set(title=title, xlabel="predicted", ylabel="labeled")
        if named:
            axis.set_xticks(range(len(classes)), classes, rotation=90)
            axis.set_yticks(range(len(classes)), classes)
            _write_shares(axis, shares)
    figure.colorbar(shown, ax=axes, label="%", shrink=0.8)
    figure.savefig(path, dpi=100)


def _write_shares(axis: Any, shares: np.ndarray) -> None:
    """Write every share of at least 1 % in its cell."""
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.01):
        share = shares[row, column]
        color = "white" if share > 0.6 else "black"
        axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=color)


def _class_table(results: dict[str, Any]) -> str:
    present = [column for column in CLASS_SCORES if column in results]
    rows = [(name, *(percent(results[column][name]) for column in present)) for name in results["per_category_iou"]]
    rows.append(("**mean**", *(f"**{percent(results[CLASS_SCORES[column][0]])}**" for column in present)))
    return _table(("class", *(CLASS_SCORES[column][1] for column in present)), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write_confusion(path: Path, confusion: ConfusionMatrix, classes: Sequence[str]) -> None:
    """Write counts of pixels as CSV; rows are labels, columns predictions."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["labeled as", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, confusion.matrix.tolist(), strict=True))
