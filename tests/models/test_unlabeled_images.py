"""Unlabeled images in the forward pass: their loss, the statistics of BatchNorm, gradients, and wrong arguments."""

import copy
import datetime

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from conftest import TIMM_TINY
from timm.layers import convert_sync_batchnorm
from torch import nn

from msctr_hf import ContrastiveAdapter, MsctrForSemanticSegmentation
from msctr_hf.models.loss_weight import UnlabeledWeight
from msctr_hf.training.network import freeze

HEADS = {"upernet": {}, "ocr": {"backbone": {**TIMM_TINY, "output_stride": 8}, "projection_stages": [1, 4]}}


@pytest.fixture
def unlabeled():
    """Three images of another size than the labeled ones, with padding and a confidence from 0.9 to 1."""
    pseudo_labels = torch.randint(0, 5, (3, 4, 5)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    pseudo_labels[:, :, :7] = 255
    return {
        "unlabeled_pixel_values": 3 * torch.randn(3, 3, 64, 80) + 1,
        "pseudo_labels": pseudo_labels,
        "pseudo_confidence": 0.9 + 0.1 * torch.rand(3, 64, 80),
    }


def build(tiny_config, head="upernet", **settings):
    """Build a network whose passes are the same twice, without dropout and without draws of anchors."""
    settings = {"dropout": 0.0, "contrastive_mode": "ce", **HEADS[head], **settings}
    return MsctrForSemanticSegmentation(tiny_config(head, **settings)).train()


def gradients(network, loss):
    network.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def by_numpy(logits, unlabeled, threshold):
    """Compute the loss of unlabeled images, and the share of confident pixels."""
    logits = nn.functional.interpolate(logits.detach(), (64, 80), mode="bilinear").double().numpy()
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    total, confident, valid = 0.0, 0, 0
    for image, row, column in np.ndindex(3, 64, 80):
        label = int(unlabeled["pseudo_labels"][image, row, column])
        if label != 255:
            valid += 1
            if unlabeled["pseudo_confidence"][image, row, column].item() >= threshold:
                confident += 1
                total -= log_probabilities[image, label, row, column]
    return total / valid, confident / valid


def test_the_loss_has_the_cross_entropy_of_confident_pixels_over_all_pixels_but_padding(
    tiny_config, tiny_batch, unlabeled
):
    network = build(tiny_config, pseudo_label_threshold=0.97, unlabeled_loss_weight=0.6)
    alone = copy.deepcopy(network)(unlabeled["unlabeled_pixel_values"]).logits  # with their own mean and variance
    expected, share = by_numpy(alone, unlabeled, 0.97)
    plain = network(**tiny_batch)
    for warmup_steps, factor in ((0, 1), (4, 0.5)):
        network.unlabeled_weight = UnlabeledWeight(warmup_steps)
        network.unlabeled_weight.set_step(1, 10)
        output = network(**tiny_batch, **unlabeled)
        assert output.loss_terms["pseudo_cross_entropy"].item() == pytest.approx(expected, rel=1e-5)
        assert output.diagnostics["pseudo_cross_entropy/confident_pixels"].item() == pytest.approx(share)
        assert output.loss.item() == pytest.approx(plain.loss.item() + 0.6 * factor * expected, rel=1e-5)
    assert torch.equal(output.logits, plain.logits)
    assert network.unlabeled_weight.facts() == {"unlabeled/weight_factor": 0.5}


def test_thresholds_of_pixels_replace_the_common_one(tiny_config, tiny_batch, unlabeled):
    network = build(tiny_config, pseudo_label_threshold=1.0)
    alone = copy.deepcopy(network)(unlabeled["unlabeled_pixel_values"]).logits
    of_classes = torch.tensor([0.92, 0.94, 0.96, 0.98, 2.0])
    labels = unlabeled["pseudo_labels"]
    thresholds = of_classes[labels.where(labels != 255, 0)]
    sure = unlabeled["pseudo_confidence"] >= thresholds
    expected, share = by_numpy(alone, {**unlabeled, "pseudo_confidence": sure.double()}, 1.0)
    output = network(**tiny_batch, **unlabeled, pseudo_thresholds=thresholds)
    assert output.loss_terms["pseudo_cross_entropy"].item() == pytest.approx(expected, rel=1e-5)
    assert output.diagnostics["pseudo_cross_entropy/confident_pixels"].item() == pytest.approx(share)
    assert 0.1 < share < 0.9


@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_is_that_of_both_losses_and_the_auxiliary_head_learns_from_labels_alone(
    tiny_config, tiny_batch, unlabeled, head
):
    network = build(tiny_config, head)
    both = gradients(network, network(**tiny_batch, **unlabeled).loss)
    labeled = gradients(network, network(**tiny_batch).loss)
    logits = network(unlabeled["unlabeled_pixel_values"]).logits
    resized = nn.functional.interpolate(logits, (64, 80), mode="bilinear", align_corners=network.config.align_corners)
    targets = unlabeled["pseudo_labels"].clone()
    targets[unlabeled["pseudo_confidence"] < 0.95] = 255
    losses = nn.functional.cross_entropy(resized, targets, ignore_index=255, reduction="sum")
    network.zero_grad()
    (losses / (unlabeled["pseudo_labels"] != 255).sum()).backward()
    for name, parameter in network.named_parameters():
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(both[name], labeled[name] + own, rtol=1e-3, atol=1e-5, msg=name)
    classifier = network.auxiliary_head.get_submodule("classifier").weight
    assert (classifier.grad is None) == (head == "upernet")


@pytest.mark.parametrize("kind", ["plain", "synchronized", "recomputed", "frozen backbone"])
def test_only_labeled_images_are_kept_in_the_running_statistics(tiny_config, tiny_batch, unlabeled, kind):
    network = build(tiny_config, contrastive_mode="ms_cs")
    if kind == "synchronized":
        network = convert_sync_batchnorm(network)
    if kind == "frozen backbone":
        freeze(network.backbone)
    start, expected = copy.deepcopy(network), copy.deepcopy(network)
    expected(**tiny_batch)
    if kind == "recomputed":
        getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)()
    places = [buffer.data_ptr() for buffer in network.buffers()]
    network(**tiny_batch, **unlabeled).loss.backward()
    assert [buffer.data_ptr() for buffer in network.buffers()] == places
    before, buffers = dict(start.named_buffers()), dict(network.named_buffers())
    assert any(name.endswith("num_batches_tracked") for name in buffers)
    for name, value in expected.named_buffers():
        torch.testing.assert_close(buffers[name], value, rtol=0, atol=0, msg=name)
        assert torch.equal(value, before[name]) == (kind == "frozen backbone" and name.startswith("backbone")), name
    network(**tiny_batch)  # a later batch is kept again
    counts = [value.item() for name, value in network.decode_head.named_buffers() if name.endswith("tracked")]
    assert set(counts) == {2}


