"""Outputs consist of tensors under the same names for any batch, so that `nn.DataParallel` can gather them."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import scatter_gather
from torch.utils._pytree import tree_flatten
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from msctr_hf import ContrastiveAdapter, MsctrForSemanticSegmentation

SIZES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}


@pytest.fixture(params=["upernet", "ocr", "ce", "adapted", "adapted, ce"])
def model(request, tiny_config):
    """Build networks of this package, adapted ones, and those without contrast."""
    mode = "ce" if request.param.endswith("ce") else "ms_cs"
    if request.param.startswith("adapted"):
        segformer = SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **SIZES))
        return ContrastiveAdapter(segformer, contrastive_mode=mode, projection_dim=8)
    head = "ocr" if request.param == "ocr" else "upernet"
    return MsctrForSemanticSegmentation(tiny_config(head, contrastive_mode=mode))


def batches(tiny_batch):
    """Build batches with all pairs, without negative pairs, without anchors, and without labeled pixels."""
    labels = tiny_batch["labels"]
    few = torch.full_like(labels, 255)
    few[:, 20, 20] = 1
    for content in (labels, labels.where(labels == 255, 3), few, torch.full_like(labels, 255)):
        yield {**tiny_batch, "labels": content}


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_every_leaf_is_a_tensor_on_the_device_and_every_batch_has_the_same_structure(model, tiny_batch, mode):
    model.train(mode)
    described = []
    for batch in batches(tiny_batch):
        output = model(**batch, output_projections=model.projection_head is not None, output_hidden_states=True)
        leaves, structure = tree_flatten(output)
        assert [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)] == []
        assert {leaf.device for leaf in leaves} == {batch["pixel_values"].device}
        described.append((structure, [(leaf.dtype, leaf.shape) for leaf in leaves]))
    assert all(each == described[0] for each in described)


def concatenate(target_device, dim, *tensors):
    """Do on a CPU what `torch.nn.parallel._functions.Gather` does on GPUs."""
    return torch.cat([tensor.reshape(1) if tensor.ndim == 0 else tensor for tensor in tensors], dim)


def test_replicas_are_gathered_and_their_losses_averaged(model, tiny_batch, monkeypatch):
    monkeypatch.setattr(scatter_gather.Gather, "apply", concatenate)
    replicas = nn.ModuleList([model, model]).train()
    outputs = [replica(**batch) for replica, batch in zip(replicas, batches(tiny_batch), strict=False)]
    gathered = scatter_gather.gather(outputs, "cpu")
    assert type(gathered) is type(outputs[0])
    assert gathered.logits.shape[0] == 4
    assert gathered.loss.tolist() == [output.loss.item() for output in outputs]
    assert list(gathered.loss_terms) == list(outputs[0].loss_terms)


def test_facts_of_the_newest_batch_are_numbers_of_the_host_that_replicas_share(tiny_config, tiny_batch):
    model = MsctrForSemanticSegmentation(tiny_config()).train()
    assert model.contrastive_facts == {}
    replica = model._replicate_for_data_parallel()
    replica.__dict__["_modules"] = model._modules
    model(**tiny_batch)
    facts = dict(model.contrastive_facts)
    assert {type(fact) for fact in facts.values()} == {float}
    assert facts["contrastive/stage_1/classes"] == len(tiny_batch["labels"].unique()) - 1
    assert replica.contrastive_facts == facts
    replica(tiny_batch["pixel_values"], labels=torch.full_like(tiny_batch["labels"], 255))
    assert model.contrastive_facts["contrastive/skipped_stages"] == 1
    assert list(model.contrastive_facts) == list(facts)
    model.eval()(**tiny_batch)
    assert model.contrastive_facts["contrastive/skipped_stages"] == 1  # nothing is contrasted in evaluation
