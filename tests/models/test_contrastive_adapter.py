import copy

import pytest
import torch
import transformers
from conftest import SWIN_TINY
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitConfig,
    BeitForSemanticSegmentation,
    ConvNextConfig,
    DPTConfig,
    DPTForSemanticSegmentation,
    EomtConfig,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    Swinv2Config,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from msctr_hf import ContrastiveAdapter, MsctrForSemanticSegmentation, MultiScaleContrastiveLoss

PLAIN = {
    "num_labels": 5, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 64,
}  # fmt: skip


def segformer(**settings):
    # the default configuration of transformers is that of the smallest SegFormer, B0
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **settings))


def upernet():
    backbone = SwinConfig(**{key: value for key, value in SWIN_TINY.items() if key != "model_type"})
    config = UperNetConfig(
        backbone_config=backbone, num_labels=5, hidden_size=16, auxiliary_channels=16, auxiliary_in_channels=48
    )
    return UperNetForSemanticSegmentation(config)


def dpt():
    config = DPTConfig(
        **PLAIN, patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16] * 4, fusion_hidden_size=16
    )
    return DPTForSemanticSegmentation(config)


MODELS = {
    "segformer": segformer,
    "upernet": upernet,
    "dpt": dpt,
    "beit": lambda: BeitForSemanticSegmentation(BeitConfig(**PLAIN, out_indices=[1, 2, 3, 4])),
    "mobilenet_v2": lambda: MobileNetV2ForSemanticSegmentation(MobileNetV2Config(num_labels=5, depth_multiplier=0.35)),
}


@pytest.fixture
def batch():
    labels = torch.randint(0, 5, (2, 4, 4)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[:, :3] = 255
    return {"pixel_values": torch.randn(2, 3, 64, 64), "labels": labels}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_keeps_its_class_and_parameters_after_ten_steps(name, batch, tmp_path):
    model = MODELS[name]()
    before = copy.deepcopy(model.state_dict())
    adapter = ContrastiveAdapter(model, projection_dim=8).train()
    assert len(adapter.layers) == 4
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3)
    for _ in range(10):
        output = adapter(**batch)
        assert len(output.loss_terms) == 1 + 4 + 2  # the model's own loss, four stages, two pairs
        assert all(torch.isfinite(term) for term in output.loss_terms.values())
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert list(model.state_dict()) == list(before)
    adapter.save_pretrained(tmp_path, state_dict=adapter.state_dict())
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert list(loaded.state_dict()) == list(before)
    with torch.no_grad():
        expected = model.eval()(batch["pixel_values"]).logits
        torch.testing.assert_close(loaded(batch["pixel_values"]).logits, expected)
        assert torch.equal(adapter.eval()(batch["pixel_values"]).logits, expected)


def test_the_loss_is_the_models_own_plus_the_objective_on_its_hidden_states(batch):
    model = segformer(drop_path_rate=0.0, classifier_dropout_prob=0.0)
    adapter = ContrastiveAdapter(model, contrastive_loss_weight=0.3).train()
    for module in adapter.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    own = model(**batch, output_hidden_states=True)
    objective = MultiScaleContrastiveLoss.from_config(adapter.objective)
    torch.manual_seed(1)
    contrast, terms = objective(adapter.projection_head(own.hidden_states), batch["labels"])
    torch.manual_seed(1)
    output = adapter(**batch)
    torch.testing.assert_close(output.loss, own.loss + 0.3 * contrast)
    torch.testing.assert_close(output.loss_terms, {"segmentation": own.loss.detach(), **terms})


def test_patch_tokens_are_arranged_as_a_map_and_class_tokens_left_out(batch):
    adapter = ContrastiveAdapter(dpt(), projection_dim=8).eval()
    with torch.no_grad():
        tokens = adapter.model(batch["pixel_values"], output_hidden_states=True).hidden_states[2]
        expected = adapter.projection_head.stages[1](tokens[:, 1:].reshape(2, 4, 4, 32).permute(0, 3, 1, 2))
        projections = adapter(batch["pixel_values"], output_projections=True).projections
    torch.testing.assert_close(projections[1], expected)


