import pytest
import torch
from conftest import SWIN_TINY, TIMM_TINY

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation, MultiScaleContrastiveLoss
from msctr_hf.training.network import freeze

HRNET = {
    "model_type": "timm_backbone",
    "backbone": "hrnet_w18_small",
    "out_indices": [1, 2, 3, 4],
    "timm_kwargs": {"feature_location": ""},
}
NETWORKS = {
    "hrnet": ("fcn", HRNET, {}),
    "deeplabv3": ("deeplabv3", TIMM_TINY, {}),
    "ocrnet-hrnet": ("ocr", HRNET, {}),
    "ocrnet-resnet": (
        "ocr",
        {**TIMM_TINY, "output_stride": 8},
        {"decode_stages": [4], "auxiliary_stage": 3, "projection_stages": [1, 4]},
    ),
    "upernet-swin": ("upernet", SWIN_TINY, {"projection_source": "decode_head"}),
    "upernet-resnet": ("upernet", TIMM_TINY, {}),
}


@pytest.fixture(params=NETWORKS)
def network(request, tiny_config):
    head, backbone, settings = NETWORKS[request.param]
    return MsctrForSemanticSegmentation(tiny_config(head, backbone, **settings))


def test_every_parameter_gets_a_finite_gradient(network, tiny_batch):
    network.train()
    output = network(**tiny_batch)
    output.loss.backward()
    without = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def test_a_saved_network_loads_completely_and_bit_for_bit(network, tmp_path):
    network.save_pretrained(tmp_path)
    loaded, info = MsctrForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert list(loaded.state_dict()) == list(network.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), network.state_dict().values(), strict=True)
    )
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in network.named_parameters() if p.requires_grad
    }
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(pixel_values).logits, network.eval()(pixel_values).logits)


@pytest.mark.parametrize("size", [(32, 32), (45, 77), (90, 120)])
def test_the_network_trains_and_predicts_at_any_size_of_at_least_the_coarsest_stride(network, size):
    labels = torch.randint(0, 5, (2, *size))
    loss = network.train()(torch.randn(2, 3, *size), labels=labels).loss
    assert loss.isfinite()
    logits = network.eval()(torch.randn(1, 3, *size)).logits
    assert logits.shape[:2] == (1, 5)
    dilated = network.config.backbone_config.to_dict().get("output_stride") or 32
    stride = min(2 ** (network.config.decode_stages[0] + 1), dilated)
    assert logits.shape[2:] == tuple(-(-side // stride) for side in size)


def test_a_batch_of_ignored_pixels_has_a_loss_of_zero_and_gradients_for_every_parameter(network, tiny_batch):
    tiny_batch["labels"].fill_(255)
    output = network.train()(**tiny_batch)
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def test_prediction_does_not_run_heads_that_are_used_only_during_training(network, tiny_batch):
    def fail(*_):
        raise AssertionError("runs in prediction")

    network.eval()
    network.projection_head.hidden = fail
    if not network.decode_head.needs_auxiliary_logits:
        network.auxiliary_head and network.auxiliary_head.register_forward_hook(fail)
    output = network(**tiny_batch)
    assert list(output.loss_terms) == ["cross_entropy"]
    assert torch.equal(output.loss, output.loss_terms["cross_entropy"])


def test_the_loss_is_the_weighted_sum_of_its_terms(tiny_config, tiny_batch):
    config = tiny_config(
        contrastive_loss_weight=0.3, auxiliary_loss_weight=0.2, contrastive_scale_weights=[1, 2, 3, 4]
    )
    output = MsctrForSemanticSegmentation(config).train()(**tiny_batch)
    terms = output.loss_terms
    contrastive = sum(w * terms[f"contrastive/stage_{s}"] for s, w in zip((1, 2, 3, 4), (1, 2, 3, 4), strict=True))
    contrastive += terms["contrastive/stage_1_to_stage_4"] + terms["contrastive/stage_1_to_stage_3"]
    expected = terms["cross_entropy"] + 0.2 * terms["auxiliary"] + 0.3 * contrastive
    torch.testing.assert_close(output.loss.detach(), expected)


def test_projections_are_returned_on_request_in_training_and_evaluation_mode(tiny_config, tiny_batch):
    model = MsctrForSemanticSegmentation(tiny_config(projection_stages=[1, 3]))
    for mode in (True, False):
        projections = model.train(mode)(tiny_batch["pixel_values"], output_projections=True).projections
        assert [tuple(p.shape) for p in projections] == [(2, 8, 16, 24), (2, 8, 4, 6)]
    plain = MsctrForSemanticSegmentation(tiny_config(contrastive_mode="ce"))
    with pytest.raises(ValueError, match="contrastive_mode='ce'"):
        plain(tiny_batch["pixel_values"], output_projections=True)


def test_one_seed_gives_every_mode_the_same_initial_weights(tiny_config):
    states = []
    for mode in ("ce", "ms", "ms_cs"):
        torch.manual_seed(3)
        state = MsctrForSemanticSegmentation(tiny_config(contrastive_mode=mode)).state_dict()
        states.append({k: v for k, v in state.items() if not k.startswith("projection_head")})
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)


def test_a_network_without_contrast_has_no_projection_head(tiny_config):
    model = MsctrForSemanticSegmentation(tiny_config(contrastive_mode="ce"))
    assert not any(name.startswith("projection_head") for name, _ in model.named_parameters())


def test_the_projection_head_has_the_published_number_of_parameters():
    config = MsctrConfig(
        backbone_config={**HRNET, "backbone": "hrnet_w48"}, decode_head="fcn", id2label={0: "a", 1: "b"}
    )
    head = MsctrForSemanticSegmentation(config).projection_head
    assert sum(p.numel() for p in head.parameters()) == 382_624


def test_loading_with_another_number_of_classes_keeps_all_weights_but_the_classifiers(tiny_config, tmp_path):
    model = MsctrForSemanticSegmentation(tiny_config())
    model.save_pretrained(tmp_path)
    loaded = MsctrForSemanticSegmentation.from_pretrained(
        tmp_path,
        id2label=dict(enumerate("abc")),
        label2id={c: i for i, c in enumerate("abc")},
        ignore_mismatched_sizes=True,
    )
    assert loaded(torch.randn(1, 3, 32, 32)).logits.shape[1] == 3
    for name, value in loaded.state_dict().items():
        if "classifier" not in name:
            assert torch.equal(value, model.state_dict()[name]), name


def test_activation_checkpointing_does_not_change_gradients(tiny_config, tiny_batch):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = MsctrForSemanticSegmentation(tiny_config(dropout=0.0)).train()
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            assert model.backbone.gradient_checkpointing
        torch.manual_seed(2)
        model(**tiny_batch).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-5)


