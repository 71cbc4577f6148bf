import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import gpu_parts
import pytest
import torch
from conftest import ROOT
from gpu_parts import Figures, at_most, file_name, part_name, place_of, waiting_place

from msctr_hf import MultiScaleContrastiveLoss
from msctr_hf.models.stage_anchors import StageSampler


def test_a_file_is_named_after_its_card():
    assert file_name("NVIDIA H100 80GB HBM3") == "gpu_h100_80gb_hbm3"
    assert file_name("NVIDIA A100-SXM4-40GB") == "gpu_a100_sxm4_40gb"


def test_figures_are_in_the_file_as_soon_as_they_are_set_and_parts_of_the_same_code_are_kept(tmp_path):
    path, header = tmp_path / "gpu.json", {"device": "card", "git_commit": "a"}
    first, second = Figures(path, "test_first", header), Figures(path, "test_second", header)
    with first.outcome():
        first["ms"] = 3.5
        assert json.loads(path.read_text())["parts"] == {"first": {"passed": None, "figures": {"ms": 3.5}}}
    with pytest.raises(AssertionError), second.outcome():
        second["ms"] = 1
        raise AssertionError("too slow")
    content = json.loads(path.read_text())
    assert {key: content[key] for key in header} == header
    assert [(name, part["passed"], part["figures"]) for name, part in content["parts"].items()] == [
        ("first", True, {"ms": 3.5}), ("second", False, {"ms": 1}),
    ]  # fmt: skip
    assert content["parts"]["second"]["error"] == "AssertionError: too slow"

    Figures(path, "test_third", {**header, "git_commit": "b"})["ms"] = 2
    assert list(json.loads(path.read_text())["parts"]) == ["third"]


def test_a_skipped_part_says_why(tmp_path):
    figures = Figures(tmp_path / "gpu.json", "test_onnx", {"device": "card"})
    with pytest.raises(pytest.skip.Exception), figures.outcome():
        pytest.skip("not installed")
    part = json.loads((tmp_path / "gpu.json").read_text())["parts"]["onnx"]
    assert (part["passed"], part["skipped"]) == (None, "not installed")


def test_a_part_that_began_and_did_not_end_has_no_outcome_even_if_it_passed_before(tmp_path):
    path, header = tmp_path / "gpu.json", {"device": "card"}
    with Figures(path, "test_compiled", header).started().outcome():
        pass
    assert json.loads(path.read_text())["parts"]["compiled"]["passed"]
    Figures(path, "test_compiled", header).started()  # and the process crashes
    assert json.loads(path.read_text())["parts"] == {"compiled": {"passed": None, "figures": {}}}


def test_the_names_of_all_parts_are_in_the_file_before_the_first_begins(tmp_path, monkeypatch):
    class Item:
        def __init__(self, name, *marks):
            self.name, self.get_closest_marker = name, lambda mark: mark in marks

    items = [Item("test_time[cuda-large]", "gpu"), Item("test_ends[cuda]", "gpu"), Item("test_ends[cpu]")]
    session = SimpleNamespace(items=items, config=SimpleNamespace(option=SimpleNamespace(collectonly=False)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_parts, "describe_gpu", lambda: {"device": "NVIDIA Card"})
    monkeypatch.setenv("MSCTR_GPU_RESULTS", str(tmp_path))
    path = tmp_path / "gpu_card.json"
    with Figures(path, "test_ends[cuda]", {"device": "NVIDIA Card"}).started().outcome():
        pass
    gpu_parts.record_gpu_parts(session)
    parts = json.loads(path.read_text())["parts"]
    assert {name: part["passed"] for name, part in parts.items()} == {"ends": True, "time[large]": None}
    assert part_name("test_classes[windows-cuda-tf32]") == "classes[windows-tf32]"


def test_what_shows_nothing_on_the_cpu_is_left_out_there_instead_of_counting_as_passed():
    @gpu_parts.part(1, on_cpu=lambda name: name == "shown")
    def tested(device, name, figures):
        pass

    class Item:
        def __init__(self, device, name):
            self.function = tested
            self.callspec = SimpleNamespace(params={"device": device, "name": name})
            self.get_closest_marker = lambda _: device == "cuda"
            self.add_marker = lambda _: None  # a skip, on a machine without a GPU

    left_out = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    config = SimpleNamespace(hook=hook, option=SimpleNamespace(markexpr="gpu"))
    shown, hidden, on_gpu = items = [Item("cpu", "shown"), Item("cpu", "hidden"), Item("cuda", "hidden")]
    gpu_parts.select_gpu_parts(config, items)
    assert (items, left_out) == ([shown, on_gpu], [hidden])


def test_a_part_ends_at_its_limit():
    with pytest.raises(TimeoutError, match=r"0\.05 s"), at_most(0.05):
        time.sleep(10)
    with at_most(10):
        pass


@pytest.mark.parametrize(
    "settings", [{}, {"anchor_selection": "hard", "positives": "any"}], ids=["default", "options"]
)
def test_the_counts_of_a_batch_reach_the_host_at_once_at_the_place_that_the_parts_expect(monkeypatch, settings):
    places = []

    def watched(read):
        def wait(tensor, *arguments, **named):
            place = waiting_place("called a synchronizing CUDA operation")
            if not place.startswith("models/misclassified_pixels.py"):  # it reads positions, computed on the host
                places.append(place)
            return read(tensor, *arguments, **named)

        return wait

    for name in ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, watched(getattr(torch.Tensor, name)))
    maps, logits = [torch.randn(1, 4, side, side) for side in (8, 4)], torch.randn(1, 2, 8, 8)
    MultiScaleContrastiveLoss(2, [1, 2], **settings)(maps, torch.randint(0, 2, (1, 32, 32)), logits=logits)
    assert places == [place_of(StageSampler._count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expression", "said"), [("gpu", "PyTorch sees no NVIDIA GPU on this machine."), ("not slow", "deselected")]
)
def test_without_a_gpu_its_tests_are_skipped_in_one_sentence_if_asked_for_and_left_out_otherwise(expression, said):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "CI": "false"}
    command = [sys.executable, "-m", "pytest", "-rs", "-m", expression, "tests/gpu/test_gpu_objective.py"]
    command += [] if expression == "gpu" else ["--collect-only", "-q"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert said in done.stdout
