"""Measure time and memory of alternatives in turns, format tables, and describe the machine.

On a CPU, time is the processor time of this process, which other processes disturb less than the wall clock, and
memory is the growth of the peak of a fresh process. On a GPU, time runs on the wall clock until the device has
finished, and memory is the most that PyTorch allocated.
"""

from __future__ import annotations

import gc
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from msctr_hf.training.description import processor_name

Step = Callable[[], Any]

# Measured values below these are noise: an allocator serves small requests from pages that an earlier step freed, so
# that the peak need not grow at all, Linux counts the pages of a process in batches, and reading a clock takes time.
RESOLUTIONS = {"MB": 1.0, "ms": 0.01}


def median_seconds(steps: Mapping[str, Step], repetitions: int, device: torch.device) -> dict[str, float]:
    """Measure the median time of every step; the steps take turns, and the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    gc.disable()  # otherwise a collection is charged to whichever step it interrupts
    try:
        for _ in range(repetitions + 1):
            for name, step in steps.items():
                times[name].append(_seconds(step, device))
    finally:
        gc.enable()
    return {name: statistics.median(of_step[1:]) for name, of_step in times.items()}


def _seconds(step: Step, device: torch.device) -> float:
    start = clock(device)
    step()
    return clock(device) - start


def clock(device: torch.device) -> float:
    """Read the processor time of this process on a CPU, or the wall clock on a GPU after all queued work is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_megabytes(build: Callable[..., Step], arguments: Sequence, warm_up: Sequence, device: torch.device) -> float:
    """Measure the peak memory that a step needs in addition to its inputs, in MB.

    Args:
        build (`Callable`): Function at the top level of a module, which a new process can import; `build(*arguments)`
            makes the inputs and returns the step.
        arguments (`Sequence`): Arguments of the step to measure.
        warm_up (`Sequence`): Arguments of a small step that runs first, so that libraries are loaded.
        device (`torch.device`): Where the step runs.
    """
    if device.type == "cpu":
        context = multiprocessing.get_context("forkserver")  # imports once, then forks fresh processes
        context.set_forkserver_preload([f"{__package__}.contrast"])
        with ProcessPoolExecutor(1, context) as executor:
            threads = torch.get_num_threads()
            return executor.submit(_peak_of_this_process, build, arguments, warm_up, threads).result()
    build(*warm_up)()
    step = build(*arguments)
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _peak_of_this_process(build: Callable[..., Step], arguments: Sequence, warm_up: Sequence, threads: int) -> float:
    torch.set_num_threads(threads)
    build(*warm_up)()
    step = build(*arguments)
    gc.collect()
    _forget_peak()
    before = _peak_kilobytes()
    step()
    return (_peak_kilobytes() - before) / 2**10


def _forget_peak() -> None:
    """Reset the peak memory of the process on Linux; elsewhere it keeps counting from the start of the process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_kilobytes() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        return float(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**10 if platform.system() == "Darwin" else peak


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe what measured values depend on: device, threads, versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def compare(seconds: dict[str, float], memory: dict[str, float] | None = None) -> dict[str, Any]:
    """Make the table columns of two implementations, ours second: milliseconds, megabytes, and their ratios."""
    other, ours = seconds
    times = {f"{way} ms": 1000 * seconds[way] for way in (other, ours)}
    row: dict[str, Any] = times | {"speed-up": ratio(*times.values(), unit="ms")}
    if memory is not None:
        row |= {f"{way} MB": memory[way] for way in (other, ours)}
        row["memory ratio"] = ratio(memory[other], memory[ours], unit="MB")
    return row


def ratio(measure: float, base: float, *, unit: str) -> float | None:
    """Divide two values of a unit; `None` if one is below the resolution, so that the ratio would be noise."""
    return None if min(measure, base) < RESOLUTIONS[unit] else measure / base


def per_second(count: float, milliseconds: float) -> float | None:
    """Divide a count by a measured time; `None` if the time is below the resolution."""
    return None if milliseconds < RESOLUTIONS["ms"] else 1000 * count / milliseconds


def add_targets(row: dict, device: torch.device, *, speed: float | None, memory: float | None = None) -> None:
    """Add the targets of the ratios to a row; `None` except on one CPU thread, for which they are set."""
    has_targets = device.type == "cpu" and torch.get_num_threads() == 1
    row["speed-up target"] = speed if has_targets else None
    if "memory ratio" in row:
        row["memory ratio target"] = memory if has_targets else None


def misses_target(row: Mapping[str, Any]) -> bool:
    """Return whether a ratio of a row misses its target or could not be measured; targets of `None` do not count."""
    targets = {name: row[name] for name in row if name.endswith(" target") and row[name] is not None}
    reached = {name: row[name.removesuffix(" target")] for name in targets}
    return any(reached[name] is None or reached[name] < target for name, target in targets.items())


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows with the same keys as a Markdown table with aligned columns."""
    cells = [list(rows[0])] + [[_cell(name, value) for name, value in row.items()] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    resolution = RESOLUTIONS.get(name.rpartition(" ")[2], 0.0)
    if value < resolution:
        return f"< {resolution:g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
