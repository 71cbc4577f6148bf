"""Networks whose embeddings are compared: the recipe of CamVid, trained with contrast and without it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from msctr_hf.training.run_folder import LAST, RESULTS_FILE

DATASET = "camvid"
ARMS = {"ce": ("--contrastive_mode", "ce"), "ms_cs": ("--contrastive_loss_weight", "0.03")}
_RECIPE = "camvid/upernet_efficientnet_lite0"


def train_network(arm: str, seed: int, data_dir: Path, run_dir: Path, flags: Sequence[str]) -> Path:
    """Train the network of an arm unless it is finished, going on where it was stopped, and return its folder.

    Args:
        arm (`str`): One of `ARMS`.
        seed (`int`): Seed of the training.
        data_dir, run_dir (`Path`): Folder of the data set, and of the run.
        flags (`Sequence[str]`): Further flags of training.
    """
    if not (run_dir / RESULTS_FILE).exists():
        run_command(
            "train", "--config", _RECIPE, "--data_dir", data_dir, "--output_dir", run_dir, "--seed", seed,
            "--report_to", "none", "--resume", "auto", *ARMS[arm], *flags,
        )  # fmt: skip
    return run_dir / LAST


def run_command(*arguments: object) -> None:
    """Run a command of `msctr` in a process of its own."""
    subprocess.run([sys.executable, "-m", "msctr_hf", *map(str, arguments)], check=True)
