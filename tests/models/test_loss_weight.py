"""The weight of the contrastive loss moves with the step of a training loop, and with nothing else."""

import copy
import math

import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from msctr_hf import ContrastiveAdapter, MsctrForSemanticSegmentation
from msctr_hf.models.loss_weight import ContrastiveWeight

SIZES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}
MOVING = {"contrastive_warmup_steps": 2, "contrastive_schedule": "linear", "contrastive_loss_weight": 0.5}


def adapted(**settings):
    return ContrastiveAdapter(SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **SIZES)), **settings)


@pytest.fixture(params=["network", "adapter"])
def build(request, tiny_config):
    """Build a network or an adapted model with settings of the objective."""

    def build(**settings):
        if request.param == "adapter":
            return adapted(**settings).train()
        return MsctrForSemanticSegmentation(tiny_config(dropout=0.0, **settings)).train()

    return build


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "max_steps"), [(0, 1), (0, 7), (3, 8), (5, 5), (9, 4)])
def test_the_factor_is_the_product_of_warm_up_and_decay(schedule, warmup, max_steps):
    weight = ContrastiveWeight(warmup, schedule)
    for step in range(max_steps + 2):
        weight.set_step(step, max_steps)
        expected = 1.0
        if warmup > 0 and step + 1 < warmup:
            expected = (step + 1) / warmup
        if step > warmup:
            u = min(1.0, (step - warmup) / max(1, max_steps - warmup))
            expected *= {"constant": 1.0, "linear": 1 - u, "cosine": 0.5 * (1 + math.cos(math.pi * u))}[schedule]
        assert weight.factor.item() == pytest.approx(expected, abs=1e-15)
        assert weight.factor.shape == ()


def test_the_factor_multiplies_the_contrast_only_and_is_logged(build, tiny_batch):
    network = build(**MOVING)
    results = []
    for step in (0, 1, 3):
        network.contrastive_weight.set_step(step, 4)
        torch.manual_seed(1)  # so that the same anchors are drawn
        output = network(**tiny_batch)
        results.append((output.loss.item(), network.contrastive_facts["contrastive/weight_factor"]))
        terms = output.loss_terms
    contrast = sum(
        weight * value.item()
        for weight, (name, value) in zip(
            (1.0, 0.7, 0.4, 0.1, 1.0, 1.0), [each for each in terms.items() if "contrastive" in each[0]], strict=True
        )
    )
    assert [factor for _, factor in results] == [0.5, 1.0, 0.5]
    assert results[1][0] - results[0][0] == pytest.approx(0.5 * 0.5 * contrast, rel=1e-3)
    assert results[2][0] == pytest.approx(results[0][0], rel=1e-5)


def test_the_factor_is_no_part_of_the_weights_and_is_one_on_a_fresh_and_on_a_loaded_network(tiny_config, tmp_path):
    moving, plain = (MsctrForSemanticSegmentation(tiny_config(**settings)) for settings in (MOVING, {}))
    assert list(moving.state_dict()) == list(plain.state_dict())
    assert not any(tensor is moving.contrastive_weight.factor for tensor in (*moving.parameters(), *moving.buffers()))
    moving.contrastive_weight.set_step(0, 10)
    moving.save_pretrained(tmp_path)
    loaded = MsctrForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.config.contrastive_schedule == "linear"
    for network in (plain, loaded):
        assert network.contrastive_weight.factor.item() == 1.0
        assert network.contrastive_weight.factor.device.type == "cpu"
    assert copy.deepcopy(moving).contrastive_weight.factor.item() == 0.5


@pytest.mark.parametrize("settings", [{"contrastive_warmup_steps": 2}, {"contrastive_schedule": "cosine"}])
def test_a_loop_that_sets_no_step_is_told_at_the_first_forward_pass_in_training(build, tiny_batch, settings):
    network = build(**settings)
    with pytest.raises(ValueError, match=r"callbacks=\[msctr_hf.ContrastiveWeightCallback\(\)\].*set_step"):
        network(**tiny_batch)
    network.eval()(**tiny_batch)
    network.train().contrastive_weight.set_step(0, 3)
    assert network(**tiny_batch).loss.isfinite()


def test_an_adapted_model_has_hard_anchors_and_any_positive(tiny_batch):
    torch.manual_seed(0)
    options = adapted(contrastive_anchor_selection="hard", contrastive_positives="any").train()
    torch.manual_seed(0)
    plain = adapted().train()
    losses = []
    for model in (options, plain):
        torch.manual_seed(1)
        output = model(**tiny_batch)
        output.loss.backward()
        losses.append(output.loss.item())
    assert losses[0] != losses[1]
    assert any(0 < value <= 1 for name, value in options.contrastive_facts.items() if name.endswith("/hard_share"))
    assert not any(name.endswith("/hard_share") for name in plain.contrastive_facts)


@pytest.mark.slow
def test_a_compiled_network_is_not_compiled_again_after_the_second_step(tiny_config, tiny_batch):
    config = tiny_config(
        "fcn",
        dropout=0.0,
        contrastive_min_anchors_per_class=1,
        contrastive_anchor_selection="hard",
        contrastive_positives="any",
        **MOVING,
    )
    network = MsctrForSemanticSegmentation(config).train()
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager")
    frames, factors = [], []
    for step in range(5):
        network.contrastive_weight.set_step(step, 5)
        compiled(**tiny_batch).loss.backward()
        frames.append(torch._dynamo.utils.counters["frames"]["ok"])
        factors.append(network.contrastive_facts["contrastive/weight_factor"])
    assert frames[1:] == frames[1:2] * 4
    assert len(set(factors)) == 4
