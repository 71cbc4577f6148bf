"""What README promises is what runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from local_hub import LocalHub
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, SegformerConfig, SegformerForSemanticSegmentation

from experiments.model_zoo import read_rows, zoo_table
from experiments.sweep_report import compare_arms, markdown
from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.commands.train import command_line

README = (ROOT / "README.md").read_text()
SWEEPS = ("camvid", "camvid_2160_steps")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def snippet(word):
    return next(text for text in SNIPPETS if word in text)


def test_test_command_is_what_ci_runs():
    constraints, command = re.search(r'pip install -c (\S+) "\.\[dev\]" && (pytest .*)', README).groups()
    ci = (ROOT / ".ci/run").read_text()
    assert f"tested={constraints}\n" in ci
    assert '"${constraints[@]}" ".[dev]"' in ci
    assert f"\n{command}\n" in ci


def test_prediction_snippet_labels_every_pixel(tiny_config, tmp_path, monkeypatch):
    MsctrForSemanticSegmentation(tiny_config()).save_pretrained(tmp_path / "runs/quickstart")
    MsctrImageProcessor(size_divisor=32).save_pretrained(tmp_path / "runs/quickstart")
    Image.new("RGB", (70, 45)).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet("post_process_semantic_segmentation"), names)
    assert names["labels"].shape == (45, 70)


def test_loss_snippet_gives_a_loss_to_train_with():
    projections = [torch.randn(2, 8, side, side, requires_grad=True) for side in (64, 32, 16, 8)]
    labels = torch.arange(4).repeat_interleave(32)[None, :, None].expand(2, 128, 128)
    names = {"projections": projections, "labels": labels, "cross_entropy": torch.tensor(1.0)}
    exec(snippet("MultiScaleContrastiveLoss"), names)
    names["total"].backward()
    assert names["total"] > 1
    assert all(map_.grad.abs().max() > 0 for map_ in projections)


def test_adapter_snippet_gives_a_loss_and_the_model_back(tmp_path, monkeypatch):
    small = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=19, **small)).save_pretrained(
        tmp_path / "nvidia/mit-b0"
    )
    monkeypatch.chdir(tmp_path)
    labels = torch.arange(4).repeat_interleave(16)[None, :, None].expand(2, 64, 64)
    names = {"pixel_values": torch.randn(2, 3, 64, 64), "labels": labels}
    exec(snippet("ContrastiveAdapter"), names)
    names["loss"].backward()
    assert type(AutoModelForSemanticSegmentation.from_pretrained("segformer")) is SegformerForSemanticSegmentation


# what the tutorial costs on real data, made small; and what needs a person or the real Hub
SMALLER = {
    "hf auth login": "true",
    "resnet50.tv_in1k": "resnet18 --backbone_weights none --hidden_size 8 --auxiliary_hidden_size 8",
    "--crop_size 512 512": "--crop_size 32 32 --num_workers 0 --report_to none",
    "--max_steps 20000": "--max_steps 2",
    "USER/": "someone/",
}


@pytest.mark.slow
def test_tutorial_leads_from_a_folder_to_predictions_of_a_model_on_the_hub(tmp_path):
    tutorial = re.search(r"```bash\n(.*?)```", README, re.DOTALL)[1]
    assert len(tutorial.splitlines()) <= 30
    for costly, cheap in SMALLER.items():
        assert costly in tutorial
        tutorial = tutorial.replace(costly, cheap)
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "my_data" / name).mkdir(parents=True)
    for index in range(20):
        pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"my_data/images/image {index}.jpg")
        mask = random.integers(0, 3, (6, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(mask).save(tmp_path / f"my_data/masks/image {index}.png")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    hub = LocalHub()
    paths = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    environment = os.environ | hub.environment(tmp_path / "home") | paths
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", tutorial], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    hub.close()
    assert run.returncode == 0, run.stdout + run.stderr
    assert hub.repositories["someone/mine"]["private"]
    assert len(list((tmp_path / "predictions").glob("*_overlay.png"))) == 2


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|scripts|docs)/[\w/.]+\.\w+", README))))
def test_files_named_in_the_readme_exist(path):
    assert (ROOT / path).exists()


def test_tables_of_results_are_those_of_the_files():
    assert zoo_table(read_rows([ROOT / f"results/{name}.json" for name in ("quickstart", *SWEEPS)])) in README


@pytest.mark.parametrize("name", SWEEPS)
def test_table_of_a_sweep_is_that_of_its_file_with_three_seeds_of_every_arm(name):
    rows = read_rows([ROOT / f"results/{name}.json"])
    assert len({row["max_steps"] for row in rows}) == 1
    seeds = {arm: {row["seed"] for row in rows if row["arm"] == arm} for arm in {row["arm"] for row in rows}}
    assert min(map(len, seeds.values())) >= 3
    assert len(set(map(frozenset, seeds.values()))) == 1
    assert markdown(compare_arms(rows, "ce")) in README


@pytest.mark.parametrize("name", ["quickstart", *SWEEPS])
def test_commands_of_results_are_taken_by_the_training_script(name):
    for row in read_rows([ROOT / f"results/{name}.json"]):
        words = shlex.split(row["command"])[2:]
        *_, arguments, _, settings = command_line().parse(words)
        assert arguments.seed == row["seed"]
        assert settings.get("contrastive_mode", "ms_cs") == row["contrastive_mode"]
