"""Machine and code of a run, which the runs of a seed must share to be paired."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import msctr_hf
from msctr_hf.errors import UsageError
from msctr_hf.training.description import processor_name

ROOT = Path(__file__).resolve().parents[2]
# what decides on the numbers of a run; results and pages may change meanwhile
CODE = ("msctr_hf", "experiments", "configs", "pyproject.toml")
_PROCESSOR_FACTS = ("cpu family", "model", "stepping")


def describe_machine(threads: int) -> dict[str, Any]:
    """Describe what the rounding of a run depends on: processor or GPU, versions of torch and oneDNN, threads."""
    onednn = re.search(r"(?:MKL-DNN|oneDNN) v([\d.]+)", torch.__config__.show())
    processor = f"{processor_name()} ({', '.join(_processor_facts())})"
    return {
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else processor,
        "torch": torch.__version__,
        "onednn": onednn[1] if onednn else None,
        "threads": threads,
    }


def _processor_facts() -> list[str]:
    """List numbers that tell apart processors of one name, which virtual machines shorten."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return [platform.machine()]
    pairs = [line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line]
    facts = {name.strip(): value.strip() for name, value in pairs}
    return [f"{name} {facts[name]}" for name in _PROCESSOR_FACTS if name in facts] or [platform.machine()]


def hash_of_code() -> str:
    """Return a hash of all files, as they are committed, that decide on the numbers of a run.

    Raises:
        UsageError: If they have local changes, are not in a git repository, or are not what is imported.
    """
    if not (imported := Path(msctr_hf.__file__)).is_relative_to(ROOT):
        raise UsageError(
            f"msctr_hf is imported from {imported.parent}, not from this clone, whose code is noted: install it with "
            "`pip install -e .`."
        )
    if changes := _git("status", "--porcelain", "--", *CODE):
        raise UsageError(
            f"{changes.split()[1]} has local changes: commit them first, since all runs of a seed need one code that "
            "can be found again."
        )
    trees = _git("rev-parse", *(f"HEAD:{path}" for path in CODE))
    return hashlib.sha256(trees.encode()).hexdigest()[:16]


def refuse_uncommitted(path: Path) -> None:
    """Refuse the file of an experiment that is not committed in this clone as it is.

    Raises:
        UsageError: If it is elsewhere, not committed, or changed since.
    """
    file = path.resolve()
    is_tracked = file.is_relative_to(ROOT) and _git("ls-files", "--", str(file))
    if not is_tracked or _git("status", "--porcelain", "--", str(file)):
        raise UsageError(
            f"{path} is not committed in {ROOT.name} as it is: commit it before the first run, since it fixes what "
            "may be claimed."
        )


def folder_name(machine: dict[str, Any], code: str) -> str:
    """Return the name of the folder for the runs of one machine and code, which are never resumed by another."""
    return f"{code[:8]}-{hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:8]}"


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"An experiment needs a git clone, to say which code it measured: {error}") from error
    return run.stdout.strip()
