"""Adapting a network to a CPU changes its speed but not its results."""

import copy
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from conftest import ROOT
from torch import nn

from msctr_hf.errors import UsageError
from msctr_hf.training.devices import (
    FUSED_DEVICES,
    depthwise_in_float32,
    let_deepspeed_clip,
    refuse_weights_split_in_validation,
)
from msctr_hf.training.optimization import build_optimizer
from msctr_hf.training.settings import TrainingSettings


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 8, 3, stride=2, groups=8),
        nn.Conv2d(8, 8, 3, groups=8),
    )


def test_only_large_and_strided_depthwise_convolutions_are_computed_in_float32(monkeypatch):
    computed = []
    convolve = nn.functional.conv2d

    def note(features, weight, *rest):
        computed.append(torch.float32 if not torch.is_autocast_enabled("cpu") else torch.bfloat16)
        return convolve(features, weight, *rest)

    monkeypatch.setattr(nn.functional, "conv2d", note)
    model = network()
    depthwise_in_float32(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(2, 3, 16, 16))
    assert computed == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    assert output.dtype == torch.bfloat16


def test_a_deep_copy_of_an_adapted_network_computes_with_its_own_weights():
    model = network()
    depthwise_in_float32(model)
    images = torch.randn(2, 3, 16, 16)
    average = copy.deepcopy(model)
    expected = model(images)
    for parameter in model.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(average(images), expected)
    assert model(images).abs().max() == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimizers_are_fused_only_where_they_can_skip_a_step_on_the_device(optimizer):
    assert "mps" not in FUSED_DEVICES  # not before all versions of PyTorch that we accept obey `found_inf` there
    for device in FUSED_DEVICES & {"cpu", *(["cuda"] if torch.cuda.is_available() else [])}:
        model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)}).to(device)
        before = copy.deepcopy(model.state_dict())
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
        fused = build_optimizer(model, TrainingSettings(output_dir="", optimizer=optimizer, max_steps=1))
        fused.grad_scale, fused.found_inf = None, torch.ones((), device=device)
        fused.step()
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("plugin", "advice"), [
    (lambda: FullyShardedDataParallelPlugin(fsdp_version=1), "fsdp_version: 2"),
    (lambda: FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="SIZE_BASED_WRAP"), "NO_WRAP"),
    (lambda: FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP"), "NO_WRAP"),
    (lambda: DeepSpeedPlugin(zero_stage=3), "zero_stage: 2"),
    (lambda: FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="NO_WRAP"), None),
    (lambda: DeepSpeedPlugin(zero_stage=2), None),
])  # fmt: skip
def test_configurations_that_split_weights_during_a_validation_are_refused(plugin, advice):
    given = plugin()
    kind = DistributedType.DEEPSPEED if isinstance(given, DeepSpeedPlugin) else DistributedType.FSDP
    launched = SimpleNamespace(distributed_type=kind, deepspeed_plugin=given, state=SimpleNamespace(fsdp_plugin=given))
    if advice is None:
        refuse_weights_split_in_validation(launched)
    else:
        with pytest.raises(UsageError, match=f"use `.*{advice}.* configs/accelerate/.*yaml"):
            refuse_weights_split_in_validation(launched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_depthwise_convolutions_in_float32_do_not_change_gradients(dtype):
    model, plain = network(), network()
    plain.load_state_dict(model.state_dict())
    depthwise_in_float32(model)
    images = torch.randn(2, 3, 16, 16)
    for each in (model, plain):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            each(images).float().square().sum().backward()
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
    for (name, parameter), reference in zip(model.named_parameters(), plain.parameters(), strict=True):
        scale = reference.grad.abs().max()
        torch.testing.assert_close(parameter.grad / scale, reference.grad / scale, msg=name, **tolerance)


FREED = """
import psutil, torch
from msctr_hf.training.devices import keep_freed_memory
keep_freed_memory()
def resident():
    return psutil.Process().memory_info().rss / 2**20
before = resident()
block = torch.ones(2**26)
held = resident() - before
del block
print(held, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="concerns glibc only")
@pytest.mark.parametrize("variables, is_kept", [({}, True), ({"MALLOC_MMAP_MAX_": "65536"}, False)])
def test_freed_memory_is_kept_unless_the_user_has_configured_the_allocator(variables, is_kept):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    run = subprocess.run(
        [sys.executable, "-c", FREED], env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    held, left = map(float, run.stdout.split())
    assert held > 250
    assert (left > 250) == is_kept


def configured_as_by(path):
    """Return what Accelerate makes of the section about DeepSpeed of a launcher configuration."""
    section = yaml.safe_load(path.read_text())["deepspeed_config"]
    return SimpleNamespace(deepspeed_plugin=DeepSpeedPlugin(**section))


@pytest.mark.parametrize(("max_grad_norm", "clipped_to"), [(0.25, 0.25), (None, 0.0)])
def test_deepspeed_clips_to_the_setting_and_not_to_the_default_of_accelerate(max_grad_norm, clipped_to):
    accelerator = configured_as_by(ROOT / "configs/accelerate/deepspeed_zero2.yaml")
    let_deepspeed_clip(accelerator, max_grad_norm)
    plugin = accelerator.deepspeed_plugin
    # as `Accelerator.prepare` fills in what is still open
    plugin.fill_match("gradient_clipping", must_match=False, gradient_clipping=1.0)
    assert plugin.deepspeed_config["gradient_clipping"] == clipped_to


@pytest.mark.parametrize(("max_grad_norm", "said"), [(0.25, "is 0.25"), (None, "is not set")])
def test_another_limit_in_the_configuration_of_deepspeed_is_refused(max_grad_norm, said):
    accelerator = SimpleNamespace(deepspeed_plugin=DeepSpeedPlugin(gradient_clipping=1.0))
    with pytest.raises(UsageError, match=f"`max_grad_norm` {said}, but .* says gradient_clipping 1.0; leave"):
        let_deepspeed_clip(accelerator, max_grad_norm)
    let_deepspeed_clip(accelerator, 1.0)