def test_an_output_is_a_tuple_if_it_is_requested(batch):
    adapter = ContrastiveAdapter(segformer()).eval()
    outputs, expected = adapter(**batch, return_dict=False), adapter.model(**batch, return_dict=False)
    assert type(outputs) is tuple
    assert len(outputs) == len(expected)
    assert all(torch.equal(found, right) for found, right in zip(outputs, expected, strict=True))


def test_prediction_does_not_run_the_projection_head(batch, monkeypatch):
    adapter = ContrastiveAdapter(segformer()).eval()
    monkeypatch.setattr(adapter.projection_head, "hidden", lambda maps: pytest.fail("projected in prediction"))
    output = adapter(**batch)
    assert set(output) == {"loss", "logits"}
    torch.testing.assert_close(output.loss, adapter.model(**batch).loss)


def test_one_seed_gives_all_modes_the_same_initial_weights_and_ce_no_projection_head():
    starts = []
    for mode in ("ce", "ms_cs"):
        torch.manual_seed(0)
        adapter = ContrastiveAdapter(segformer(), contrastive_mode=mode)
        starts.append([torch.randn(3), *adapter.model.state_dict().values()])
        assert (adapter.projection_head is None) == (mode == "ce")
    assert all(torch.equal(*pair) for pair in zip(*starts, strict=True))


