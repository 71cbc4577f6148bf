"""Training with a batch that is split over two processes gives the same weights as training on one process."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SWIN_TINY
from forked import Process
from interrupted_run import ENVIRONMENT, finish, start, two_processes
from layouts import write_folder, write_labels
from PIL import Image
from safetensors.torch import load_file
from small_run import TORCHRUN, flags

from msctr_hf.training.run_folder import read_log

HERE = ROOT / "tests/scripts"


@pytest.fixture
def folder(tmp_path):
    """Write images whose dark and bright halves are one class each, so that every pixel becomes an anchor."""
    description = {"classes": ["dark", "bright"]}
    folder = write_folder(tmp_path / "data", num_train=8, size=(64, 64), description=description)
    bright = np.arange(64, dtype=np.uint8)[None].repeat(64, 0) // 32
    for path in folder.rglob("labels/*"):
        write_labels(path, bright)
    for path in folder.rglob("images/*"):
        noise = np.random.default_rng(int(path.stem)).integers(0, 100, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise + 150 * bright[..., None]).save(path)
    return folder


def run_script(folder, run, script, environment, **settings):
    """Run a script in two processes and return its last weights."""
    code, output = finish(Process([*two_processes(environment), script, *flags(folder, run, **settings)], environment))
    assert code == 0, output
    return load_file(run / "last/model.safetensors")


def train_in_float64(folder, run, launcher, **settings):
    code, output = finish(
        start(*flags(folder, run, **settings), launcher=launcher, script=HERE / "train_in_float64.py")
    )
    assert code == 0, output
    return load_file(run / "last/model.safetensors"), [entry["loss"] for entry in read_log(run) if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ce", "ms_cs"])
def test_two_processes_train_the_same_network_as_one_process(folder, tmp_path, mode):
    settings = {
        "contrastive_mode": mode, "contrastive_gather_anchors": mode == "ms_cs",
        "contrastive_min_anchors_per_class": 1, "optimizer": "sgd", "learning_rate": 0.05, "max_grad_norm": 1.0,
        "warmup_steps": 0, "dropout": 0.0, "class_weights": "[1,1]", "crop_size": "64 64", "scale_range": "1 1",
        "aspect_range": "1 1", "max_class_share": 1.0, "max_steps": 8, "validation_steps": 8,
    }  # fmt: skip
    one, losses = train_in_float64(folder, tmp_path / "one", [], batch_size=4, **settings)
    two, split_losses = train_in_float64(folder, tmp_path / "two", two_processes(), batch_size=2, **settings)
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(split_losses, losses, rtol=1e-5, atol=0)
    assert losses[-1] < 0.9 * losses[0]  # the weights have changed enough for the comparison to mean something


@pytest.mark.slow
@pytest.mark.parametrize(("mix", "mode", "share"), [("cutmix", "ms_cs", 0.5), ("classmix", "ce", None)])
def test_two_processes_learn_from_images_without_labels_as_one_process(folder, tmp_path, mode, mix, share):
    for number in range(8):  # noise alone in some, so that processes have unequal numbers of confident pixels
        image = np.random.default_rng(100 + number).integers(0, 256 if number % 2 else 60, (64, 64, 3), dtype=np.uint8)
        (tmp_path / "more").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"more/{number}.png")
    settings = {
        "unlabeled_dir": tmp_path / "more", "unlabeled_mix": mix, "unlabeled_start_step": 2, "ema_decay": 0.5,
        "pseudo_label_threshold": 0.6, "contrastive_mode": mode, "contrastive_gather_anchors": mode == "ms_cs",
        "contrastive_min_anchors_per_class": 1, "optimizer": "sgd", "learning_rate": 0.05, "warmup_steps": 0,
        "dropout": 0.0, "class_weights": "[1,1]", "crop_size": "64 64", "scale_range": "1 1", "aspect_range": "1 1",
        "max_class_share": 1.0, "max_steps": 8, "validation_steps": 8,
    }  # fmt: skip
    if share is not None:
        settings["pseudo_label_class_share"] = share
    one, _ = train_in_float64(folder, tmp_path / "one", [], batch_size=4, **settings)
    two, _ = train_in_float64(folder, tmp_path / "two", two_processes(), batch_size=2, **settings)
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-5, atol=1e-8)
    logged = [[entry for entry in read_log(tmp_path / run) if "loss" in entry] for run in ("one", "two")]
    for name in ("loss", "pseudo_cross_entropy"):
        split, whole = ([entry[name] for entry in log[2:]] for log in reversed(logged))
        torch.testing.assert_close(split, whole, rtol=1e-5, atol=0)
    shares = [entry["pseudo_cross_entropy/confident_pixels"] for entry in logged[0][2:]]
    assert max(shares) > 0.01
    assert min(shares) < 0.99
    thresholds = [[entry.get("pseudo_labels/lowest_threshold") for entry in log] for log in logged]
    assert thresholds[0] == thresholds[1]
    assert (min(thresholds[0][2:]) < 0.6) if share else (set(thresholds[0]) == {None})


@pytest.mark.slow
def test_two_processes_resume_with_the_data_and_learning_rates_of_an_uninterrupted_run(folder, tmp_path):
    settings = {
        "batch_size": 2, "crop_size": "64 64", "class_weights": "[1,1]", "max_steps": 7, "checkpointing_steps": 3,
        "checkpoints_kept": 9, "gradient_accumulation_steps": 2, "validation_steps": 7,
    }  # fmt: skip
    whole = run_script(folder, tmp_path / "whole", ROOT / "scripts/train.py", ENVIRONMENT, **settings)
    shutil.copytree(tmp_path / "whole/checkpoints/step_3", tmp_path / "part/checkpoints/step_3")
    part = run_script(folder, tmp_path / "part", ROOT / "scripts/train.py", ENVIRONMENT, **settings, resume="auto")
    for name, weights in whole.items():
        torch.testing.assert_close(part[name], weights, rtol=1e-5, atol=1e-7)
    logs = [read_log(tmp_path / run) for run in ("whole", "part")]
    expected, continued = ([entry for entry in log if "loss" in entry and entry["step"] > 3] for log in logs)
    for name in ("step", "learning_rate", "loss", "contrastive/stage_1/anchors"):
        assert [entry[name] for entry in continued] == pytest.approx([entry[name] for entry in expected], rel=1e-6)


@pytest.mark.slow
def test_two_processes_train_a_network_with_norms_of_stages_that_no_head_reads(folder, tmp_path):
    run_script(
        folder, tmp_path / "run", ROOT / "scripts/train.py", ENVIRONMENT, decode_head="deeplabv3", backbone=None,
        backbone_config=json.dumps(SWIN_TINY, separators=(",", ":")), backbone_weights="none", crop_size="64 64",
        class_weights="[1,1]", max_steps=3, validation_steps=3,
    )  # fmt: skip


@pytest.mark.slow
def test_sharded_training_gives_the_weights_of_unsharded_training_and_resumes(folder, tmp_path):
    settings = {"batch_size": 2, "crop_size": "64 64", "max_steps": 6, "class_weights": "[1,1]", "validation_steps": 6}
    fsdp = {"ACCELERATE_USE_CPU": "false", "ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    config = yaml.safe_load((ROOT / "configs/accelerate/fsdp2.yaml").read_text())["fsdp_config"]
    fsdp = ENVIRONMENT | fsdp | {name.upper(): str(value) for name, value in config.items()}

    whole = run_script(folder, tmp_path / "whole", ROOT / "scripts/train.py", ENVIRONMENT, **settings)
    as_on_gpus, run, refused = HERE / "train_on_cpus_as_if_on_gpus.py", tmp_path / "sharded", tmp_path / "refused"
    in_parts = fsdp | {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}
    words = [*two_processes(in_parts), as_on_gpus, *flags(folder, refused, **settings)]
    code, output = finish(Process(words, in_parts))
    assert code != 0
    assert "error: FSDP of parts of the network cannot be used for training" in output
    assert not refused.exists()
    run_script(folder, run, as_on_gpus, fsdp, **{**settings, "max_steps": 4, "validation_steps": 100})
    assert list(run.glob("checkpoints/step_4/**/*.distcp"))
    sharded = run_script(folder, run, as_on_gpus, fsdp, **settings, resume="auto")
    assert set(sharded) == set(whole)
    for name, weights in whole.items():
        torch.testing.assert_close(sharded[name], weights, rtol=1e-3, atol=1e-4)


TWO_RUNS = """
import atexit, json, sys
import torch
import msctr_hf

atexit.register(lambda: print("process group left:", not torch.distributed.is_initialized(), flush=True))
first, second = json.loads(sys.argv[1])
results = msctr_hf.train("quickstart", **first)
assert results == msctr_hf.train("quickstart", **second)
"""


@pytest.mark.slow
def test_two_processes_can_train_several_times_from_python_and_leave_their_group_at_exit(folder, tmp_path):
    settings = {
        "dataset": "folder", "data_dir": str(folder), "crop_size": [64, 64], "class_weights": [1, 1], "batch_size": 2,
        "hidden_size": 8, "auxiliary_hidden_size": 8, "projection_dim": 8, "max_steps": 2, "validation_steps": 2,
        "num_workers": 0, "report_to": "none",
    }  # fmt: skip
    runs = [{**settings, "output_dir": str(tmp_path / name)} for name in ("first", "second")]
    (tmp_path / "runs.py").write_text(TWO_RUNS)
    code, output = finish(start(json.dumps(runs), launcher=TORCHRUN, script=tmp_path / "runs.py"))
    assert (code, output.count("process group left: True")) == (0, 2), output
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("second", "first"))
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-5, atol=1e-7)
