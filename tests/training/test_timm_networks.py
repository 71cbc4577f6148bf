import json

import pytest
import timm
import torch
from transformers import TimmBackboneConfig

from msctr_hf.data.specs import DATASETS
from msctr_hf.errors import UsageError
from msctr_hf.models.backbones import build_backbone
from msctr_hf.training.network import build_config
from msctr_hf.training.settings import ModelSettings


def config_of(name, **settings):
    return build_config(ModelSettings(backbone=name, **settings), {}, DATASETS["camvid"]).backbone_config


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("swin_tiny_patch4_window7_224", 8),
        ("deit3_small_patch16_224", 8),
        ("eva02_tiny_patch14_224", 8),
        ("test_vit", 8),
        ("resnet18", 7),
    ],
)
def test_an_output_stride_that_a_network_does_not_have_is_refused(name, stride):
    with pytest.raises(UsageError, match=rf"`output_stride={stride}`: {name} cannot be dilated to this stride; leave"):
        config_of(name, output_stride=stride)


def test_an_output_stride_is_the_stride_of_the_coarsest_map():
    with torch.no_grad():
        maps = build_backbone(config_of("resnet10t", output_stride=8))(torch.randn(1, 3, 64, 96)).feature_maps
    assert [tuple(stage.shape[2:]) for stage in maps] == [(16, 24), (8, 12), (8, 12), (8, 12)]


@pytest.mark.parametrize("name", ["efficientformerv2_s0", pytest.param("hiera_tiny_224", marks=pytest.mark.slow)])
def test_networks_for_one_image_size_are_refused_in_one_sentence(name):
    with pytest.raises(UsageError, match=rf"\A{name} accepts images of only one size in timm, 224 x 224 pixels; .*\Z"):
        config_of(name)


def test_settings_with_which_a_network_takes_one_image_size_are_refused():
    settings = '{"model_type": "timm_backbone", "backbone": "%s", "out_indices": [0, 1]}'
    with pytest.raises(UsageError, match=r"\A`backbone_config`: gcvit_xxtiny accepts images of only one size with .*"):
        config_of(None, backbone_config=settings % "gcvit_xxtiny")
    assert config_of(None, backbone_config=settings % "test_vit").out_indices == [0, 1]  # any multiple of 16


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"backbone": "resnet1800"}, r"timm cannot build resnet1800 with these settings \(Unknown model"),
        ({"out_indices": [1, 9]}, r"timm cannot build test_resnet with these settings \(list index out of range"),
        ({"size_multiple": -32}, r"\(`size_multiple` must be a whole number of pixels, at least 1, got -32"),
        ({"size_multiple": "32"}, r"\(`size_multiple` must be a whole number of pixels, at least 1, got '32'"),
    ],
)
def test_settings_with_which_timm_cannot_build_a_network_are_refused_with_the_reason(settings, reason):
    settings = {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [0, 1], **settings}
    with pytest.raises(UsageError, match=rf"\A`backbone_config`: .*{reason}.*\)\.\Z"):
        config_of(None, backbone_config=json.dumps(settings))


@pytest.mark.parametrize(
    "name", ["convmixer_768_32", "gmlp_ti16_224", pytest.param("crossvit_tiny_240", marks=pytest.mark.slow)]
)
def test_networks_without_maps_at_usual_strides_are_refused_by_name(name):
    with pytest.raises(UsageError, match=name):
        config_of(name)


@pytest.mark.parametrize(
    ("name", "multiple"),
    [pytest.param("maxvit_tiny_tf_224", 224, marks=pytest.mark.slow), ("dla46x_c", 32), ("test_resnet", None)],
)
def test_networks_for_multiples_of_a_size_get_padded_images(name, multiple):
    config = config_of(name)
    assert getattr(config, "size_multiple", None) == multiple
    if multiple != 32:
        return
    backbone = build_backbone(config).eval()
    network = timm.create_model(name, features_only=True, out_indices=config.out_indices).eval()
    network.load_state_dict(backbone._backbone.state_dict())
    pixel_values = torch.randn(1, 3, 75, 130)
    padded = torch.zeros(1, 3, 96, 160)
    padded[:, :, :75, :130] = pixel_values
    with torch.no_grad():
        maps, expected = backbone(pixel_values).feature_maps, network(padded)
    assert [tuple(stage.shape[2:]) for stage in maps] == [(19, 33), (10, 17), (5, 9), (3, 5)]
    for actual, full in zip(maps, expected, strict=True):
        assert torch.equal(actual, full[..., : actual.shape[2], : actual.shape[3]])


def test_images_are_padded_no_further_than_a_network_needs():
    config = config_of("swin_tiny_patch4_window7_224")
    assert config.size_multiple == 4  # of its patches; it pads windows itself, where 12 more rows would change them
    backbone = build_backbone(config).eval()
    pixel_values = torch.randn(1, 3, 100, 132)
    with torch.no_grad():
        maps, expected = backbone(pixel_values).feature_maps, backbone._backbone(pixel_values)
    for actual, stage in zip(maps, expected, strict=True):
        assert torch.equal(actual, stage.permute(0, 3, 1, 2))


@pytest.mark.slow
def test_stages_are_counted_as_timm_counts_them():
    assert config_of("tresnet_m").out_indices == [1, 2, 3, 4]  # timm leaves out a map 0


def test_a_network_that_timm_cannot_build_is_refused_with_its_reason(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("needs a package\nthat is not here")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UsageError, match=r"timm has no feature maps of resnet18 \(needs a package\); use another"):
        config_of("resnet18")


def test_trying_a_network_changes_no_random_numbers_after_it():
    torch.manual_seed(0)
    timm.create_model("test_convnext", features_only=True)  # as before networks were tried
    expected = torch.rand(3)
    for _ in range(2):  # the second time its settings are known
        torch.manual_seed(0)
        config_of("test_convnext")
        assert torch.equal(torch.rand(3), expected)


def test_a_padded_network_is_saved_with_its_multiple():
    config = TimmBackboneConfig(backbone="resnet10t", out_indices=[1, 2], size_multiple=32)
    assert TimmBackboneConfig.from_dict(config.to_dict()).size_multiple == 32
