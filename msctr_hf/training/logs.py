"""Logs of a run: running means of scalars, log.jsonl, trackers."""

from __future__ import annotations

import errno
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from ..errors import UsageError
from ..evaluation.scoring import percent
from ..progress import say
from .description import without_secrets
from .run_folder import LOG_FILE, replace_file
from .step_guard import Verdict
from .validation import ValidationResult

_VALIDATION = "validation/"
_SCORES = ("mean_iou", "mean_accuracy", "overall_accuracy")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class RunningMeans:
    """Means of scalars since the last report; tensors stay on their device, without synchronization in every step.

    Values that are not finite are left out, since NaN means that there was nothing to measure.
    """

    def __init__(self) -> None:
        self._names: dict[str, None] = {}  # names in the order of the first batch
        self._device: dict[tuple[str, ...], torch.Tensor] = {}  # names of tensors -> (2, names): sums and counts
        self._host: dict[str, tuple[float, float]] = {}  # name -> sum, count

    def update(self, *scalars: Mapping[str, torch.Tensor | float]) -> None:
        """Add the scalars of one batch, which must have the same names in all processes."""
        merged = {name: value for part in scalars for name, value in part.items()}
        self._names |= dict.fromkeys(merged)
        tensors = {name: value.detach().float() for name, value in merged.items() if isinstance(value, torch.Tensor)}
        if tensors:
            values, names = torch.stack(list(tensors.values())), tuple(tensors)
            finite = values.isfinite()
            sums = torch.stack([values.where(finite, 0.0), finite.float()])
            self._device[names] = self._device[names].to(sums.device) + sums if names in self._device else sums
        for name, value in merged.items():
            if name not in tensors and math.isfinite(value):
                total, count = self._host.get(name, (0.0, 0.0))
                self._host[name] = (total + float(value), count + 1)

    def report(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over batches and processes, and reset them; in one process the host waits once.

        Scalars that were never measured are left out.
        """
        place = {name: column for column, name in enumerate(self._names)}
        table = torch.zeros(2, len(place))  # on the host, since every write into a GPU at a list of columns would wait
        if self._device:
            sums = torch.cat([part.to(accelerator.device) for part in self._device.values()], dim=1).cpu()
            for names, part in zip(self._device, sums.split([len(key) for key in self._device], dim=1), strict=True):
                table[:, [place[name] for name in names]] += part
        for name, host_sums in self._host.items():
            table[:, place[name]] += torch.tensor(host_sums)
        if accelerator.num_processes > 1:
            table = table.to(accelerator.device)
        totals = accelerator.reduce(table, reduction="sum").tolist()
        self.__init__()  # type: ignore[misc]
        return {name: total / count for name, total, count in zip(place, *totals, strict=True) if count}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"names": list(self._names), "device": self._device, "host": self._host}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._names, self._device, self._host = dict.fromkeys(state["names"]), state["device"], state["host"]


class RunLog:
    """Log of a run: scalars are written to log.jsonl and to the trackers, by the main process only.

    Args:
        accelerator (`Accelerator`): Accelerator, whose trackers are started.
        output_dir (`Path`): Folder of the run.
        settings (`dict`): Settings of the run, for the trackers.
        step (`int`): Step from which the run resumes; later lines of an interrupted run are dropped.
        validated_step (`int`, *optional*): Step of the last validation whose result is in the checkpoint, by default
            `step`; lines of later validations are dropped, since these are repeated.

    Raises:
        UsageError: If log.jsonl cannot be written.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: Path,
        settings: dict[str, Any],
        step: int,
        validated_step: int | None = None,
    ):
        self.accelerator = accelerator
        self.path = output_dir / LOG_FILE
        last_validated = step if validated_step is None else validated_step
        if accelerator.is_main_process and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            with self._full_disk_reported(OSError):
                replace_file(self.path, "".join(line for line in lines if _is_up_to(line, step, last_validated)))
        options = {"tensorboard": {"purge_step": step + 1}} if step else {}
        accelerator.init_trackers("msctr_hf", config=_flat(without_secrets(settings)), init_kwargs=options)

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Log the values of one step; values that are not scalars are written to log.jsonl only.

        Raises:
            UsageError: If log.jsonl cannot be written, or the disk is full.
        """
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        if numbers:
            with self._full_disk_reported():
                self.accelerator.log(numbers, step=step)
        if self.accelerator.is_main_process:
            with self._full_disk_reported(OSError), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")

    def write_skipped(self, verdict: Verdict) -> None:
        """Log a skipped step, with the terms that were not finite and the images."""
        faulty = verdict.faulty
        self.write({"skipped": True, "not_finite": faulty.terms, "images": faulty.images}, verdict.step)
        self._say(
            f"step {verdict.step} was skipped; not finite: {', '.join(faulty.terms)}; "
            f"images: {', '.join(faulty.images)}"
        )

    def write_validation(self, result: ValidationResult, step: int, metric: str = "mean_iou") -> None:
        """Log the scores of a validation and, to trackers that accept images, a few predictions.

        Args:
            result (`ValidationResult`): Scores and a few predictions.
            step (`int`): Step of the validated network.
            metric (`str`): Score that decides which network is the best; it is logged in addition to the usual ones.
        """
        if result.not_finite is not None:
            self.write({f"{_VALIDATION}not_finite": result.not_finite}, step)
            self._say(f"step {step}: validation has no score. {result.not_finite}")
            return
        scores = {**{name: result.results[name] for name in _SCORES}, metric: result.measured(metric)}
        self.write({f"{_VALIDATION}{name}": score for name, score in scores.items()}, step)
        if result.sheet is not None:
            self.show(f"{_VALIDATION}predictions", result.sheet, step)
        if result.results["mean_iou"] is None:
            self._say(f"step {step}: validation has no score, because its images have no labeled pixel")
            return
        chosen = "" if metric == "mean_iou" else f", {metric} {percent(result.measured(metric))}"
        self._say(f"step {step}: validation mIoU {percent(result.results['mean_iou'])}{chosen}")

    def show(self, name: str, image: Image.Image, step: int) -> None:
        """Log an image to the trackers that accept images."""
        for tracker in self.accelerator.trackers:
            with self._full_disk_reported():
                if tracker.name == "tensorboard":
                    tracker.log_images({name: np.asarray(image)[None]}, step=step, dataformats="NHWC")
                elif hasattr(tracker, "log_images"):
                    tracker.log_images({name: [image]}, step=step)

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            say(line)

    @contextmanager
    def _full_disk_reported(self, kind: type[OSError] | None = None) -> Iterator[None]:
        """Convert errors of writing to `UsageError`: all of a `kind`, or only a full disk if there is none.

        Without a `kind`, errors of the network, which trackers also use, keep their traceback.
        """
        try:
            yield
        except OSError as error:
            if kind is None and error.errno not in _DISK_FULL:
                raise
            reason = error.strerror or str(error)
            raise UsageError(
                f"{self.path} could not be written ({reason}); check free space and permissions there, then resume "
                "with `resume='auto'`."
            ) from error


def _is_up_to(line: str, step: int, last_validated: int) -> bool:
    """Return whether a line is complete and not newer than `step` (`last_validated` if it is about a validation).

    A run that is killed after it logs a validation, and before it records it in the checkpoint, repeats the
    validation, so its first line must be dropped.
    """
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return False
    is_validation = any(name.startswith(_VALIDATION) for name in entry)
    return entry["step"] <= (last_validated if is_validation else step) and line.endswith("\n")


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert settings to scalars, which is all that trackers accept."""
    return {
        key: value if isinstance(value, (int, float, str, bool)) else json.dumps(value)
        for key, value in settings.items()
        if value is not None
    }
