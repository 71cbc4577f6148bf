"""The Trainer of transformers trains, evaluates, saves and resumes networks and adapted models like its own models."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

from msctr_hf import ContrastiveAdapter, MsctrForSemanticSegmentation

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
