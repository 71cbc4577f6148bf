import copy
import json
from dataclasses import replace

import pytest
import torch
from conftest import SWIN_TINY, TIMM_TINY
from torch import nn
from transformers import (
    Dinov2Config,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation
from msctr_hf.data.channels import Channels
from msctr_hf.data.loading import replace_channels
from msctr_hf.data.specs import DATASETS
from msctr_hf.errors import UsageError
from msctr_hf.training.network import (
    build_config,
    build_image_processor,
    build_network,
    freeze,
    parameters_without_gradient,
    refuse_single_values,
    settings_without_effect,
    synchronize_batch_norms,
)
from msctr_hf.training.settings import ModelSettings

STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
SWIN = {"image_size": 56, "embed_dim": 12, "depths": [1] * 4, "num_heads": [1, 2, 2, 4], "window_size": 4, **STAGES}
VIT = {"image_size": 56, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, **STAGES}
BACKBONES = {
    "timm resnet": TIMM_TINY,
    "timm vit": {
        "model_type": "timm_backbone", "backbone": "test_vit", "out_indices": [0, 1, 2, 3],
        "timm_kwargs": {"dynamic_img_size": True, "dynamic_img_pad": True},
    },
    "dinov2": {"model_type": "dinov2", "patch_size": 14, "reshape_hidden_states": True, **VIT},
    **{kind: {"model_type": kind, **SWIN} for kind in ("swin", "maskformer-swin")},
    **{
        kind: {"model_type": kind, "hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, **STAGES}
        for kind in ("convnext", "dinov3_convnext")
    },
}  # fmt: skip
SEGFORMER_TINY = {
    "hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8,
}  # fmt: skip


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0"])
def test_synchronized_norms_change_neither_predictions_nor_names(tiny_config, backbone):
    model = MsctrForSemanticSegmentation(tiny_config(backbone={**TIMM_TINY, "backbone": backbone})).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, names = model(pixel_values).logits, list(model.state_dict())
        converted = synchronize_batch_norms(model)
        assert not any(type(module) is nn.BatchNorm2d for module in converted.modules())
        assert list(converted.state_dict()) == names
        torch.testing.assert_close(converted(pixel_values).logits, expected)


def test_images_are_normalized_as_in_the_pretraining_of_the_backbone():
    spec = DATASETS["camvid"]
    for backbone, mean in (("tf_efficientnet_lite0", 0.5), ("resnet18", 0.485)):
        model = build_network(ModelSettings(backbone=backbone, backbone_weights="none"), {"hidden_size": 8}, spec)
        assert build_image_processor(model).image_mean[0] == mean


def test_the_configuration_has_the_classes_and_colors_of_the_data_set():
    config = build_config(ModelSettings(), {"contrastive_temperature": 0.2}, DATASETS["cityscapes"])
    assert config.id2label[18] == "bicycle"
    assert config.label2id["road"] == 0
    assert config.palette[0] == [128, 64, 128]
    assert config.contrastive_temperature == 0.2


def test_a_saved_network_is_fitted_to_the_classes_of_a_data_set_and_dropped_class_weights_are_reported(
    tiny_config, tmp_path, caplog
):
    camvid = DATASETS["camvid"]
    weights = [float(label) for label in range(1, 6)]
    MsctrForSemanticSegmentation(tiny_config(class_weights=weights, palette=[[1, 2, 3]] * 5)).save_pretrained(tmp_path)
    config = build_network(ModelSettings(model_name_or_path=str(tmp_path)), {}, camvid).config
    assert (config.class_weights, config.id2label) == (None, camvid.id2label)
    assert config.palette == [list(color) for color in camvid.palette]
    assert config.label2id == {name: label for label, name in camvid.id2label.items()}
    assert [each.message for each in caplog.records if "class_weights" in each.message] == [
        "Dropped `class_weights`, which belonged to other classes."
    ]


@pytest.mark.parametrize(
    ("name", "stages"),
    [("hrnet_w18_small.ms_in1k", [1, 2, 3, 4]), ("resnet18", [1, 2, 3, 4]), ("convnext_atto", [0, 1, 2, 3])],
)
def test_maps_of_timm_backbones_are_taken_at_strides_4_to_32(name, stages):
    config = build_config(ModelSettings(backbone=name), {}, DATASETS["camvid"])
    assert config.backbone_config.out_indices == stages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet1"}, "timm has no backbone"),
        ({"backbone_config": "{model_type"}, "not valid JSON"),
        ({"backbone": "someone/swin"}, "backbone_config"),
        ({"backbone": "hrnet_w18_small", "output_stride": 8}, "cannot be dilated"),
    ],
)
def test_backbones_that_cannot_be_built_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_config(ModelSettings(**arguments), {}, DATASETS["camvid"])


