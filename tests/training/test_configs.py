"""The network of every shipped recipe is built at full size and trained for one step on a small input."""

import gc

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from conftest import ROOT

from msctr_hf.commands.train import command_line
from msctr_hf.data.specs import DATASETS
from msctr_hf.training.network import build_image_processor, build_network, image_processor_options
from msctr_hf.training.optimization import build_optimizer

CONFIGS = sorted(path for path in (ROOT / "configs").glob("**/*.yaml") if path.parent.name != "accelerate")
PUBLISHED = {
    "cityscapes": (19, "hrnet_w48 hrnet_w48_40k_batch8 hrnet_w18 deeplabv3_resnet50 deeplabv3_resnet101"
                       " ocrnet_hrnet_w48 ocrnet_resnet101 upernet_swin_tiny upernet_resnet101"),
    "ade20k": (150, "upernet_swin_tiny upernet_swin_small upernet_swin_base upernet_swin_large ocrnet_hrnet_w48"
                    " hrnet_w48 deeplabv3_resnet101"),
    "pascal_context": (59, "hrnet_w48 ocrnet_hrnet_w48 deeplabv3_resnet101 upernet_resnet101"),
    "cadis": (None, "ocrnet_resnet50_task1 ocrnet_resnet50_task2 ocrnet_resnet50_task3"),
    "camvid": (11, "upernet_efficientnet_lite0 fcn_efficientnet_lite0 hrnet_w48 ocrnet_hrnet_w48 deeplabv3_resnet101"),
}  # fmt: skip


def name(path):
    return path.relative_to(ROOT / "configs").with_suffix("").as_posix()


def parse(path, *argv):
    return command_line().parse(["--config", str(path), "--backbone_weights", "none", *argv])


def test_all_published_networks_have_a_recipe():
    expected = {f"{dataset}/{network}" for dataset, (_, networks) in PUBLISHED.items() for network in networks.split()}
    assert {name(path) for path in CONFIGS} == expected | {"quickstart", "quickstart_few_labels", "example"}


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_recipe_builds_its_network_and_trains_a_step(path):
    model_arguments, data_arguments, arguments, _, settings = parse(path)
    spec = DATASETS[data_arguments.dataset]
    model = build_network(model_arguments, settings, spec).train()
    assert model.config.num_labels == len(spec.classes)
    assert model.config.contrastive_mode == "ms_cs"
    optimizer = build_optimizer(model, arguments)
    model.contrastive_weight.set_step(0, 1)  # as the training loop does: a recipe may have a schedule
    labels = torch.arange(2).repeat_interleave(2)[None, :, None].repeat_interleave(16, 1).expand(2, 64, 64)
    loss = model(torch.randn(2, 3, 64, 64), labels=labels.contiguous()).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    optimizer.step()
    assert (
        build_image_processor(model, **image_processor_options(data_arguments)).align_corners
        == model.config.align_corners
    )
    del model, optimizer, loss
    gc.collect()


@pytest.mark.parametrize("mode", ["ce", "ms"])
def test_an_ablation_needs_one_flag(mode):
    *_, settings = parse(ROOT / "configs/cityscapes/hrnet_w48.yaml", "--contrastive_mode", mode)
    assert settings["contrastive_mode"] == mode


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_the_number_of_processes_in_the_header_gives_the_global_batch_size(path):
    _, _, arguments, *_ = parse(path)
    num_processes = 1 if "(one process)" in path.read_text() else 4
    assert arguments.global_batch_size in (None, num_processes * arguments.batch_size)


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_the_header_of_a_recipe_has_its_command(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"scripts/train.py --config {path.relative_to(ROOT).as_posix()}" in line for line in header)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_accepts_the_launcher_configurations(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    launcher = launch_command_parser().parse_args(["--config_file", str(path), "scripts/train.py"])
    arguments, _, _ = _validate_launch_command(launcher)
    assert arguments.num_processes == config.num_processes == 4
    kind = {"ddp": arguments.multi_gpu, "fsdp2": arguments.use_fsdp, "deepspeed_zero2": arguments.use_deepspeed}
    assert kind[path.stem]
