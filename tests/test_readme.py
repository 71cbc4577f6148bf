"""What README promises is what runs."""

import re

import pytest
import torch
from conftest import ROOT
from PIL import Image

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor

README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def snippet(word):
    return next(text for text in SNIPPETS if word in text)


def test_test_command_is_what_ci_runs():
    command = re.search(r'pip install "\.\[dev\]" && (pytest .*)', README).group(1)
    ci = (ROOT / ".ci/run").read_text()
    assert '".[dev]"' in ci
    assert command in ci


def test_prediction_snippet_labels_every_pixel(tiny_config, tmp_path, monkeypatch):
    MsctrForSemanticSegmentation(tiny_config()).save_pretrained(tmp_path / "runs/quickstart")
    MsctrImageProcessor(size_divisor=32).save_pretrained(tmp_path / "runs/quickstart")
    Image.new("RGB", (70, 45)).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet("AutoModelForSemanticSegmentation"), names)
    assert names["labels"].shape == (45, 70)


def test_loss_snippet_gives_a_loss_to_train_with():
    projections = [torch.randn(2, 8, side, side, requires_grad=True) for side in (64, 32, 16, 8)]
    labels = torch.arange(4).repeat_interleave(32)[None, :, None].expand(2, 128, 128)
    names = {"projections": projections, "labels": labels, "cross_entropy": torch.tensor(1.0)}
    exec(snippet("MultiScaleContrastiveLoss"), names)
    names["total"].backward()
    assert names["total"] > 1
    assert all(map_.grad.abs().max() > 0 for map_ in projections)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|scripts|docs)/[\w/.]+\.\w+", README))))
def test_files_named_in_the_readme_exist(path):
    assert (ROOT / path).exists()