def test_recomputed_activations_do_not_change_gradients(tiny_config, tiny_batch, unlabeled):
    network = build(tiny_config)
    plain = gradients(network, network(**tiny_batch, **unlabeled).loss)
    getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)()
    recomputed = gradients(network, network(**tiny_batch, **unlabeled).loss)
    torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-5)


def test_a_step_without_confident_pixels_has_the_gradient_of_the_labeled_images(tiny_config, tiny_batch, unlabeled):
    network = build(tiny_config)
    expected = gradients(network, network(**tiny_batch).loss)
    unlabeled["pseudo_confidence"].fill_(0.5)
    for share in (0, float("nan")):
        output = network(**tiny_batch, **unlabeled)
        torch.testing.assert_close(gradients(network, output.loss), expected, rtol=1e-5, atol=1e-7)
        assert output.loss_terms["pseudo_cross_entropy"] == 0
        confident = output.diagnostics["pseudo_cross_entropy/confident_pixels"].item()
        assert confident == pytest.approx(share, nan_ok=True)
        unlabeled["pseudo_labels"].fill_(255)  # nothing but padding


def test_a_step_without_confident_pixels_is_finite_with_the_contrast_and_has_gradients_for_all_parameters(
    tiny_config, tiny_batch, unlabeled
):
    network = build(tiny_config, contrastive_mode="ms_cs", contrastive_pseudo_labels=True)
    unlabeled["pseudo_confidence"].fill_(0.1)
    output = network(**tiny_batch, **unlabeled)
    assert output.loss.isfinite()
    assert {network.contrastive_facts[f"contrastive/stage_{stage}/pseudo_anchors"] for stage in (1, 2)} == {0}
    grads = gradients(network, output.loss)  # of all parameters: one without would raise
    assert all(grad.isfinite().all() for grad in grads.values())
    assert any(grad.abs().max() > 0 for name, grad in grads.items() if name.startswith("projection_head"))