def test_making_an_adapter_changes_neither_modes_nor_statistics_of_the_model():
    model = MODELS["mobilenet_v2"]().train()
    model.mobilenet_v2.conv_stem.eval()
    before = copy.deepcopy(model.state_dict())
    ContrastiveAdapter(model)
    assert model.training
    assert not model.mobilenet_v2.conv_stem.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decode_head": "fcn"}, "`decode_head` is not a setting of the contrastive objective"),
        ({"contrastive_temprature": 0.2}, "Did you mean `contrastive_temperature`"),
        ({"layers": [0, 9]}, "positions among 4 hidden states"),
        ({"projection_stages": [1, 5]}, r"must be at most 4, the number of stages, got \[1, 5\]"),
    ],
)
def test_wrong_settings_are_named_in_the_error(settings, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveAdapter(segformer(), **settings)


def with_channels(num_channels):
    return lambda: segformer(num_channels=num_channels)


def universal(name):
    sizes = {key: value for key, value in PLAIN.items() if key != "intermediate_size"}
    if name == "eomt":
        return transformers.EomtForUniversalSegmentation(EomtConfig(**sizes, num_blocks=2, num_queries=5))
    backbone = SwinConfig(**{key: value for key, value in SWIN_TINY.items() if key != "model_type"})
    settings = {"backbone_config": backbone, "num_labels": 5}
    if name == "maskformer":
        return transformers.MaskFormerForInstanceSegmentation(transformers.MaskFormerConfig(**settings))
    return transformers.Mask2FormerForUniversalSegmentation(transformers.Mask2FormerConfig(**settings))


class NeedsPrompt(SegformerForSemanticSegmentation):
    def forward(self, pixel_values, prompt_pixel_values, labels=None, **kwargs):
        return super().forward(pixel_values, labels, **kwargs)


NOT_ADAPTED = {
    "four channels": (with_channels(4), "SegformerForSemanticSegmentation cannot be adapted: it reads images of 4 ch"),
    "one channel": (with_channels(1), "it reads images of 1 channel"),
    "channels of a backbone": (
        lambda: UperNetForSemanticSegmentation(
            UperNetConfig(
                backbone_config=ConvNextConfig(num_channels=4, hidden_sizes=[8] * 4, depths=[1] * 4),
                num_labels=5, hidden_size=16, auxiliary_channels=16, auxiliary_in_channels=8,
            )
        ),
        "it reads images of 4 channel",
    ),
    "classifier of images": (
        lambda: transformers.SegformerForImageClassification(SegformerConfig(num_labels=5)),
        "SegformerForImageClassification cannot be adapted: it returns no logits of 5 classes for every pixel",
    ),
    "no head": (lambda: transformers.SegformerModel(SegformerConfig()), "its `forward` has no argument `labels`"),
    "depth": (
        lambda: transformers.DPTForDepthEstimation(dpt().config),
        "DPTForDepthEstimation cannot be adapted: it returns no logits of 5 classes",
    ),
    "text": (
        lambda: transformers.BertForMaskedLM(
            transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        ),
        "BertForMaskedLM cannot be adapted: its `forward` has no argument `pixel_values`",
    ),
    "eomt": (lambda: universal("eomt"), "EomtForUniversalSegmentation cannot be adapted: its `forward` has no"),
    "mask2former": (lambda: universal("mask2former"), "Mask2FormerForUniversalSegmentation cannot be adapted"),
    "maskformer": (lambda: universal("maskformer"), "MaskFormerForInstanceSegmentation cannot be adapted"),
    "torchvision": (
        lambda: lraspp_mobilenet_v3_large(weights=None, weights_backbone=None),
        "LRASPP cannot be adapted: it is not a model of transformers",
    ),
    "prompt": (
        lambda: NeedsPrompt(segformer().config),
        r"NeedsPrompt cannot be adapted: it does not run on an image of \(\d+, \d+\) pixels alone \(.*prompt_",
    ),
    "name": (lambda: "nvidia/mit-b0", "str cannot be adapted: it is not a model of transformers"),
    "adapter": (lambda: ContrastiveAdapter(segformer()), "it has the contrastive objective built in"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_ADAPTED)
def test_what_cannot_be_adapted_is_refused_in_one_sentence_that_says_what_works(name):
    build, reason = NOT_ADAPTED[name]
    model = build()
    with pytest.raises(ValueError, match=reason) as raised:
        ContrastiveAdapter(model)
    sentence = str(raised.value)
    assert "SegFormer, UPerNet, DPT, BEiT" in sentence
    assert sentence.count(". ") == 0
    assert "\n" not in sentence


def test_a_network_with_the_objective_built_in_is_refused(tiny_config):
    with pytest.raises(ValueError, match="it has the contrastive objective built in"):
        ContrastiveAdapter(MsctrForSemanticSegmentation(tiny_config()))


def test_hidden_states_that_cannot_be_arranged_as_maps_are_refused_in_the_constructor():
    model = dpt()

    def drop_tokens(module, inputs, output):
        output.hidden_states = tuple(state[:, :7] for state in output.hidden_states)
        return output

    model.register_forward_hook(drop_tokens)
    with pytest.raises(ValueError, match=r"its 7 tokens of an image of \(64, 64\) pixels are not a map"):
        ContrastiveAdapter(model)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (72, 90)])
def test_tokens_of_a_hierarchical_transformer_are_arranged_as_maps_of_their_stages(size):
    backbone = Swinv2Config(
        embed_dim=12, depths=[1] * 4, num_heads=[1, 2, 2, 4], window_size=4, image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    model = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone, num_labels=5, hidden_size=16, auxiliary_channels=16, auxiliary_in_channels=48
        )
    )
    adapter = ContrastiveAdapter(model, projection_dim=8).train()
    output = adapter(torch.randn(2, 3, *size), labels=torch.randint(0, 5, (2, *size)), output_projections=True)
    output.loss.backward()
    strides = [4, 8, 16, 32]
    expected = [tuple(-(-side // stride) for side in size) for stride in strides]
    assert [tuple(each.shape[2:]) for each in output.projections] == expected
    maps = model.backbone(torch.zeros(1, 3, *size)).feature_maps
    assert [each.shape[2:] for each in maps][:3] == [each.shape[2:] for each in output.projections][:3]


def test_an_adapter_is_not_loaded_but_made_around_a_loaded_model(tmp_path):
    segformer().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"then wrap it: `ContrastiveAdapter\(model\)`"):
        ContrastiveAdapter.from_pretrained(tmp_path)
