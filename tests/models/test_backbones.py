import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import SWIN_TINY
from transformers import TimmBackboneConfig

from msctr_hf import MsctrForSemanticSegmentation
from msctr_hf.models.backbones import build_backbone

FOUR_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], **FOUR_STAGES}
PLAIN = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, **FOUR_STAGES}
BACKBONES = {
    "convnext": PYRAMID,
    "convnextv2": PYRAMID,
    "dinov3_convnext": PYRAMID,
    "pvt_v2": {**PYRAMID, "num_attention_heads": [1, 2, 2, 4]},
    "resnet": {**PYRAMID, "embedding_size": 8, "layer_type": "basic"},
    "swinv2": {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4, **FOUR_STAGES},
    "dinov2": {key: value for key, value in PLAIN.items() if key != "intermediate_size"} | {"image_size": 56},
    "dinov2_with_registers": {key: value for key, value in PLAIN.items() if key != "intermediate_size"},
    "dinov3_vit": PLAIN,
    "beit": {**PLAIN, "image_size": 64},
    "vitdet": {key: value for key, value in PLAIN.items() if key != "intermediate_size"} | {"image_size": 64},
}


@pytest.mark.parametrize("head", ["upernet", "fcn"])
@pytest.mark.parametrize("model_type", BACKBONES)
def test_backbones_of_transformers_work_from_their_configuration_alone(tiny_config, tmp_path, model_type, head):
    config = tiny_config(head, backbone={"model_type": model_type, **BACKBONES[model_type]})
    model = MsctrForSemanticSegmentation(config).train()
    labels = torch.randint(0, 5, (2, 75, 130))
    output = model(pixel_values=torch.randn(2, 3, 75, 130), labels=labels, output_hidden_states=True)
    heights = [stage.shape[2] for stage in output.hidden_states]
    assert 16 <= heights[0] <= 20  # for any patch size the finest map has a stride of about 4
    assert all(1.5 < fine / coarse < 2.3 for fine, coarse in zip(heights, heights[1:], strict=False))
    output.loss.backward()  # DDP expects a gradient for every parameter
    assert [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None] == []

    model.eval().save_pretrained(tmp_path)
    loaded = MsctrForSemanticSegmentation.from_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, loaded(pixel_values).logits)


def hrnet():
    return build_backbone(
        TimmBackboneConfig(backbone="hrnet_w18_small", out_indices=[1, 2, 3, 4], timm_kwargs={"feature_location": ""})
    ).eval()


def test_hrnet_returns_its_branches_and_keeps_the_parameter_names_of_timm():
    backbone = hrnet()
    assert list(backbone.channels) == [16, 32, 64, 128]
    reference = timm.create_model("hrnet_w18_small", features_only=True, feature_location="")
    assert list(backbone._backbone.state_dict()) == list(reference.state_dict())


