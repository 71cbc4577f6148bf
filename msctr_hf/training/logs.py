"""What a run tells about itself: running means, log.jsonl, trackers, run.json."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

_PACKAGES = ("msctr_hf", "torch", "transformers", "accelerate", "datasets", "timm", "evaluate", "huggingface_hub")


class RunningMeans:
    """Means of scalars since the last report, kept on the device: no synchronisation per step."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def update(self, terms: Mapping[str, torch.Tensor], diagnostics: Mapping[str, torch.Tensor | float]) -> None:
        """Add the terms of one batch, and its diagnostics, of which NaN means that there was nothing to measure."""
        for name, term in terms.items():
            self._add(name, term.detach().float(), 1)
        for name, value in diagnostics.items():
            if isinstance(value, torch.Tensor):
                self._add(name, value.float(), 1)
            else:
                self._add(name, *((0.0, 0) if math.isnan(value) else (value, 1)))

    def _add(self, name: str, value: torch.Tensor | float, count: int) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + count

    def report(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over batches and processes, with one synchronisation, without what was never measured; starts anew."""
        names = list(self._sums)
        device_sums = torch.stack(
            [torch.as_tensor(self._sums[name], dtype=torch.float32, device=accelerator.device) for name in names]
        )
        counts = torch.tensor([float(self._counts[name]) for name in names], device=accelerator.device)
        sums, counts = accelerator.reduce(torch.stack([device_sums, counts]), reduction="sum").tolist()
        self.__init__()  # type: ignore[misc]
        return {name: total / count for name, total, count in zip(names, sums, counts, strict=True) if count}


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
