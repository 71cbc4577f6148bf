"""What a run tells about itself: running means, log.jsonl, trackers, run.json."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

_PACKAGES = ("msctr_hf", "torch", "transformers", "accelerate", "datasets", "timm", "evaluate", "huggingface_hub")


class RunningMeans:
    """Means of scalars since the last report, kept on the device: no synchronisation per step."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def update(self, terms: dict[str, torch.Tensor]) -> None:
        """Add the terms of one batch."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()
        self._count += 1

    def report(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over batches and processes, with one synchronisation; starts anew."""
        means = accelerator.reduce(torch.stack(list(self._sums.values())) / self._count, reduction="mean")
        names = list(self._sums)
        self.__init__()  # type: ignore[misc]
        return dict(zip(names, means.tolist(), strict=True))


class RunLog:
    """Writes scalars to log.jsonl and to the trackers; silent on all but the main process."""

    def __init__(self, accelerator: Accelerator, output_dir: Path, settings: dict[str, Any]):
        self.accelerator = accelerator
        self.path = output_dir / "log.jsonl"
        accelerator.init_trackers("msctr_hf", config=_flat(settings))

    def write(self, values: dict[str, float], step: int) -> None:
        """Log scalars of one step."""
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")


def describe_run(settings: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Everything needed to understand a run later: command, settings, versions, git commit, machine."""
    return {
        "command": " ".join(sys.argv),
        "settings": settings,
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "versions": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """Commit of the code, where it lies in a git work tree."""
    try:
        run = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Trackers take scalars only."""
    return {
        key: value if isinstance(value, (int, float, str, bool)) else json.dumps(value)
        for key, value in settings.items()
        if value is not None
    }