@pytest.mark.parametrize("size", [(360, 480), (67, 97), (32, 33)])
def test_hrnet_accepts_sizes_that_are_not_a_multiple_of_32(size):
    with torch.no_grad():
        maps = hrnet()(torch.randn(1, 3, *size)).feature_maps
    for stride, stage in zip((4, 8, 16, 32), maps, strict=True):
        assert stage.shape[2:] == tuple(-(-side // stride) for side in size)


def test_hrnet_upsamples_bilinearly_where_it_fuses_branches():
    backbone = hrnet()
    network = timm.create_model("hrnet_w18_small", features_only=True, feature_location="").eval()
    network.load_state_dict(backbone._backbone.state_dict())
    for module in network.modules():
        if isinstance(module, torch.nn.Upsample):
            module.mode, module.align_corners = "bilinear", False
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for actual, expected in zip(backbone(pixel_values).feature_maps, network(pixel_values)[1:], strict=True):
            assert torch.equal(actual, expected)


def test_maps_of_channels_last_networks_are_returned_channels_first():
    config = TimmBackboneConfig(
        backbone="swin_tiny_patch4_window7_224", out_indices=[0, 1, 2, 3], timm_kwargs={"strict_img_size": False}
    )
    with torch.no_grad():
        maps = build_backbone(config)(torch.randn(1, 3, 64, 96)).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]


def test_a_dilated_resnet_computes_the_same_maps_as_in_torchvision():
    torchvision = pytest.importorskip("torchvision")
    reference = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    backbone = build_backbone(
        TimmBackboneConfig(backbone="resnet50.tv_in1k", out_indices=[1, 2, 3, 4], output_stride=8)
    ).eval()
    backbone._backbone.load_state_dict(
        {name: value for name, value in reference.state_dict().items() if not name.startswith("fc.")}
    )
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = backbone(x).feature_maps
        x = F.max_pool2d(F.relu(reference.bn1(reference.conv1(x))), 3, 2, 1)
        for stage, layer in zip(
            maps, (reference.layer1, reference.layer2, reference.layer3, reference.layer4), strict=True
        ):
            x = layer(x)
            torch.testing.assert_close(stage, x)


def buffers_that_are_not_saved(network):
    saved = set(network.state_dict())
    return {name: buffer for name, buffer in network.named_buffers() if name not in saved}


def load_where_new_memory_is_not_a_number(folder):
    torch.use_deterministic_algorithms(True)  # fills the memory of torch.empty with NaN or the largest integer
    try:
        return MsctrForSemanticSegmentation.from_pretrained(folder)
    finally:
        torch.use_deterministic_algorithms(False)


SMALL = {"embed_dim": 32, "num_heads": 2, "depth": 4}
WITH_BUFFERS_THAT_ARE_NOT_SAVED = {
    "vit_small_patch16_dinov3": {**SMALL, "dynamic_img_size": True},
    "eva02_tiny_patch14_224": {**SMALL, "img_size": 64, "patch_size": 16},
    "beit_base_patch16_224": {**SMALL, "img_size": 64},
    "swin_tiny_patch4_window7_224": {"embed_dim": 12, "depths": [1, 1, 2, 1], "strict_img_size": False},
    "swinv2_cr_tiny_224": {"embed_dim": 12, "depths": [1, 1, 2, 1], "img_size": 64},
    "levit_128s": {"embed_dim": [32, 48, 64], "num_heads": [2, 3, 4], "depth": [1, 1, 1], "img_size": 64},
    "resnetblur18": {"channels": [8, 16, 24, 32]},
}


@pytest.mark.parametrize("lacks_method", [False, True], ids=["timm as installed", "timm before 1.0.23"])
@pytest.mark.parametrize("name", WITH_BUFFERS_THAT_ARE_NOT_SAVED)
def test_buffers_of_timm_that_are_not_saved_are_loaded_bit_for_bit(
    tiny_config, tmp_path, monkeypatch, name, lacks_method
):
    backbone = {"model_type": "timm_backbone", "backbone": name, "out_indices": [-1]}
    backbone["timm_kwargs"] = WITH_BUFFERS_THAT_ARE_NOT_SAVED[name]
    config = tiny_config(
        "fcn", backbone, decode_stages=[1], projection_stages=[1], use_auxiliary_head=False, contrastive_mode="ce"
    )
    model = MsctrForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    if lacks_method:
        for kind in {kind for module in model.backbone._backbone.modules() for kind in type(module).__mro__}:
            if "init_non_persistent_buffers" in vars(kind):
                monkeypatch.delattr(kind, "init_non_persistent_buffers")

    random_state = torch.get_rng_state()
    loaded = load_where_new_memory_is_not_a_number(tmp_path).eval()
    assert torch.equal(torch.get_rng_state(), random_state)
    network = timm.create_model(name, features_only=True, out_indices=[-1], **backbone["timm_kwargs"])
    expected = buffers_that_are_not_saved(network)
    actual = buffers_that_are_not_saved(loaded.backbone._backbone)
    assert expected
    assert list(actual) == list(expected)
    assert [key for key in expected if not torch.equal(actual[key], expected[key])] == []
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        # The last digits of a matrix product depend on where in memory its factors begin.
        torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "backbone",
    [
        SWIN_TINY,
        {"model_type": "swinv2", **BACKBONES["swinv2"]},
        {"model_type": "dinov3_vit", **PLAIN},
    ],
    ids=lambda backbone: backbone["model_type"],
)
def test_buffers_of_transformers_that_are_not_saved_are_loaded_bit_for_bit(tiny_config, tmp_path, backbone):
    config = tiny_config(backbone=backbone)
    model = MsctrForSemanticSegmentation(config)
    model.save_pretrained(tmp_path)
    expected = buffers_that_are_not_saved(model)
    actual = buffers_that_are_not_saved(load_where_new_memory_is_not_a_number(tmp_path))
    assert expected
    assert [key for key in expected if not torch.equal(actual[key], expected[key])] == []


def test_a_network_of_timm_that_computes_its_widths_with_tensors_is_loaded(tiny_config, tmp_path, monkeypatch):
    backbone = {"model_type": "timm_backbone", "backbone": "regnetx_002", "out_indices": [1, 2, 3, 4]}
    model = MsctrForSemanticSegmentation(tiny_config(backbone=backbone)).eval()
    model.save_pretrained(tmp_path)
    generate = timm.models.regnet.generate_regnet

    def with_tensors(*args, **kwargs):  # as timm 1.0.29 does, on the device "meta" while weights are loaded
        widths, stages, groups = generate(*args, **kwargs)
        return torch.tensor(widths).tolist(), stages, groups

    monkeypatch.setattr(timm.models.regnet, "generate_regnet", with_tensors)
    loaded = MsctrForSemanticSegmentation.from_pretrained(tmp_path).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)
