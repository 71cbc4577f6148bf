"""Checkpoints of the four networks of the released code are converted completely and give the same outputs."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from golden_numbers import fill, read, relative_error, uniform

from msctr_hf import MsctrForSemanticSegmentation
from msctr_hf.commands.train import command_line
from msctr_hf.data.specs import DATASETS
from msctr_hf.errors import UsageError
from msctr_hf.hub.original_checkpoints import convert_original_checkpoint, rename_original_state
from msctr_hf.models.decode_heads import resize
from msctr_hf.training.network import build_config

NETWORKS = {
    "hrnet_w48_cityscapes": "cityscapes/hrnet_w48",
    "deeplabv3_resnet50_cityscapes": "cityscapes/deeplabv3_resnet50",
    "ocrnet_hrnet_w48_ade20k": "ade20k/ocrnet_hrnet_w48",
    "upernet_swin_tiny_ade20k": "ade20k/upernet_swin_tiny",
}


def config_of(name, *argv):
    model_arguments, data_arguments, *_, settings = command_line().parse(["--config", name, *argv])
    return build_config(model_arguments, settings, DATASETS[data_arguments.dataset])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_network_computes_the_recorded_outputs(name):
    """Compute in float64, like the recorded outputs, which were rounded to float32 afterwards (6e-8).

    Float32 would depend on the processor and the number of threads: with these weights the object regions of OCRNet
    are a softmax over logits of 3,000, which turns rounding errors into differences of 1e-3.
    """
    facts, recorded = read(name)
    state = {key: fill(key, shape) for key, shape in facts["state_dict"].items()}
    model, names = convert_original_checkpoint(state, config_of(NETWORKS[name]))
    assert set(names) == {key for key in state if not key.endswith("relative_position_index")}

    model.eval().double()
    pixel_values = uniform("pixel_values", facts["input_shape"]).float().double()
    with torch.no_grad():
        output = model(pixel_values, output_projections=True, output_hidden_states=True)
        auxiliary_logits = output.auxiliary_logits
        if auxiliary_logits is None and "aux_logits" in recorded:
            auxiliary_logits = model.auxiliary_head(output.hidden_states[-1])
    every = (slice(None), slice(None, None, 5 if "ade20k" in name else 1), slice(None, None, 4), slice(None, None, 4))
    for key, logits in (("logits", output.logits), ("aux_logits", auxiliary_logits)):
        if key in recorded:
            upsampled = resize(logits, pixel_values.shape[-2:], model.config.align_corners)
            assert relative_error(upsampled[every], recorded[key]) < 1e-6, key
    for stage, projections in enumerate(output.projections):
        assert relative_error(projections[:, ::16], recorded[f"proj.{stage}"]) < 1e-6


@pytest.mark.parametrize("config", ["cityscapes/ocrnet_resnet101", "cityscapes/upernet_resnet101"])
def test_renamed_entries_cover_the_whole_network_where_nothing_is_recorded(config):
    """Names of OCRNet-ResNet and UPerNet-ResNet are combined from those of the recorded networks."""
    config = config_of(config)
    with torch.device("meta"):  # only the names are needed
        expected = set(MsctrForSemanticSegmentation(config).state_dict())
    head = "ocrnet_hrnet_w48_ade20k" if config.decode_head == "ocr" else "upernet_swin_tiny_ade20k"
    stages = range(len(config.projection_stages))
    released = {key for key in read(head)[0]["state_dict"] if not key.startswith(("backbone.", "projector_model."))}
    released |= {
        key
        for key in read(head)[0]["state_dict"]
        if any(key.startswith(f"projector_model.project{stage}.") for stage in stages)
    }
    blocks = {1: 3, 2: 4, 3: 23, 4: 3}
    for key in read("deeplabv3_resnet50_cityscapes")[0]["state_dict"]:
        if key.startswith("backbone."):
            released.add(key)
            if key.startswith("backbone.layer3.1."):
                released |= {key.replace("layer3.1.", f"layer3.{block}.") for block in range(1, blocks[3])}
    _, names = rename_original_state(dict.fromkeys(released, torch.zeros(1)), config)
    assert set(names.values()) == expected


def test_entries_left_over_on_either_side_are_refused():
    facts, _ = read("deeplabv3_resnet50_cityscapes")
    config = config_of("cityscapes/deeplabv3_resnet50")
    state = {key: fill(key, shape) for key, shape in facts["state_dict"].items()}
    with pytest.raises(ValueError, match=r"extra\.weight"):
        convert_original_checkpoint({**state, "extra.weight": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match="do not belong to a network with `decode_head='fcn'`"):
        convert_original_checkpoint(state, config_of("cityscapes/hrnet_w48"))
    with pytest.raises(ValueError, match="unknown|does not"):
        convert_original_checkpoint({**state, "backbone.layer9.weight": torch.zeros(1)}, config)
    lacking = {key: value for key, value in state.items() if key != "conv_out.bias"}
    with pytest.raises(ValueError, match=r"lacks entries.*decode_head\.classifier\.bias"):
        convert_original_checkpoint(lacking, config)
    misshapen = {**state, "conv_out.weight": torch.zeros(7, 256, 1, 1)}
    with pytest.raises(ValueError, match="other shapes"):
        convert_original_checkpoint(misshapen, config)


def test_decode_heads_that_the_released_code_lacks_are_refused():
    with pytest.raises(UsageError, match="the decode heads fcn, deeplabv3, ocr, upernet; .* `decode_head='linear'`"):
        rename_original_state({}, SimpleNamespace(decode_head="linear"))


def test_an_invalid_configuration_is_reported_in_one_sentence(run_script, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "chkpt.pt")
    options = ["--checkpoint", tmp_path / "chkpt.pt", "--output_dir", tmp_path / "converted"]
    network = ["--config", "cityscapes/deeplabv3_resnet50", "--projection_stages", "[4,1]"]
    code, _, error = run_script("convert_checkpoint.py", *options, *network)
    assert (code, "Traceback" in error) == (2, False)
    assert "--projection_stages" in error


def test_the_script_converts_a_checkpoint_of_the_released_code(run_script, tmp_path):
    facts, _ = read("deeplabv3_resnet50_cityscapes")
    state = {f"module.{key}": fill(key, shape) for key, shape in facts["state_dict"].items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "chkpt.pt")
    common = ["--checkpoint", tmp_path / "chkpt.pt", "--config", ROOT / "configs/cityscapes/deeplabv3_resnet50.yaml"]
    code, _, error = run_script("convert_checkpoint.py", *common)
    assert (code, "--output_dir" in error) == (2, True)
    code, out, _ = run_script("convert_checkpoint.py", *common, "--output_dir", tmp_path / "converted")
    assert code == 0
    assert "module.aspp.aspp2.weight -> decode_head.branches.1.0.weight" in out
    loaded = MsctrForSemanticSegmentation.from_pretrained(tmp_path / "converted")
    assert torch.equal(loaded.decode_head.classifier.weight, state["module.conv_out.weight"])
    assert json.loads((tmp_path / "converted/config.json").read_text())["id2label"]["0"] == "road"
    code, _, error = run_script("convert_checkpoint.py", *common, "--output_dir", tmp_path / "converted")
    assert (code, "not empty" in error) == (2, True)
    code, _, error = run_script(
        "convert_checkpoint.py", "--checkpoint", tmp_path / "none.pt", *common[2:], "--output_dir", tmp_path / "other"
    )
    assert (code, "does not exist" in error) == (2, True)
    assert not (tmp_path / "other").exists()