@pytest.mark.parametrize(
    ("name", "indices"),
    [
        ("vit_tiny_patch16_224", [2, 5, 8, 11]),
        ("convnext_atto", [0, 1, 2, 3]),
        ("mobilenetv3_small_100", [1, 2, 3, 4]),
        ("pvt_v2_b0", [0, 1, 2, 3]),
        ("vit_small_patch14_dinov2", [2, 5, 8, 11]),
        ("vit_small_patch16_dinov3", [2, 5, 8, 11]),
    ],
)
def test_a_network_is_built_from_the_name_of_a_timm_backbone(name, indices):
    arguments = ModelSettings(backbone=name, backbone_weights="none")
    model = build_network(arguments, {"hidden_size": 8, "projection_dim": 8}, DATASETS["synthetic_scenes"])
    assert list(model.config.backbone_config.out_indices) == indices
    with torch.no_grad():
        logits = model.eval()(torch.randn(1, 3, 75, 130)).logits
    assert 16 <= logits.shape[2] <= 24  # patches of 14 pixels pad the height to 84


def test_plain_vision_transformers_of_the_hub_give_four_feature_maps(tmp_path):
    Dinov2Config(hidden_size=32, num_hidden_layers=12, num_attention_heads=2, image_size=56).save_pretrained(tmp_path)
    arguments = ModelSettings(backbone=str(tmp_path), backbone_weights="none")
    model = build_network(arguments, {"hidden_size": 8, "projection_dim": 8}, DATASETS["synthetic_scenes"])
    assert model.config.backbone_config.out_features == ["stage3", "stage6", "stage9", "stage12"]
    assert model.feature_pyramid is not None


def test_a_timm_network_for_one_image_size_is_refused():
    arguments = ModelSettings(backbone="beit_base_patch16_224", backbone_weights="none")
    with pytest.raises(ValueError, match="accepts images of only one size in timm"):
        build_network(arguments, {}, DATASETS["synthetic_scenes"])


def test_a_single_value_per_channel_is_refused_exactly_where_torch_refuses_it():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    for prepare in (lambda model: model.train(), lambda model: model.eval(), freeze):
        prepare(pooled)
        for batch_size in (1, 2):
            images = torch.randn(batch_size, 3, 4, 4)
            try:
                pooled(images)
                refused_by_torch = False
            except ValueError:
                refused_by_torch = True
            checked = copy.deepcopy(pooled)
            refuse_single_values(checked, "batch_size")
            if refused_by_torch:
                with pytest.raises(UsageError, match="a single value per channel; use `batch_size` 2 or more"):
                    checked(images)
            else:
                torch.testing.assert_close(checked(images), pooled(images))
        assert refused_by_torch is False


