"""Interrupted and resumed training ends with the weights of uninterrupted training."""

import ctypes
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import time

import pytest
import torch
from conftest import ROOT, SMALL_RESNET
from interrupted_run import assert_same_end, finish, log, newest, start, wait_for_step
from layouts import write_folder
from safetensors.torch import load_file
from small_run import TORCHRUN, flags

from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.training.checkpointing import find_checkpoint
from msctr_hf.training.interruption import EXIT_INTERRUPTED


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=6, num_validation=3)


OPTIONS = {
    "plain": {},
    "average, accumulation": {
        "ema": True,
        "gradient_accumulation_steps": 2,
        "optimizer": "sgd",
        "learning_rate": 0.01,
    },
    "images without labels": {  # two batches of them in an epoch, and draws of their own
        "train_images": 2,
        "unlabeled": "rest",
        "pseudo_label_threshold": 0.34,
        "contrastive_pseudo_labels": True,
        "contrastive_pseudo_threshold": 0.34,
        "contrastive_min_anchors_per_class": 1,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_run_that_is_stopped_by_sigterm_resumes_to_the_same_end(run_script, folder, tmp_path, options, monkeypatch):
    settings = {
        "batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 9, "validation_steps": 4,
        "checkpointing_steps": 100, "logging_steps": 2, **options,
    }  # fmt: skip
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run_script("train.py", *flags(folder, whole, **settings))[0] == 0

    augment, drawn = TrainingAugmentation.__call__, itertools.count(1)

    def interrupting(*arguments):
        if next(drawn) == 3 * settings["batch_size"] * settings["gradient_accumulation_steps"]:  # at about step 3
            os.kill(os.getpid(), signal.SIGTERM)
        return augment(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingAugmentation, "__call__", interrupting)
        code, _, error = run_script("train.py", *flags(folder, part, **settings))
    assert (code, "continue with --resume auto" in error) == (EXIT_INTERRUPTED, True)
    assert 2 <= newest(part) < 9
    assert run_script("train.py", *flags(folder, part, **{**settings, "resume": "auto"}))[0] == 0
    assert_same_end(part, whole)
    run = json.loads((part / "run.json").read_text())
    assert (run["from_step"], len(run["earlier_starts"])) == (newest_start(error), 1)


def newest_start(error):
    return int(error.split("stopped after step ")[1].split(";")[0])


def test_a_stream_resumes_where_it_was_stopped(run_script, folder, tmp_path):
    copy = tmp_path / "copy"
    options = ["--dataset", "folder", "--data_dir", folder, "--num_workers", "0", "--output_dir", copy]
    assert run_script("prepare_dataset.py", *options)[0] == 0
    settings = {"max_steps": 7, "checkpointing_steps": 4, "validation_steps": 7, "streaming": True}
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run_script("train.py", *flags(copy, whole, **settings))[0] == 0
    shutil.copytree(whole / "checkpoints/step_4", part / "checkpoints/step_4")
    assert run_script("train.py", *flags(copy, part, **settings, resume="auto"))[0] == 0
    weights, expected = (load_file(run / "last/model.safetensors") for run in (part, whole))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["images without labels"]], ids=["labeled", "unlabeled"])
def test_a_run_that_is_killed_ten_times_loses_nothing(folder, tmp_path, options):
    settings = {
        "max_steps": 40, "validation_steps": 5, "checkpointing_steps": 2, "logging_steps": 3, "num_workers": 1,
        "ema": True, "resume": "auto", **options,
    }  # fmt: skip
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert finish(start(*flags(folder, whole, **{**settings, "num_workers": 0})))[0] == 0
    chance, reached, killed = random.Random(5), 0, 0
    while killed < 10:
        process = start(*flags(folder, part, **settings))
        wait_for_step(part, min(reached + 1, 36), process)
        time.sleep(chance.uniform(0, 0.6))  # a step, a validation and a checkpoint take some tenths of a second
        if process.poll() is not None:
            assert finish(process)[0] == 0  # it reached the end, so it is started again from an older checkpoint
            for name in ("step_40", "step_38"):
                (part / "checkpoints" / name / "COMPLETE").unlink(missing_ok=True)
            reached = newest(part)
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
        assert newest(part) >= reached, "a checkpoint was lost"
        reached = newest(part)
    code, output = finish(start(*flags(folder, part, **settings)))
    assert code == 0, output
    assert_same_end(part, whole)
    assert not list(part.rglob("*partial*"))


