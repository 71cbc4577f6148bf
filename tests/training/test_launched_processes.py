"""Processes that a launcher has started but that do not see each other are refused before they write anything."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from forked import Process
from interrupted_run import finish, start
from layouts import write_folder
from small_run import TORCHRUN, flags

LAUNCHERS = {
    "variables set by hand": {"WORLD_SIZE": "2", "RANK": "{0}"},
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "{0}", "OMPI_COMM_WORLD_LOCAL_RANK": "{0}"},
    "Intel MPI": {"PMI_SIZE": "2", "PMI_RANK": "{0}"},
}


@pytest.fixture
def without_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_that_accelerate_does_not_connect_do_not_train(
    run_script, tmp_path, monkeypatch, without_gpus, launcher, rank
):
    folder = write_folder(tmp_path / "data")
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value.format(rank))
    code, output, error = run_script("train.py", *flags(folder, tmp_path / "run"))
    assert (code, output) == (2, "")
    assert error.startswith("error: A launcher has started 2 processes, but Accelerate does not connect them"), error
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_processes_that_accelerate_does_not_connect_do_not_score(run_script, tmp_path, monkeypatch, without_gpus):
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = [
        "--model",
        ROOT / "examples/street_scenes",
        "--dataset",
        "synthetic_scenes",
        "--output_dir",
        tmp_path / "out",
    ]
    code, output, error = run_script("evaluate.py", *options)
    assert (code, output) == (2, "")
    assert "A launcher has started 2 processes" in error
    assert not list(tmp_path.iterdir())


def test_a_launcher_of_one_process_is_no_obstacle(run_script, tmp_path, monkeypatch, without_gpus):
    folder = write_folder(tmp_path / "data")
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    assert run_script("train.py", *flags(folder, tmp_path / "run", max_steps=1))[0] == 0


def test_processes_wait_for_hours_for_the_main_process(tmp_path):
    program = """
from datetime import timedelta
from msctr_hf.training.processes import join_processes
from torch.distributed.distributed_c10d import _get_default_group
join_processes(cpu=True)
group = _get_default_group()
assert group._get_backend(group._device_types[0]).options._timeout >= timedelta(hours=2)
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    process = Process(["-c", program], environment={**os.environ, **one}, cwd=tmp_path)
    assert process.communicate(timeout=120)[0] == ""
    assert process.returncode == 0


@pytest.mark.slow
def test_a_launch_for_gpus_on_a_machine_without_usable_ones_is_refused_by_every_process(tmp_path):
    folder = write_folder(tmp_path / "data")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("ACCELERATE_USE_CPU", None)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    command = [sys.executable, *launch, ROOT / "scripts/train.py", *flags(folder, tmp_path / "run")]
    run = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode != 0
    assert run.stderr.count("error: A launcher has started 2 processes") == 2, run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    code, output = finish(start(*flags(folder, tmp_path / "run", max_steps=2), launcher=TORCHRUN))
    assert code == 0, output
    assert "x 2 process(es)" in output