def test_unlabeled_images_are_trained_on_without_any_labeled_pixel_and_under_autocast(
    tiny_config, tiny_batch, unlabeled
):
    network = build(tiny_config, "ocr", contrastive_mode="ms_cs")
    tiny_batch["labels"].fill_(255)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(**tiny_batch, **unlabeled)
    assert output.loss_terms["pseudo_cross_entropy"].dtype == torch.float32
    grads = gradients(network, output.loss)
    assert all(grad.isfinite().all() for grad in grads.values())
    assert any(grad.abs().max() > 0 for name, grad in grads.items() if name.startswith("backbone"))


@pytest.mark.slow
def test_a_compiled_network_computes_the_same_loss_gradients_and_statistics(tiny_config, tiny_batch, unlabeled):
    start = build(tiny_config)
    results = []
    for compiled in (False, True):
        network = copy.deepcopy(start)
        model = torch.compile(network, backend="aot_eager") if compiled else network
        output = model(**tiny_batch, **unlabeled)
        results.append((output.loss, gradients(network, output.loss), dict(network.named_buffers())))
    plain, compiled = results
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-5)


def test_confident_pixels_are_contrasted_on_request(tiny_config, tiny_batch, unlabeled):
    network = build(tiny_config, contrastive_mode="ms_cs", contrastive_pseudo_labels=True, unlabeled_loss_weight=0.0)
    torch.manual_seed(1)
    output = network(**tiny_batch, **unlabeled)
    facts = dict(network.contrastive_facts)
    assert facts["contrastive/stage_1/pseudo_anchors"] > 0
    contrast = [output.loss_terms[name].item() for name in output.loss_terms if name.startswith("contrastive")]
    network.contrastive_loss.pseudo_draws.load_state_dict({"seed": 1, "drawn": 0})
    plain = build(tiny_config, contrastive_mode="ms_cs")
    plain.load_state_dict(network.state_dict())
    torch.manual_seed(1)
    without = plain(**tiny_batch, **unlabeled)
    assert "contrastive/stage_1/pseudo_anchors" not in plain.contrastive_facts
    of_labels = [without.loss_terms[name].item() for name in without.loss_terms if name.startswith("contrastive")]
    assert contrast[0] != of_labels[0]
    unlabeled["unlabeled_pixel_values"].requires_grad_()
    network(**tiny_batch, **unlabeled).loss.backward()
    assert unlabeled["unlabeled_pixel_values"].grad.abs().max() > 0
    network(**tiny_batch)
    assert "contrastive/stage_1/pseudo_anchors" not in network.contrastive_facts


def split_batch():
    """Make a batch of four labeled and four unlabeled images, of which the last two have more confident pixels."""
    generator = torch.Generator().manual_seed(7)
    stripes = torch.arange(3).repeat_interleave(32).expand(4, 64, 96)
    confidence = torch.full((4, 64, 96), 0.5)
    confidence[:2, :16, :16] = confidence[2:, :16, :40] = 1.0
    return {
        "pixel_values": torch.randn(4, 3, 64, 96, dtype=torch.float64, generator=generator),
        "labels": (stripes + torch.arange(4)[:, None, None]) % 5,
        "unlabeled_pixel_values": torch.randn(4, 3, 64, 96, dtype=torch.float64, generator=generator),
        "pseudo_labels": (stripes + torch.tensor([3, 1, 0, 2])[:, None, None]) % 5,
        "pseudo_confidence": confidence,
    }


def loss_and_gradients(config, images):
    """Compute the loss, its terms and the gradients of a network in float64 whose BatchNorm is frozen."""
    torch.manual_seed(0)
    network = MsctrForSemanticSegmentation(config).double().train()
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
    output = network(**{name: value[images] for name, value in split_batch().items()})
    output.loss.backward()
    return [output.loss.detach(), *output.loss_terms.values()], [each.grad for each in network.parameters()]