@pytest.mark.slow
def test_a_signal_to_every_process_leads_to_a_checkpoint_after_the_current_step(folder, tmp_path):
    run = tmp_path / "run"
    settings = {"max_steps": 100_000, "validation_steps": 7, "checkpointing_steps": 100_000, "num_workers": 2}
    process = start(*flags(folder, run, **settings))
    wait_for_step(run, 5, process)
    # stopped first, so that its log shows the step at which SIGTERM arrives
    for number in (signal.SIGSTOP, signal.SIGTERM):
        os.killpg(process.pid, number)
    logged = log(run)[-1]["step"]
    os.killpg(process.pid, signal.SIGCONT)
    code, output = finish(process)
    assert code == EXIT_INTERRUPTED, output
    # a step is logged when the next has been started, and the last line may be half written
    assert logged <= newest(run) <= logged + 3


@pytest.mark.slow
def test_all_processes_stop_at_the_same_step_when_one_gets_a_signal(folder, tmp_path):
    """The run then resumes on one process, with the batches that the two had."""
    run = tmp_path / "run"
    settings = {"batch_size": 2, "max_steps": 100_000, "validation_steps": 100_000, "checkpointing_steps": 100_000}
    process = start(*flags(folder, run, **settings), launcher=TORCHRUN)
    wait_for_step(run, 3, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGTERM)  # the second process only
    code, output = finish(process)
    assert code != 0  # the exit code of torchrun
    stopped = newest(run)
    assert stopped >= 3, output
    assert output.count(f"stopped after step {stopped};") == 2
    settings = {**settings, "batch_size": 4, "max_steps": stopped + 2, "checkpointing_steps": 2}
    code, output = finish(start(*flags(folder, run, **settings, resume="auto")))
    assert code == 0, output
    assert "2 x 1 batches x 2 processes and are 4 x 1 batches x 1 processes" in output
    assert f"max_steps was 100000 and is {stopped + 2}" in output
    code, output = finish(start(*flags(folder, run, **{**settings, "batch_size": 3}, resume="auto")))
    assert (code, "Use --batch_size 4." in output) == (2, True)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others_and_its_message_is_shown(folder, tmp_path):
    for path in (folder / "train/images").iterdir():
        path.write_bytes(b"no image") if path.stem == "3" else None
    settings = {"batch_size": 2, "max_steps": 100_000, "num_workers": 1, "checkpointing_steps": 100_000}
    process = start(*flags(folder, tmp_path / "run", **settings), launcher=TORCHRUN)
    code, output = finish(process)
    assert code != 0
    assert "3.jpg cannot be read" in output
    assert subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout == ""


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_sentence_and_a_valid_checkpoint(folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    # large enough for one checkpoint and its models, but not for another
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=420m", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk here: {mount.stderr.strip()}")
    try:
        settings = {"max_steps": 8, "checkpointing_steps": 2, "validation_steps": 100, "checkpoints_kept": 5}
        code, output = finish(start(*flags(folder, disk / "run", backbone="resnet18", **settings)))
        sentence = output.strip().splitlines()[-1]
        assert code == 2, output
        assert sentence.startswith("error: "), output
        assert "Traceback" not in output
        assert "check free space" in sentence
        step = newest(disk / "run")
        assert step > 0
        assert find_checkpoint(disk / "run", "auto").name == f"step_{step}"
        assert not list(disk.rglob("*.partial"))
    finally:
        subprocess.run(["umount", disk], check=True)


# Training that logs the memory in use: resident memory without the free blocks that the C library keeps, since the run
# does not control how these are split and joined, and without objects that wait for Python's garbage collector, which
# may come at any step.
MEMORY_IN_USE = """
import ctypes, gc, psutil, sys
from msctr_hf.commands.train import main
from msctr_hf.training import meter

class MallInfo(ctypes.Structure):  # mallinfo(3)
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = MallInfo

def used_megabytes(device):
    gc.collect()
    return (psutil.Process().memory_info().rss - library.mallinfo2().fordblks) / 2**20

meter.used_megabytes = used_megabytes
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs mallinfo2 of glibc 2.33")
def test_memory_does_not_grow_after_the_fiftieth_step(tmp_path):
    run = tmp_path / "run"
    config = ["--config", ROOT / "configs/quickstart.yaml", "--output_dir", run, "--report_to", "none"]
    config += ["--batch_size", 2, "--crop_size", 64, 64, "--backbone", SMALL_RESNET, "--hidden_size", 8]
    config += ["--auxiliary_hidden_size", 8, "--projection_dim", 8]
    steps = ["--max_steps", 200, "--logging_steps", 5, "--checkpointing_steps", 50, "--validation_steps", 200]
    code, output = finish(start(*config, *steps, launcher=("-c", MEMORY_IN_USE)))
    assert code == 0, output
    used = {entry["step"]: entry["used_mb"] for entry in log(run) if "used_mb" in entry}
    early, late = (statistics.median(used[step] for step in range(first, first + 50, 5)) for first in (55, 155))
    assert late - early < 0.001 * early, used
