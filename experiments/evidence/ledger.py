"""Ledger of all experiments that touched a test split, in results/ledger.json and docs/results.md."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msctr_hf.training.run_folder import write_json

from .plan import Experiment

FILE = "ledger.json"


def note_test_score(experiment: Experiment, dataset: str, folder: Path) -> None:
    """Count one more network of an experiment that was scored on the test split; a repeated run counts again.

    Args:
        experiment (`Experiment`): The experiment.
        dataset (`str`): Name of the data set.
        folder (`Path`): `results/`.
    """
    ledger = json.loads((folder / FILE).read_text()) if (folder / FILE).exists() else []
    today = time.strftime("%Y-%m-%d")
    for entry in ledger:
        if entry["experiment"] == experiment.name:
            break
    else:
        arms = f"{len(experiment.arms)} arms, {len(experiment.seeds)} seeds"
        entry = {"experiment": experiment.name, "data": dataset, "what": arms, "networks": 0, "first": today}
        ledger.append(entry)
    entry |= {"networks": entry["networks"] + 1, "last": today}
    write_json(folder / FILE, ledger)


def ledger_table(ledger: Sequence[dict[str, Any]]) -> str:
    """Format the ledger for docs/results.md."""
    lines = ["| experiment | data | what | networks scored on test | dates |", "|---|---|---|---|---|"]
    for entry in ledger:
        dates = " to ".join(dict.fromkeys(filter(None, (entry["first"], entry["last"])))) or "not recorded"
        lines.append(f"| {entry['experiment']} | {entry['data']} | {entry['what']} | {entry['networks']} | {dates} |")
    return "\n".join(lines)
