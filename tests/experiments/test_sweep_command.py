"""A sweep does every run once and resumes where it was stopped, and single runs repeat its rows."""

import importlib.util
import json
import os
import shlex
import signal
import time

import forked
import pytest
from conftest import ROOT
from interrupted_run import ENVIRONMENT
from layouts import write_folder
from small_run import flags

ARMS = ("ce", "budget: ms_cs --contrastive_sampling budget --contrastive_max_anchors 64")


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=6, num_validation=3)


# A sweep that starts its runs with the Python given first, which forks them.
SWEEP = """
import os, runpy, sys
sys.executable, *sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def sweep(folder, output_dir, *more, seeds=(0, 1), **changes):
    of_a_run = flags(folder, None, **{"validation_steps": None} | changes)
    return [
        str(ROOT / "scripts/sweep.py"), "--output_dir", str(output_dir),
        "--seeds", *map(str, seeds), "--arms", *ARMS, *more, *of_a_run,
    ]  # fmt: skip


def run(words):
    return forked.run(words, ENVIRONMENT, timeout=500)


def with_forks(words, folder):
    return ["-c", SWEEP, forked.write_executable(folder / "python", ENVIRONMENT), *words]


def log(path):
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_single_runs_repeat_the_rows_of_a_sweep(folder, tmp_path):
    output_dir = tmp_path / "sweep"
    command = with_forks(sweep(folder, output_dir, "--parallel", "2"), tmp_path)
    first = run(command)
    assert first.returncode == 0, first.stdout + first.stderr
    rows = json.loads((output_dir / "results.json").read_text())
    assert [(row["seed"], row["arm"]) for row in rows] == [(0, "ce"), (0, "budget"), (1, "ce"), (1, "budget")]
    assert {(row["dataset"], row["split"], row["max_steps"]) for row in rows} == {("folder", "validation", 4)}
    assert [row["contrastive_mode"] for row in rows] == ["ce", "ms_cs"] * 2
    assert str(tmp_path) not in (output_dir / "results.json").read_text()
    assert "| budget | 2 |" in (output_dir / "report.md").read_text()
    assert (output_dir / "curves.png").stat().st_size > 0

    # runs of one seed start with the same weights and see the same images in every arm
    started = {row["arm"]: log(output_dir / row["arm"] / "seed_0")[0]["cross_entropy"] for row in rows}
    assert started["ce"] == started["budget"]

    again = run(command)
    assert again.returncode == 0
    assert "4 runs, 4 of them finished" in again.stdout

    words = [str(folder) if word == "DATA_DIR" else word for word in shlex.split(rows[1]["command"])[2:]]
    alone = run([ROOT / "scripts/train.py", *words, "--output_dir", str(tmp_path / "alone")])
    assert alone.returncode == 0, alone.stderr
    results = json.loads((tmp_path / "alone/results.json").read_text())
    assert results["mean_iou"] == rows[1]["mean_iou"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_resumes(folder, tmp_path, number):
    words = sweep(folder, tmp_path / "sweep", seeds=(0,), max_steps=60, checkpointing_steps=60)
    command = with_forks(words, tmp_path)
    process = forked.Process(command, ENVIRONMENT)
    steps = tmp_path / "sweep/ce/seed_0/log.jsonl"
    while not steps.exists() or len(steps.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, number)  # to all of its processes, as a terminal does on Ctrl-C; runs have other groups
    process.communicate(timeout=300)
    assert process.returncode == (-number if number == signal.SIGKILL else 75)
    assert not (tmp_path / "sweep/ce/seed_0/results.json").exists()
    finished = run(command)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert len(json.loads((tmp_path / "sweep/ce/seed_0/run.json").read_text())["earlier_starts"]) == 1
    assert {row["arm"] for row in json.loads((tmp_path / "sweep/results.json").read_text())} == {"ce", "budget"}


def test_a_failed_run_ends_the_sweep_with_the_error_of_the_run(run_script, folder, tmp_path):
    (folder / "dataset.yaml").unlink()
    code, _, error = run_script("sweep.py", *sweep(folder, tmp_path / "sweep", seeds=(0,))[1:])
    assert code == 2
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: ce, seed 0 ended with exit code 2: error: ")
    assert "dataset.yaml" in last


@pytest.mark.parametrize("more, message", [
    (("--parallel", "0"), "--parallel must be at least 1, got 0."),
    (("--seeds", "1", "1"), "--seeds: every entry must be given once"),
    (("--max_stepz", "3"), "Did you mean --max_steps?"),
    (("--time_left", "9"), "--time_left needs --experiment."),
    (("--experiment", "missing.yaml"), "--arms and --seeds are in the file of the experiment"),
])  # fmt: skip
def test_faulty_input_is_reported_in_one_sentence(folder, tmp_path, more, message, run_script):
    code, _, error = run_script("sweep.py", *sweep(folder, tmp_path / "sweep")[1:], *more)
    assert code == 2
    assert message in error
    assert not (tmp_path / "sweep").exists()


def test_missing_packages_are_named_before_the_first_run(folder, tmp_path, run_script, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *at: None if name == "scipy" else find_spec(name, *at)
    )
    code, _, error = run_script("sweep.py", *sweep(folder, tmp_path / "sweep")[1:])
    assert code == 2
    assert "needs scipy: pip install '.[figures]'" in error
    assert not (tmp_path / "sweep").exists()
