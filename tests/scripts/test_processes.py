"""A batch that is split over processes trains the network that it trains on one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from layouts import write_folder, write_labels
from PIL import Image
from safetensors.torch import load_file
from small_run import flags

HERE = ROOT / "tests/scripts"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29623"]


@pytest.fixture
def folder(tmp_path):
    """Pictures of which the dark half is one class and the bright half another: every pixel becomes an anchor."""
    description = {"classes": ["dark", "bright"]}
    folder = write_folder(tmp_path / "data", num_train=8, size=(64, 64), description=description)
    bright = np.arange(64, dtype=np.uint8)[None].repeat(64, 0) // 32
    for path in folder.rglob("labels/*"):
        write_labels(path, bright)
    for path in folder.rglob("images/*"):
        noise = np.random.default_rng(int(path.stem)).integers(0, 100, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise + 150 * bright[..., None]).save(path)
    return folder


def train(folder, run, launcher, **settings):
    command = [sys.executable, *launcher, HERE / "train_in_float64.py", *flags(folder, run, **settings)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(list(map(str, command)), env=environment, check=True, timeout=300)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return load_file(run / "last/model.safetensors"), [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ce", "ms_cs"])
def test_two_processes_train_the_network_of_one(folder, tmp_path, mode):
    settings = {
        "contrastive_mode": mode, "contrastive_gather_anchors": mode == "ms_cs",
        "contrastive_min_anchors_per_class": 1, "optimizer": "sgd", "learning_rate": 0.05, "max_grad_norm": 1.0,
        "warmup_steps": 0, "dropout": 0.0, "class_weights": "[1,1]", "crop_size": "64 64", "scale_range": "1 1",
        "aspect_range": "1 1", "max_class_share": 1.0, "max_steps": 8, "validation_steps": 8,
    }  # fmt: skip
    one, losses = train(folder, tmp_path / "one", [], batch_size=4, **settings)
    two, split_losses = train(folder, tmp_path / "two", TORCHRUN, batch_size=2, **settings)
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(split_losses, losses, rtol=1e-5, atol=0)
    assert losses[-1] < 0.9 * losses[0]  # it has learnt


@pytest.mark.slow
def test_sharded_training_gives_the_weights_of_whole_networks_and_goes_on(folder, tmp_path):
    settings = {"batch_size": 2, "crop_size": "64 64", "max_steps": 6, "class_weights": "[1,1]", "validation_steps": 6}
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    config = yaml.safe_load((ROOT / "configs/accelerate/fsdp2.yaml").read_text())["fsdp_config"]
    fsdp |= {name.upper(): str(value) for name, value in config.items()}

    def train(run, script, environment, **changes):
        command = [sys.executable, *TORCHRUN, script, *flags(folder, run, **{**settings, **changes})]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        subprocess.run(list(map(str, command)), env=environment, check=True, timeout=300)
        return load_file(run / "last/model.safetensors")

    whole = train(tmp_path / "whole", ROOT / "scripts/train.py", {"ACCELERATE_USE_CPU": "true"})
    as_on_gpus = HERE / "train_on_cpus_as_if_on_gpus.py"
    train(tmp_path / "sharded", as_on_gpus, fsdp, max_steps=4, validation_steps=100)
    assert list(tmp_path.glob("sharded/checkpoints/step_4/**/*.distcp"))
    sharded = train(tmp_path / "sharded", as_on_gpus, fsdp, resume="auto")
    assert set(sharded) == set(whole)
    for name, weights in whole.items():
        torch.testing.assert_close(sharded[name], weights, rtol=1e-3, atol=1e-4)
