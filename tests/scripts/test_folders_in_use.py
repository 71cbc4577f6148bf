"""A folder that a process writes is refused to every other one, which changes nothing in it."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from interrupted_run import assert_same_end, finish, log, start, two_processes, wait_for_step
from layouts import write_folder
from small_run import flags

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.folder_lock import locked


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=6, num_validation=3)


@pytest.fixture
def model(tiny_config, tmp_path):
    MsctrForSemanticSegmentation(tiny_config("upernet")).save_pretrained(tmp_path / "model")
    MsctrImageProcessor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


COMMANDS = {
    "train.py": ({}, {"resume": "auto"}, {"overwrite_output_dir": True}),
    "prepare_dataset.py": ({}, {"predecode": True}),
    "evaluate.py": ({},),
    "export.py": ({},),
    "convert_checkpoint.py": ({},),
}


@pytest.mark.parametrize(("script", "changes"), [(name, each) for name, all_ in COMMANDS.items() for each in all_])
def test_every_command_whose_files_belong_together_is_refused(run_script, folder, tmp_path, model, script, changes):
    if script == "export.py":
        pytest.importorskip("onnxruntime")
    output_dir = tmp_path / "run"
    output_dir.mkdir()
    # an evaluation is refused in the folder of a run even if that is not in use
    (output_dir / ("results.json" if script == "evaluate.py" else "run.json")).write_text("{}")
    (output_dir / "train_report.json").write_text("{}")
    data = ["--dataset", "folder", "--data_dir", folder]
    arguments = {
        "train.py": flags(folder, output_dir, **changes),
        "prepare_dataset.py": [*data, "--output_dir", output_dir, *(f"--{name}" for name in changes)],
        "evaluate.py": [*data, "--model", model, "--output_dir", output_dir, "--device", "cpu"],
        "export.py": ["--model", model, "--output_dir", output_dir],
        "convert_checkpoint.py": ["--checkpoint", model / "model.safetensors", "--output_dir", output_dir],
    }[script]
    before = content(tmp_path)
    with locked(output_dir):
        code, _, error = run_script(script, *arguments)
        sentence = error.splitlines()[-1]
        assert sentence.startswith(f"error: --output_dir: {output_dir} is in use by process {os.getpid()} on ")
        assert (code, "Traceback" in error) == (2, False)
    assert content(tmp_path) == before


def test_a_dry_run_in_the_folder_of_a_run_in_progress_needs_only_its_own_folder(run_script, folder, tmp_path):
    settings = {"resume": "auto", "dry_run": True}
    with locked(tmp_path / "run"):
        code, output, error = run_script("train.py", *flags(folder, tmp_path / "run", **settings))
    assert (code, "dry run: training" in output) == (0, True), error
    with locked(tmp_path / ".run.dry_run"):
        code, _, error = run_script("train.py", *flags(folder, tmp_path / "run", **settings))
    assert (code, "is in use by" in error) == (2, True)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


@pytest.mark.slow
def test_a_second_start_is_refused_and_one_after_a_kill_continues_at_once(folder, tmp_path):
    settings = {"max_steps": 40, "validation_steps": 40, "checkpointing_steps": 4, "num_workers": 2, "resume": "auto"}
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert finish(start(*flags(folder, whole, **settings)))[0] == 0
    first = start(*flags(folder, part, **settings))
    wait_for_step(part, 8, first)
    os.kill(first.pid, signal.SIGSTOP)
    before = content(part)
    code, output = finish(start(*flags(folder, part, **settings)))
    assert (code, f"is in use by process {first.pid} on " in output) == (2, True), output
    assert content(part) == before
    workers = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert workers
    assert all(Path(f"/proc/{worker}").exists() for worker in workers.split())  # they notice the kill only later
    with locked(part):
        pass
    code, output = finish(start(*flags(folder, part, **settings)))
    assert code == 0, output
    assert_same_end(part, whole)
    assert [entry["step"] for entry in log(part) if "loss" in entry] == list(range(1, 41))
    assert {path.name for path in tmp_path.iterdir()} == {"data", "whole", "part"}


@pytest.mark.slow
def test_all_processes_of_a_second_start_are_refused(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with locked(run):
        code, output = finish(start(*flags(folder, run), launcher=two_processes()))
    assert code != 0
    assert output.count(f"error: --output_dir: {run} is in use by process {os.getpid()} on ") == 2, output
    assert not list(run.iterdir())
    code, output = finish(start(*flags(folder, run), launcher=two_processes()))
    assert code == 0, output
    assert json.loads((run / "run.json").read_text())["num_processes"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run"}
