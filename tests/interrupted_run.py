"""Start training in a process that can be signaled and killed, and compare the results of two runs."""

import json
import os
import time

import torch
from conftest import ROOT
from forked import Process, python
from safetensors.torch import load_file
from small_run import TORCHRUN

ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def start(*argv, launcher=(), script=ROOT / "scripts/train.py"):
    """Start a training process in a new session, so that it can be killed with all processes that it starts."""
    return Process([*launcher, script, *argv], ENVIRONMENT)


def two_processes(environment=ENVIRONMENT):
    """List arguments of Python that start two processes as torchrun does, without new imports of libraries."""
    return (*TORCHRUN, "--no_python", *python(environment))


def finish(process, timeout=300):
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def log(run):
    path = run / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]  # the last line may be incomplete


def losses(run):
    """Map every logged step to its means, except for those that depend on the clock."""
    timed = {"time", "images_per_second", "used_mb"}
    return {
        entry["step"]: {name: value for name, value in entry.items() if name not in timed}
        for entry in log(run)
        if "loss" in entry
    }


def wait_for_step(run, step, process=None):
    deadline = time.monotonic() + 300
    while not any(entry["step"] >= step for entry in log(run)[:-1] or log(run)):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, finish(process)[1]
        time.sleep(0.02)


def newest(run):
    """Return the step of the newest complete checkpoint, 0 if there is none."""
    steps = [int(path.parent.name.removeprefix("step_")) for path in run.glob("checkpoints/step_*/COMPLETE")]
    return max(steps, default=0)


def assert_same_end(run, expected):
    for name in ("last", "."):
        weights, reference = (load_file(each / name / "model.safetensors") for each in (run, expected))
        assert all(torch.equal(weights[key], reference[key]) for key in reference)
    assert losses(run) == losses(expected)
    assert json.loads((run / "results.json").read_text()) == json.loads((expected / "results.json").read_text())