def test_a_frozen_backbone_keeps_its_parameters_and_statistics(tiny_config, tiny_batch):
    model = MsctrForSemanticSegmentation(tiny_config())
    freeze(model.backbone)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.train()(**tiny_batch).loss.backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert model.decode_head.training


def test_contrastive_terms_are_float32_under_autocast(tiny_config, tiny_batch):
    model = MsctrForSemanticSegmentation(tiny_config(contrastive_temperature=0.01)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**tiny_batch)
    output.loss.backward()
    assert all(term.dtype == torch.float32 and term.isfinite() for term in output.loss_terms.values())
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_class_weights_scale_the_loss_in_evaluation_mode_too(tiny_config, tiny_batch):
    torch.manual_seed(0)
    plain = MsctrForSemanticSegmentation(tiny_config(contrastive_mode="ce")).eval()
    torch.manual_seed(0)
    weighted = MsctrForSemanticSegmentation(tiny_config(contrastive_mode="ce", class_weights=[2.0] * 5)).eval()
    torch.testing.assert_close(weighted(**tiny_batch).loss, 2 * plain(**tiny_batch).loss)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("contrastive_temperature", 0.3),
        ("contrastive_cross_scale_temperature", 0.3),
        ("contrastive_scale_weights", [1, 1, 1, 1]),
        ("contrastive_cross_scale_pairs", [[1, 3]]),
        ("contrastive_cross_scale_weights", [2, 2]),
        ("contrastive_detach_coarse", True),
        ("contrastive_min_anchors_per_class", 50),
        ("contrastive_max_anchors_per_class", 7),
        ("contrastive_max_anchors", 100),
        ("contrastive_sampling", "budget"),
        ("contrastive_pseudo_threshold", 0.9),
        ("contrastive_pseudo_share", 0.3),
        ("semantic_loss_ignore_index", 3),
        ("contrastive_mode", "ms"),
    ],
)
def test_every_contrastive_setting_reaches_the_objective(tiny_config, field, value):
    plain, changed = (
        str(MultiScaleContrastiveLoss.from_config(tiny_config(**settings))) for settings in ({}, {field: value})
    )
    assert changed != plain


def test_labels_and_stages_that_do_not_fit_are_named_in_the_error(tiny_config, tiny_batch):
    model = MsctrForSemanticSegmentation(tiny_config())
    with pytest.raises(ValueError, match=r"\(B, H, W\)"):
        model(tiny_batch["pixel_values"], labels=tiny_batch["labels"][:1])
    with pytest.raises(ValueError, match="in 1 to 4, the stages of the backbone"):
        MsctrForSemanticSegmentation(tiny_config(projection_stages=[1, 5]))


def test_initial_weights_have_the_documented_standard_deviations(tiny_config):
    model = MsctrForSemanticSegmentation(tiny_config())
    assert model.decode_head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.3)
    fuse = model.decode_head.fuse[0]
    assert fuse.weight.std().item() == pytest.approx((2 / (fuse.out_channels * 9)) ** 0.5, rel=0.1)


def test_a_compiled_network_computes_the_same_loss_and_gradients(tiny_config, tiny_batch):
    config = tiny_config(dropout=0.0, contrastive_min_anchors_per_class=1)
    network = MsctrForSemanticSegmentation(config).train()
    results = []
    for model in (network, torch.compile(network, backend="aot_eager")):
        network.zero_grad()
        torch.manual_seed(1)  # so that both draw the same anchors
        output = model(**tiny_batch)
        output.loss.backward()
        results.append((output.loss, output.loss_terms, {n: p.grad.clone() for n, p in network.named_parameters()}))
    plain, compiled = results
    assert plain[1]["contrastive/stage_1_to_stage_4"] > 0
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-5)
