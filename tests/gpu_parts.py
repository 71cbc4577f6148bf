"""Run the tests of `tests/gpu` at small sizes on the CPU by default, and with `-m gpu` on a GPU, with figures.

A *part* is one of these tests. On a GPU its figures go to results/gpu_NAME.json, or to the folder that
`MSCTR_GPU_RESULTS` names, as soon as they are measured, so that a run that is killed leaves what it has. Every part
that was collected is in the file, without an outcome until it ends.
"""

import contextlib
import fcntl
import functools
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import traceback
from pathlib import Path

import pytest
import torch

import msctr_hf
from msctr_hf.training import description

PACKAGE = Path(msctr_hf.__file__).parent
RESULTS = Path(__file__).parent.parent / "results"
SYNC_BATCH_NORM = "torch: SyncBatchNorm"
TIMED_OUT = "took longer than its limit of {} s"
NOT_FINISHED = {"passed": None, "figures": {}}  # what the file says about a part until it ends


def part(seconds, *, slow_on_cpu=False, on_cpu=lambda **_: True):
    """Mark a test that takes a `device` and `figures` as a part, which may take so many seconds on a GPU.

    `on_cpu` says of the other parameters whether they are tested on the CPU as well.
    """
    cpu = pytest.param("cpu", marks=pytest.mark.slow) if slow_on_cpu else "cpu"

    def mark(function):
        function.seconds, function.on_cpu = seconds, on_cpu
        return pytest.mark.parametrize("device", [cpu, pytest.param("cuda", marks=pytest.mark.gpu)])(function)

    return mark


def asks_for_gpu(config):
    """Return whether `-m` names the tests on a GPU."""
    return re.search(r"\bgpu\b", config.option.markexpr or "") is not None


def select_gpu_parts(config, items):
    """Leave out what only a GPU can show on the CPU, and the GPU unless `-m` names it; skip it where there is none."""
    shows_nothing = {item for item in items if not _is_tested_there(item)}
    config.hook.pytest_deselected(items=list(shows_nothing))
    items[:] = [item for item in items if item not in shows_nothing]
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not asks_for_gpu(config):
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in set(on_gpu)]
    elif not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="PyTorch sees no NVIDIA GPU on this machine."))


def _is_tested_there(item):
    on_cpu = getattr(getattr(item, "function", None), "on_cpu", None)
    if on_cpu is None:
        return True
    others = dict(item.callspec.params)
    return others.pop("device") != "cpu" or on_cpu(**others)


def record_gpu_parts(session):
    """Write the names of the parts that will run on a GPU, so that one that never begins is missed."""
    names = [part_name(item.name) for item in session.items if item.get_closest_marker("gpu")]
    if names and torch.cuda.is_available() and not session.config.option.collectonly:
        header = describe_gpu()
        write_parts(results_file(header), header, dict.fromkeys(names, NOT_FINISHED), replace=False)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Record how a part ends, and end it at its limit."""
    figures = pyfuncitem.funcargs.get("figures")
    if figures is None:
        return (yield)
    limit = pyfuncitem.function.seconds if figures.on_gpu else None
    with figures.outcome(), at_most(limit):
        return (yield)


@pytest.fixture
def figures(request, device, tmp_path, monkeypatch):
    """Figures of a part, which are written to a file whenever one is set."""
    if device == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        return Figures(tmp_path / "figures.json", request.node.originalname, {"device": "cpu"})
    header = describe_gpu()
    return Figures(results_file(header), request.node.name, header).started()


def part_name(test):
    """Name the part of a test on a GPU: "test_time[cuda-large]" -> time[large]."""
    return test.replace("cuda-", "").replace("-cuda", "").replace("[cuda]", "").removeprefix("test_")


def results_file(header):
    """Return the file of the parts of a card."""
    return Path(os.environ.get("MSCTR_GPU_RESULTS") or RESULTS) / f"{file_name(header['device'])}.json"


class Figures:
    """Figures of one part in a JSON file that holds those of all parts; several processes may write to it.

    Parts of an earlier run on the same machine and the same code are kept; other content is replaced.
    """

    def __init__(self, path, name, header):
        self.path, self.name, self.header = path, part_name(name), header
        self.on_gpu = header["device"] != "cpu"
        self.values = {}

    def __setitem__(self, name, value):
        self.values[name] = value
        self._write({**NOT_FINISHED, "figures": self.values})

    def started(self):
        """Replace what an earlier run wrote: a part that crashes now has no outcome."""
        self._write(NOT_FINISHED)
        return self

    @contextlib.contextmanager
    def outcome(self):
        """Record whether the block raises, and how long it takes."""
        start, end = time.perf_counter(), {"passed": True}
        try:
            yield
        except pytest.skip.Exception as reason:
            end = {"passed": None, "skipped": str(reason)}
            raise
        except BaseException as error:
            end = {"passed": False, "error": f"{type(error).__name__}: {error}"[:2000]}
            if self.on_gpu:  # pytest keeps the traceback, which would keep the memory of the part from the next ones
                traceback.clear_frames(error.__traceback__)
            raise
        finally:
            self._write({**end, "seconds": round(time.perf_counter() - start, 1), "figures": self.values})

    def _write(self, content):
        write_parts(self.path, self.header, {self.name: content})


def write_parts(path, header, contents, *, replace=True):
    """Write parts to the file of all parts; with `replace` false, only those that it does not have yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(Path(tempfile.gettempdir()) / f"{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = json.loads(path.read_text()) if path.exists() else {}
        kept = before.pop("parts", {})
        kept = kept if before == header else {}
        parts = {**kept, **contents} if replace else {**contents, **kept}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({**header, "parts": dict(sorted(parts.items()))}, indent=1) + "\n")
        partial.replace(path)


