"""bf16 counts as hardware exactly where the system lists instructions for it."""

import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from msctr_hf.errors import InputWarning
from msctr_hf.evaluation import predictor
from msctr_hf.evaluation.precision import has_bf16
from msctr_hf.evaluation.predictor import load_predictor

CPU = torch.device("cpu")


def test_the_answer_for_this_processor_is_that_of_the_operating_system():
    if platform.system() != "Linux" or not torch.backends.mkldnn.is_available():
        return  # nothing to compare with
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    features = next(line for line in lines if line.startswith(("flags", "Features"))).split(":")[1].split()
    assert has_bf16(CPU) == bool({"avx512_bf16", "amx_bf16", "bf16"} & set(features))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, False),  # Cascade Lake
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "avx2": True}, False),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, False),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
    ],
)
def test_a_processor_has_bf16_if_it_has_instructions_for_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bf16(CPU) is expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert has_bf16(CPU) is False


@pytest.mark.parametrize("supported", [True, False])
def test_versions_of_torch_without_a_list_of_capabilities_are_asked_in_another_way(monkeypatch, supported):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    assert has_bf16(CPU) is supported


@pytest.mark.parametrize(("major", "expected"), [(7, False), (8, True), (9, True)])
def test_gpus_have_bf16_from_compute_capability_8_on(monkeypatch, major, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.version, "hip", None)
    assert has_bf16(torch.device("cuda")) is expected


def test_nothing_is_claimed_about_devices_that_torch_does_not_describe():
    assert has_bf16(torch.device("mps")) is None


@pytest.mark.parametrize(("dtype", "in_hardware"), [("bfloat16", False), ("bfloat16", True), ("float32", False)])
def test_a_prediction_in_emulated_bf16_warns(monkeypatch, recwarn, dtype, in_hardware):
    monkeypatch.setattr(predictor, "has_bf16", lambda _: in_hardware)
    load_predictor(str(ROOT / "examples/street_scenes"), device="cpu", dtype=dtype)
    warned = [str(each.message) for each in recwarn if each.category is InputWarning]
    is_emulated = dtype == "bfloat16" and not in_hardware
    assert any("cpu only emulates bfloat16" in each for each in warned) == is_emulated
