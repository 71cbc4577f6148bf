import re

import pytest
import timm
import torch
from conftest import SMALL_RESNET, SWIN_TINY, TIMM_TINY
from safetensors.torch import save_file
from transformers import SwinConfig, SwinForImageClassification

from msctr_hf import MsctrForSemanticSegmentation, load_backbone_weights


def perturbed_state(network):
    """Change every value of a network, statistics of normalization layers included, and return its state dict."""
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.mul_(0.9).add_(0.01 * torch.rand_like(value))
    return network.state_dict()


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_classifier_file_of_timm_fills_the_backbone_including_its_statistics(tiny_config, tmp_path, name, suffix):
    state = perturbed_state(timm.create_model(name))
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    indices = [0, 1, 2, 3] if name == "convnext_atto" else [1, 2, 3, 4]
    model = MsctrForSemanticSegmentation(tiny_config(backbone={**TIMM_TINY, "backbone": name, "out_indices": indices}))
    load_backbone_weights(model, str(path))
    reference = timm.create_model(name)
    reference.load_state_dict(state)
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = timm.create_model(
            name, features_only=True, pretrained=True, out_indices=indices, pretrained_cfg_overlay={"file": str(path)}
        ).eval()(pixel_values)
        for actual, target in zip(model.eval().backbone(pixel_values).feature_maps, expected, strict=True):
            assert torch.equal(actual, target)


def test_weights_of_a_plain_vision_transformer_of_timm_fill_the_backbone(tiny_config, tmp_path):
    state = perturbed_state(timm.create_model("vit_tiny_patch16_224"))
    save_file(state, tmp_path / "weights.safetensors")
    backbone = {"model_type": "timm_backbone", "backbone": "vit_tiny_patch16_224", "out_indices": [2, 5, 8, 11]}
    model = MsctrForSemanticSegmentation(tiny_config(backbone=backbone))
    load_backbone_weights(model, str(tmp_path / "weights.safetensors"))
    reference = timm.create_model("vit_tiny_patch16_224").eval()
    reference.load_state_dict(state)
    pixel_values = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = reference.forward_intermediates(pixel_values, indices=[2, 5, 8, 11], intermediates_only=True)
        for actual, target in zip(model.eval().backbone(pixel_values).feature_maps, expected, strict=True):
            torch.testing.assert_close(actual, target)


def test_loaded_weights_are_saved_with_the_network(tiny_config, tmp_path):
    torch.save(perturbed_state(timm.create_model(SMALL_RESNET)), tmp_path / "weights.pth")
    model = MsctrForSemanticSegmentation(tiny_config())
    load_backbone_weights(model, str(tmp_path / "weights.pth"))
    model.save_pretrained(tmp_path / "saved")
    loaded = MsctrForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    assert loaded.backbone._backbone.bn1.running_mean.abs().max() > 0
    assert torch.equal(loaded.backbone._backbone.bn1.running_var, model.backbone._backbone.bn1.running_var)


