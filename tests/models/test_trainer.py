"""The Trainer of transformers trains, evaluates, saves and resumes networks and adapted models like its own models."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    TrainingArguments,
)

from msctr_hf import ContrastiveAdapter, ContrastiveWeightCallback, MsctrForSemanticSegmentation

SIZES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}


def segformer(num_labels=5):
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=num_labels, **SIZES))


@pytest.fixture
def build(tiny_config):
    """Build a model by name: one of transformers, an adapted one, or one of this package."""

    def build(name):
        if name == "segformer":
            return segformer()
        return (
            ContrastiveAdapter(segformer()) if name == "adapted" else MsctrForSemanticSegmentation(tiny_config(name))
        )

    return build


@pytest.fixture
def images(tiny_batch):
    """Return eight images of a data set, with labels."""
    pixel_values = torch.randn(8, 3, 64, 96)
    labels = tiny_batch["labels"][:1].expand(8, -1, -1)
    return [{"pixel_values": image, "labels": label} for image, label in zip(pixel_values, labels, strict=True)]


def arguments(folder, **settings):
    defaults = {
        "per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, "learning_rate": 1e-3, "logging_steps": 1,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
    }  # fmt: skip
    return TrainingArguments(folder, **{**defaults, **settings})


def compute_metrics(eval_pred):
    """Compute the pixel accuracy as in the guide of transformers: from one array of logits."""
    with torch.no_grad():
        logits, labels = eval_pred
        logits = nn.functional.interpolate(torch.from_numpy(logits), size=labels.shape[-2:], mode="bilinear")
        valid = labels != 255
        return {"accuracy": (logits.argmax(dim=1).numpy() == labels)[valid].mean()}


@pytest.mark.parametrize("name", ["segformer", "adapted", "upernet", "ocr", "deeplabv3"])
def test_compute_metrics_gets_one_array_of_logits(build, images, tmp_path, name):
    model = build(name)
    trainer = Trainer(model, arguments(tmp_path), eval_dataset=images, compute_metrics=compute_metrics)
    predicted = trainer.predict(images).predictions
    assert isinstance(predicted, np.ndarray), [type(each).__name__ for each in predicted]
    accuracy = trainer.evaluate()["eval_accuracy"]
    with torch.no_grad():
        logits = model.eval()(torch.stack([image["pixel_values"] for image in images])).logits
    np.testing.assert_allclose(predicted, logits.numpy(), rtol=1e-4, atol=1e-5)
    labels = torch.stack([image["labels"] for image in images]).numpy()
    assert accuracy == compute_metrics((logits.numpy(), labels))["accuracy"]


def test_an_adapted_model_returns_loss_and_logits_in_evaluation_and_keeps_its_configuration(tiny_batch):
    model = segformer()
    before = model.config.to_json_string(use_diff=False)
    adapter = ContrastiveAdapter(model)
    adapter.train()(**tiny_batch)
    assert list(adapter.eval()(**tiny_batch)) == ["loss", "logits"]
    assert model.config.to_json_string(use_diff=False) == before


@pytest.mark.parametrize("name", ["segformer", "adapted"])
def test_gradient_checkpointing_recomputes_activations_and_keeps_the_losses(build, images, tmp_path, name):
    losses, recomputed = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build(name)
        runs = []
        segformer_ = getattr(model, "model", model)
        layer = next(each for each in segformer_.modules() if type(each).__name__ == "SegformerLayer")
        layer.attention.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        settings = {"max_steps": 2, "gradient_checkpointing": checkpointing, "seed": 1}
        trainer = Trainer(model, arguments(tmp_path, **settings), train_dataset=images)
        runs.clear()
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        recomputed.append(len(runs))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    assert recomputed == [2, 4]


def losses_of(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


@pytest.mark.parametrize("name", ["upernet", "adapted"])
def test_a_checkpoint_holds_the_plain_model_and_a_resumed_training_has_the_same_losses(build, images, tmp_path, name):
    settings = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "seed": 1}
    torch.manual_seed(0)
    whole = Trainer(build(name), arguments(tmp_path, **settings), train_dataset=images)
    whole.train()
    torch.manual_seed(5)
    resumed = Trainer(build(name), arguments(tmp_path / "resumed", **settings), train_dataset=images)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected, found = losses_of(whole), losses_of(resumed)
    for step in (3, 4):
        assert found[step] == pytest.approx(expected[step], rel=1e-6)
    state = whole.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-5, atol=1e-6)
    plain, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "checkpoint-4", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    trained = getattr(whole.model, "model", whole.model)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("name", ["upernet", "adapted"])
def test_a_callback_moves_the_weight_of_the_contrast_also_when_a_training_is_resumed(
    tiny_config, images, tmp_path, name
):
    settings = {"contrastive_warmup_steps": 2, "contrastive_schedule": "linear"}

    def train(folder, **how):
        torch.manual_seed(0)
        network = (
            ContrastiveAdapter(segformer(), **settings)
            if name == "adapted"
            else MsctrForSemanticSegmentation(tiny_config(**settings))
        )
        factors = []
        network.register_forward_hook(lambda *_: factors.append(network.contrastive_weight.factor.item()))
        steps = {"max_steps": 4, "save_steps": 3, "save_strategy": "steps", "gradient_accumulation_steps": 2}
        callbacks = [ContrastiveWeightCallback()]
        trainer = Trainer(network, arguments(folder, **steps), train_dataset=images, callbacks=callbacks)
        trainer.train(**how)
        return factors

    assert train(tmp_path) == [0.5, 0.5, 1, 1, 1, 1, 0.5, 0.5]
    assert train(tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "checkpoint-3")) == [0.5, 0.5]


def test_save_model_writes_the_plain_model_and_the_heads_next_to_it(build, images, tmp_path):
    trainer = Trainer(build("adapted"), arguments(tmp_path / "run"), train_dataset=images)
    trainer.save_model(tmp_path / "saved")
    plain = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    assert type(plain) is SegformerForSemanticSegmentation
    heads = load_file(tmp_path / "saved/projection_head.safetensors")
    expected = trainer.model.projection_head.state_dict(prefix="projection_head.")
    assert heads.keys() == expected.keys()
    assert all(torch.equal(heads[key], value) for key, value in expected.items())


def test_the_best_adapted_model_is_loaded_at_the_end_with_its_heads(build, images, tmp_path):
    settings = {
        "max_steps": 4, "save_steps": 2, "eval_steps": 2, "save_strategy": "steps", "eval_strategy": "steps",
        "load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True,
    }  # fmt: skip
    adapter = build("adapted")
    trainer = Trainer(adapter, arguments(tmp_path, **settings), train_dataset=images, eval_dataset=images)
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/projection_head.safetensors")
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert all(torch.equal(adapter.state_dict()[key], value) for key, value in best.items())


@pytest.mark.parametrize(
    ("damage", "settings", "message"),
    [
        ("no heads", {}, "checkpoint-1 has no projection_head.safetensors"),
        ("none", {"contrastive_temperature": 0.2}, "`contrastive_temperature` was 0.1 .* and is 0.2"),
        ("none", {"layers": [0, 1, 2]}, r"`layers` was \[0, 1, 2, 3\] .* and is \[0, 1, 2\]"),
        ("none", {"contrastive_mode": "ce"}, "`contrastive_mode` was 'ms_cs' .* and is 'ce'"),
        ("other model", {}, "decode_head|checkpoint-1"),
    ],
)
def test_another_checkpoint_is_not_resumed(images, tmp_path, damage, settings, message):
    start = {"max_steps": 2, "save_steps": 1, "save_strategy": "steps"}
    Trainer(ContrastiveAdapter(segformer()), arguments(tmp_path, **start), train_dataset=images).train()
    checkpoint = tmp_path / "checkpoint-1"
    if damage == "no heads":
        (checkpoint / "projection_head.safetensors").unlink()
    model = segformer(num_labels=7) if damage == "other model" else segformer()
    trainer = Trainer(ContrastiveAdapter(model, **settings), arguments(tmp_path, **start), train_dataset=images)
    with pytest.raises((ValueError, RuntimeError), match=message):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_weights_of_the_plain_model_are_not_taken_for_weights_of_the_adapter():
    adapter = ContrastiveAdapter(segformer())
    with pytest.raises(ValueError, match="not weights of the adapter"):
        adapter.load_state_dict(segformer().state_dict(), strict=False)