def one_of_two(rank, folder, config):
    """Run half of the batch, and save the means that data parallel training would take."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(minutes=5)
    )
    values, grads = loss_and_gradients(config, slice(2 * rank, 2 * rank + 2))
    for mean in (*values, *grads):
        dist.all_reduce(mean)
        mean /= 2
    torch.save((values, grads), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one_with_the_whole_batch(tiny_config, tmp_path):
    config = tiny_config(
        dropout=0.0, contrastive_gather_anchors=True, contrastive_sampling="budget", contrastive_pseudo_labels=True,
        contrastive_min_anchors_per_class=1, unlabeled_loss_weight=5.0,
    )  # fmt: skip
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path), config), nprocs=2)
    values, grads = loss_and_gradients(config, slice(0, 4))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), (values, grads), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("missing", ["unlabeled_pixel_values", "pseudo_labels", "pseudo_confidence"])
def test_arguments_of_unlabeled_images_belong_together(tiny_config, tiny_batch, unlabeled, missing):
    unlabeled.pop(missing)
    with pytest.raises(ValueError, match=rf"pass `{missing}` too, or none of them"):
        build(tiny_config)(**tiny_batch, **unlabeled)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pseudo_labels", torch.zeros(2, 64, 80, dtype=torch.int64), r"must be .* \(3, 64, 80\).* got \(2, 64, 80\)"),
        ("pseudo_confidence", torch.zeros(3, 5, 64, 80), r"must be .* \(3, 64, 80\).* got \(3, 5, 64, 80\)"),
        ("pseudo_thresholds", torch.zeros(5), r"must be .* \(3, 64, 80\).* got \(5,\)"),
        ("unlabeled_pixel_values", torch.zeros(3, 4, 64, 80), r"have 4 channel\(s\), but the network reads 3"),
    ],
)
def test_unlabeled_images_that_do_not_fit_are_named_in_the_error(
    tiny_config, tiny_batch, unlabeled, name, value, message
):
    with pytest.raises(ValueError, match=f"`{name}` {message}"):
        build(tiny_config)(**tiny_batch, **{**unlabeled, name: value})


def test_unlabeled_images_are_refused_in_evaluation_without_labels_and_by_adapted_models(
    tiny_config, tiny_batch, unlabeled
):
    network = build(tiny_config)
    with pytest.raises(ValueError, match="only for training"):
        network(tiny_batch["pixel_values"], **unlabeled)
    with pytest.raises(ValueError, match=r"call `network.train\(\)`"):
        network.eval()(**tiny_batch, **unlabeled)
    with pytest.raises(ValueError, match="an adapted model does not learn from unlabeled images"):
        ContrastiveAdapter.forward(network, tiny_batch["pixel_values"], **unlabeled)
    with pytest.raises(ValueError, match="`contrastive_pseudo_labels`: an adapted model does not learn"):
        ContrastiveAdapter(network, contrastive_pseudo_labels=True)


def test_the_weight_of_unlabeled_images_needs_a_step_only_if_it_moves(tiny_config, tiny_batch, unlabeled):
    network = build(tiny_config)
    network.unlabeled_weight = UnlabeledWeight(2)
    network(**tiny_batch)
    with pytest.raises(ValueError, match=r"`warmup_steps=2` and `schedule='constant'` .* call `set_step"):
        network(**tiny_batch, **unlabeled)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pseudo_label_threshold": 1.5}, r"`pseudo_label_threshold` must be a probability in \[0, 1\], got 1.5"),
        ({"pseudo_label_threshold": float("nan")}, "`pseudo_label_threshold` must be .* got nan"),
        ({"contrastive_pseudo_threshold": -0.1}, "`contrastive_pseudo_threshold` must be a probability"),
        ({"contrastive_pseudo_share": 1}, r"`contrastive_pseudo_share` must be in \[0, 1\), got 1"),
        ({"unlabeled_loss_weight": -1.0}, "`unlabeled_loss_weight` must be at least 0 and finite, got -1.0"),
    ],
)
def test_settings_out_of_range_are_named_in_the_error(tiny_config, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**settings)