@pytest.mark.parametrize("head", [
    {"decode_head": "ocr"}, {"decode_head": "upernet"},
    {"decode_head": "upernet", "projection_source": "backbone", "projection_stages": [1, 4]},
    {"decode_head": "deeplabv3"}, {"decode_head": "deeplabv3", "contrastive_mode": "ce", "auxiliary_stage": 2},
    {"decode_head": "fcn", "decode_stages": [1, 2], "contrastive_mode": "ce", "use_auxiliary_head": False},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("backbone", BACKBONES)
def test_parameters_without_a_gradient_are_found_for_every_kind_of_backbone_and_head(backbone, head):
    sizes = {"num_labels": 5, "hidden_size": 8, "auxiliary_hidden_size": 8, "projection_dim": 8}
    config = MsctrConfig(backbone_config=BACKBONES[backbone], **sizes, **head)
    network = MsctrForSemanticSegmentation(config).train()
    before = copy.deepcopy(network.state_dict())
    found = parameters_without_gradient(network, (56, 56))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    labels = torch.arange(4).repeat_interleave(14)[None, :, None].expand(2, 56, 56).contiguous()
    network(torch.randn(2, 3, 56, 56), labels).loss.backward()
    assert found == [name for name, each in network.named_parameters() if each.requires_grad and each.grad is None]
    if head == {"decode_head": "upernet"} and backbone != "maskformer-swin":
        assert found == []
    if backbone in ("swin", "convnext", "dinov2") and head["decode_head"] == "deeplabv3":
        assert found


def test_the_same_classes_in_another_order_keep_their_weights(tiny_config, tmp_path):
    network = MsctrForSemanticSegmentation(tiny_config("ocr", num_labels=3, class_weights=[1.0, 2.0, 3.0]))
    network.config.id2label = {0: "Sky", 1: "road", 2: "car"}
    network.eval().save_pretrained(tmp_path)
    spec = replace(DATASETS["camvid"], classes=["car", "sky", "road"], palette=[(0, 0, 0)] * 3, groups={})
    started = build_network(ModelSettings(model_name_or_path=str(tmp_path)), {}, spec).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits, expected = (each(pixel_values=pixel_values).logits for each in (started, network))
    torch.testing.assert_close(logits, expected[:, [2, 0, 1]])
    assert started.config.class_weights == [3.0, 1.0, 2.0]
    assert list(started.config.id2label.values()) == ["car", "sky", "road"]


def test_an_adapted_model_of_the_same_classes_in_another_order_keeps_their_weights(tmp_path):
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    names = {0: "Sky", 1: "road", 2: "car"}
    network = SegformerForSemanticSegmentation(SegformerConfig(id2label=names, decoder_hidden_size=3, **sizes)).eval()
    network.save_pretrained(tmp_path)
    spec = replace(DATASETS["camvid"], classes=["car", "sky", "road"], palette=[(0, 0, 0)] * 3, groups={})
    started = build_network(ModelSettings(model_name_or_path=str(tmp_path), contrastive_adapter=True), {}, spec).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits, expected = (each(pixel_values=pixel_values).logits for each in (started, network))
    torch.testing.assert_close(logits, expected[:, [2, 0, 1]])


def test_classes_keep_their_weights_whatever_the_order_in_config_json(tiny_config, tmp_path):
    names = {label: f"class {label}" for label in range(11)}
    spec = replace(DATASETS["camvid"], classes=list(names.values()), palette=[(0, 0, 0)] * 11, groups={})
    saved = {
        "ours": MsctrForSemanticSegmentation(tiny_config(num_labels=11)),
        "segformer": SegformerForSemanticSegmentation(SegformerConfig(id2label=names, **SEGFORMER_TINY)),
    }
    for kind, network in saved.items():
        network.eval().save_pretrained(tmp_path / kind)
        path = tmp_path / kind / "config.json"
        config = json.loads(path.read_text())
        config["id2label"] = dict(sorted(config["id2label"].items()))  # "0", "1", "10", "2", ...
        path.write_text(json.dumps(config))
        arguments = ModelSettings(model_name_or_path=str(tmp_path / kind), contrastive_adapter=kind != "ours")
        started = build_network(arguments, {}, spec).eval()
        pixel_values = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            logits, expected = (each(pixel_values=pixel_values).logits for each in (started, network))
        torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("mode", ["ce", "ms_cs"])
@pytest.mark.parametrize("kind", ["ours", "segformer", "upernet"])
def test_a_saved_model_that_ignored_the_background_learns_it_and_ignores_255(tiny_config, tmp_path, kind, mode):
    names = dict(enumerate(["background", "road", "car"]))
    network = {
        "ours": lambda: MsctrForSemanticSegmentation(tiny_config(num_labels=3, semantic_loss_ignore_index=0)),
        "segformer": lambda: SegformerForSemanticSegmentation(
            SegformerConfig(id2label=names, semantic_loss_ignore_index=0, **SEGFORMER_TINY)
        ),
        "upernet": lambda: UperNetForSemanticSegmentation(
            UperNetConfig(backbone_config=SWIN_TINY, hidden_size=8, auxiliary_channels=8, auxiliary_in_channels=48,
                          id2label=names, loss_ignore_index=0)
        ),
    }[kind]()  # fmt: skip
    network.save_pretrained(tmp_path)
    spec = replace(DATASETS["camvid"], classes=list(names.values()), palette=[(0, 0, 0)] * 3, groups={})
    arguments = ModelSettings(model_name_or_path=str(tmp_path), contrastive_adapter=kind != "ours")
    started = build_network(arguments, {"contrastive_mode": mode, "projection_dim": 8}, spec)
    background = torch.zeros((2, 64, 64), dtype=torch.long)
    pixel_values = torch.randn(2, 3, 64, 64)
    assert started(pixel_values=pixel_values, labels=background).loss > 0
    labels = torch.arange(3).repeat_interleave(22)[None, :64, None].expand(2, 64, 64).clone()
    labels[:, :4] = 255
    assert started(pixel_values=pixel_values, labels=labels).loss.isfinite()
    started.save_pretrained(tmp_path / "trained")
    assert 255 in json.loads((tmp_path / "trained/config.json").read_text()).values()


@pytest.mark.parametrize(("backbone", "count"), [("resnet18", 1), ("vit_tiny_patch16_224", 4)])
def test_the_backbone_reads_the_channels_of_the_data_set(backbone, count, tmp_path):
    spec = replace_channels(DATASETS["camvid"], Channels(count))
    arguments = ModelSettings(backbone=backbone, backbone_weights="none")
    model = build_network(arguments, {"hidden_size": 8}, spec)
    assert model.config.backbone_config.num_channels == model.num_channels == count
    model.save_pretrained(tmp_path)
    loaded = MsctrForSemanticSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        assert loaded.eval()(torch.randn(1, count, 64, 96)).logits.shape[1] == 11


def test_a_network_of_other_channels_than_the_images_is_refused_with_both_numbers(tiny_config, tmp_path):
    MsctrForSemanticSegmentation(tiny_config(backbone={**TIMM_TINY, "num_channels": 4})).save_pretrained(tmp_path)
    arguments = ModelSettings(model_name_or_path=str(tmp_path))
    for channels, said in ((None, "is 3 by default"), (Channels(7), "is 7")):
        spec = replace_channels(DATASETS["camvid"], channels)
        with pytest.raises(
            UsageError, match=f"`num_channels` {said}, but the network of .* reads images of 4 channels"
        ):
            build_network(arguments, {}, spec)
    assert build_network(arguments, {}, replace_channels(DATASETS["camvid"], Channels(4))).num_channels == 4


def test_a_sentence_names_the_settings_of_a_backbone_that_a_saved_network_does_not_use():
    assert settings_without_effect(ModelSettings(backbone="resnet50", output_stride=8)) == []
    assert settings_without_effect(ModelSettings(model_name_or_path="runs/mine", freeze_backbone=True)) == []
    arguments = ModelSettings(model_name_or_path="runs/mine", backbone="resnet50", output_stride=8)
    assert settings_without_effect(arguments) == [
        "not used, since the network is that of runs/mine: backbone resnet50, output_stride 8"
    ]
