import json
import subprocess
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import SWIN_TINY, TIMM_TINY

from msctr_hf.data.specs import DATASETS
from msctr_hf.models.info_nce_tiles import CPU_TILE_ROWS
from msctr_hf.training import description
from msctr_hf.training.description import (
    RunSummary,
    describe_parameters,
    describe_run,
    describe_start,
    device_name,
    git_commit,
    processor_name,
    without_secrets,
)
from msctr_hf.training.duration import Duration
from msctr_hf.training.network import build_network
from msctr_hf.training.settings import ModelSettings, TrainingSettings


def test_access_tokens_are_hidden_in_keys_and_nested_values(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    value = {"a": ["x hf_abcdefghij y", ("0123456789abcdef", 3)], "hf_abcdefghij": None}
    assert without_secrets(value) == {"a": ["x *** y", ["***", 3]], "***": None}


def test_ordinary_words_are_not_hidden():
    value = {"dataset": "half_scenes", "tokens": "hf_", "path": "/data/hf_x"}
    assert without_secrets(value) == value


def test_a_description_contains_no_token_of_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_averysecrettoken")
    monkeypatch.setenv("ACCELERATE_NOTE", "hf_averysecrettoken")
    settings = {"dataset_name": "https://u:hf_averysecrettoken@host"}
    description = describe_run(settings, Accelerator(cpu=True), Duration(4, 2), 0)
    assert "averysecret" not in str(description)
    assert description["environment"]["ACCELERATE_NOTE"] == "***"


def test_a_description_names_the_settings_that_were_paths_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/parquet").mkdir(parents=True)
    settings = {"dataset_name": "data/parquet", "model_name_or_path": "nvidia/mit-b0", "corrections": None, "seed": 0}
    assert describe_run(settings, Accelerator(cpu=True), Duration(4, 2), 0)["paths"] == ["dataset_name"]


def test_a_description_names_the_device_of_the_run_and_not_another_of_the_machine(monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"a GPU at {device}")
    description = describe_run({}, accelerator, Duration(4, 2), 0)
    assert description["device"] == f"{processor_name()}, {torch.get_num_threads()} thread(s)"
    assert description["contrastive_tile_rows"] == CPU_TILE_ROWS
    assert device_name(torch.device("cuda:1")) == "a GPU at cuda:1"
    # torch has modules of these devices in every build, but asks the driver for the names
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device=None: f"another GPU at {device}")
    assert device_name(torch.device("xpu:0")) == "another GPU at xpu:0"
    monkeypatch.setattr(torch, "mps", SimpleNamespace())
    assert device_name(torch.device("mps")) == f"mps of {processor_name()}"


@pytest.mark.parametrize(("decode_head", "phrase"), [
    ("fcn", "10.0 M parameters, 2.5 M more in training"),
    ("ocr", "11.0 M parameters, 1.5 M more in training"),  # which reads the logits of the auxiliary head
    (None, "11.0 M parameters, 1.5 M more in training"),
])  # fmt: skip
def test_heads_that_only_training_uses_are_counted_apart(decode_head, phrase):
    sizes = {"backbone.weight": 10_000_000, "auxiliary_head.weight": 1_000_000, "projection_head.weight": 1_500_000}
    assert describe_parameters(sizes, decode_head) == phrase


@pytest.mark.parametrize(("backbone_config", "name"), [
    (TIMM_TINY, "test_resnet"), (SWIN_TINY, "swin"), ({**SWIN_TINY, "_name_or_path": "owner/swin"}, "owner/swin"),
])  # fmt: skip
def test_the_first_line_names_the_backbone_of_the_network(tmp_path, backbone_config, name):
    """The setting `backbone` has a default, and does not decide where a configuration or a saved model is given."""
    spec, settings = DATASETS["camvid"], {"hidden_size": 8, "projection_dim": 8}
    given = ModelSettings(backbone_config=json.dumps(backbone_config), backbone_weights="none")
    built = build_network(given, settings, spec)
    built.save_pretrained(tmp_path)
    saved = build_network(ModelSettings(model_name_or_path=str(tmp_path)), {}, spec)
    args = TrainingSettings(output_dir="", max_steps=1)
    for network in (built, saved):
        length, cpu = Duration(1, 1), torch.device("cpu")
        summary = RunSummary(network, "camvid", 11, 4, None, 4, args, length, 1, cpu, "no", None, 0)
        assert describe_start(summary)[0].startswith(f"network   upernet on {name}, ms_cs: ")


def test_the_commit_of_the_repository_of_a_user_is_not_taken_for_that_of_the_code(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    installed = tmp_path / ".venv/description.py"
    installed.parent.mkdir()
    installed.write_text("")
    monkeypatch.setattr(description, "__file__", str(installed))
    git("init")
    git("commit", "--allow-empty", "-m", "of the user")
    assert git_commit() is None
    git("add", str(installed))
    git("commit", "-m", "with the code")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert git_commit() == head