@contextlib.contextmanager
def at_most(seconds):
    """Raise TimeoutError in a block that takes longer; `None` for no limit."""
    if seconds is None:
        yield
        return

    def stop(*_):
        raise TimeoutError(TIMED_OUT.format(seconds))

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def file_name(device):
    """Name the file of a card: "NVIDIA H100 80GB HBM3" -> gpu_h100_80gb_hbm3."""
    return "gpu_" + re.sub(r"[^a-z0-9]+", "_", device.lower().removeprefix("nvidia ")).strip("_")


@functools.cache
def describe_gpu():
    """Describe what the figures depend on; `MSCTR_GIT_COMMIT` names the commit where there is no repository."""
    properties = torch.cuda.get_device_properties(0)
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = None
    packages = {name: description._version(name) for name in (*description._PACKAGES, "onnxruntime")}
    return {
        "device": properties.name,
        "memory_gb": round(properties.total_memory / 2**30, 1),
        "processors": properties.multi_processor_count,
        "cards": torch.cuda.device_count(),
        "cpu": description.processor_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "versions": packages,
        "git_commit": os.environ.get("MSCTR_GIT_COMMIT") or description.git_commit(),
    }


@contextlib.contextmanager
def tf32(*, products, convolutions):
    """Choose whether a GPU may round the factors of matrix products and of convolutions to TensorFloat-32."""
    modules = {torch.backends.cuda.matmul: products, torch.backends.cudnn: convolutions}
    before = {module: module.allow_tf32 for module in modules}
    try:
        for module, allowed in modules.items():
            module.allow_tf32 = allowed
        yield
    finally:
        for module, allowed in before.items():
            module.allow_tf32 = allowed


def difference(actual, expected):
    """Compute the largest difference from values on the host, relative to the largest of them."""
    expected = expected.double()
    largest = (actual.detach().double().cpu() - expected).abs().max()
    return (largest / expected.abs().max().clamp_min(1e-30)).item()


def waiting_place(message):
    """Find the innermost function of the package that made the host wait, as a warning of CUDA reports it.

    The result is "file: function"; `None` for other warnings. The warnings carry no place, so it is taken from the
    stack.
    """
    if "synchronizing" not in str(message) or "prototype" in str(message):
        return None
    frames = traceback.extract_stack()[:-1]
    if any(frame.filename.endswith("torch/nn/modules/_functions.py") for frame in frames):
        return SYNC_BATCH_NORM
    inner = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    if not inner:
        outside = frames[max(0, len(frames) - 2)]
        return f"{Path(outside.filename).name}: {outside.name}"
    return _place(inner[-1].filename, inner[-1].name)


def place_of(function):
    """Name a function of the package as `waiting_place` does, so that an expected place cannot be out of date."""
    return _place(function.__code__.co_filename, function.__name__)


def _place(file, name):
    return f"{Path(file).relative_to(PACKAGE)}: {name}"