def test_a_classifier_file_of_transformers_fills_a_swin_backbone(tiny_config, tmp_path):
    config = SwinConfig(
        **{key: value for key, value in SWIN_TINY.items() if key not in ("model_type", "out_features")}
    )
    classifier = SwinForImageClassification(config)
    classifier.save_pretrained(tmp_path)
    model = MsctrForSemanticSegmentation(tiny_config(backbone=SWIN_TINY))
    load_backbone_weights(model, str(tmp_path / "model.safetensors"))
    actual, target = model.backbone.state_dict(), classifier.state_dict()
    shared = [key for key in target if key in actual and key.startswith("swin.")]
    assert len(shared) > 40
    assert all(torch.equal(actual[key], target[key]) for key in shared)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: timm.create_model("resnet34").state_dict(), "unknown"),
        (lambda: {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "missing"),
        (lambda: timm.create_model(SMALL_RESNET, in_chans=1).state_dict(), "another shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tiny_config, tmp_path, state, message):
    torch.save(state(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        load_backbone_weights(MsctrForSemanticSegmentation(tiny_config()), str(tmp_path / "weights.pth"))


def test_weights_of_another_swin_are_refused(tiny_config, tmp_path):
    other = {**SWIN_TINY, "embed_dim": 24}
    config = SwinConfig(**{key: value for key, value in other.items() if key not in ("model_type", "out_features")})
    SwinForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another shape"):
        load_backbone_weights(
            MsctrForSemanticSegmentation(tiny_config(backbone=SWIN_TINY)), str(tmp_path / "model.safetensors")
        )


def test_errors_of_an_unreachable_hub_and_of_broken_files_name_the_choices(tiny_config, tmp_path):
    model = MsctrForSemanticSegmentation(tiny_config(backbone={**TIMM_TINY, "backbone": "resnet18.a1_in1k"}))
    with pytest.raises(ValueError, match="`backbone_weights='FILE'`"):
        load_backbone_weights(model, "hub")
    with pytest.raises(ValueError, match="does not exist"):
        load_backbone_weights(model, str(tmp_path / "missing.pth"))
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="is not a readable state dict"):
        load_backbone_weights(model, str(tmp_path / "broken.safetensors"))


@pytest.mark.parametrize("repetitions", [4, 400])
def test_a_long_reason_why_weights_cannot_be_loaded_is_cut_between_words(tiny_config, monkeypatch, repetitions):
    model = MsctrForSemanticSegmentation(tiny_config())

    def fail(*arguments, **options):
        raise OSError("Please check your connection and try again. " * repetitions)

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match="cannot be loaded from the Hub") as caught:
        load_backbone_weights(model, "hub")
    words = set(re.search(r"\((Please.*?)\);", str(caught.value))[1].split())
    assert words <= {"Please", "check", "your", "connection", "and", "try", "again.", "..."}
    assert ("..." in words) == (repetitions == 400)


@pytest.mark.parametrize(
    ("name", "channels"),
    [*(("resnet18", channels) for channels in (1, 3, 4, 7)), ("convnext_atto", 4), ("hrnet_w18_small", 4)],
)
def test_weights_for_rgb_are_adapted_to_other_channels_as_timm_does(tiny_config, tmp_path, name, channels):
    path = tmp_path / "weights.safetensors"
    save_file(perturbed_state(timm.create_model(name)), path)
    indices = [0, 1, 2, 3] if name == "convnext_atto" else [1, 2, 3, 4]
    backbone = {**TIMM_TINY, "backbone": name, "out_indices": indices, "num_channels": channels}
    model = MsctrForSemanticSegmentation(tiny_config(backbone=backbone))
    load_backbone_weights(model, str(path))
    settings = {"pretrained": True, "in_chans": channels, "pretrained_cfg_overlay": {"file": str(path)}}
    oracle = timm.create_model(name, **settings).state_dict()
    first = next(key for key, value in oracle.items() if value.ndim == 4)
    given = model.backbone._backbone.state_dict()
    assert torch.equal(given[first.replace("stem.0", "stem_0")], oracle[first])
    assert given[first.replace("stem.0", "stem_0")].shape[1] == channels
    if not name.startswith("hrnet"):  # whose fuse layers we interpolate in another way
        features = timm.create_model(name, features_only=True, out_indices=indices, **settings).eval()
        pixel_values = torch.randn(1, channels, 64, 64)
        with torch.no_grad():
            maps = model.eval().backbone(pixel_values).feature_maps
            assert all(map(torch.equal, maps, features(pixel_values)))


def test_weights_of_transformers_are_adapted_in_the_same_way(tiny_config, tmp_path):
    config = {key: value for key, value in SWIN_TINY.items() if key not in ("model_type", "out_features")}
    swin = SwinForImageClassification(SwinConfig(**config))
    save_file(perturbed_state(swin), tmp_path / "weights.safetensors")
    key = "embeddings.patch_embeddings.projection.weight"
    given = swin.swin.state_dict()[key]
    for channels in (1, 3, 4):
        model = MsctrForSemanticSegmentation(tiny_config(backbone={**SWIN_TINY, "num_channels": channels}))
        load_backbone_weights(model, str(tmp_path / "weights.safetensors"))
        adapted = next(value for name, value in model.backbone.state_dict().items() if name.endswith(key))
        assert torch.equal(adapted, timm.models.adapt_input_conv(channels, given))
        with torch.no_grad():
            assert model.eval()(torch.randn(1, channels, 64, 64)).logits.shape[1] == 5


def test_weights_for_four_channels_are_taken_as_they_are_and_not_adapted_to_five(tiny_config, tmp_path):
    state = perturbed_state(timm.create_model(TIMM_TINY["backbone"], in_chans=4))
    save_file(state, tmp_path / "weights.safetensors")
    for channels in (4, 5):
        model = MsctrForSemanticSegmentation(tiny_config(backbone={**TIMM_TINY, "num_channels": channels}))
        if channels == 4:
            load_backbone_weights(model, str(tmp_path / "weights.safetensors"))
            assert torch.equal(model.backbone._backbone.conv1[0].weight, state["conv1.0.weight"])
        else:
            with pytest.raises(ValueError, match=r"1 of another shape \(conv1.0.weight\)"):
                load_backbone_weights(model, str(tmp_path / "weights.safetensors"))
