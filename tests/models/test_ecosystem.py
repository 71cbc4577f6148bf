"""The network works with the Trainer of transformers, with PEFT and with torch.compile."""

import copy

import pytest
import torch
from accelerate import infer_auto_device_map
from conftest import SWIN_TINY, TIMM_TINY
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftMixedModel, PeftModel, get_peft_model
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

from msctr_hf import ContrastiveAdapter, MsctrForSemanticSegmentation
from msctr_hf.models.decode_heads import DECODE_HEADS

TRAINED_HEADS = ["decode_head", "auxiliary_head", "projection_head"]


def test_the_trainer_of_transformers_trains_and_evaluates_the_network(tiny_config, tiny_batch, tmp_path):
    model = MsctrForSemanticSegmentation(tiny_config())
    start = copy.deepcopy(model.state_dict())
    images = [{key: value[0] for key, value in tiny_batch.items()}] * 8
    arguments = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-3,
        logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", max_grad_norm=1e9,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=images, eval_dataset=images[:2])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, start[name])]
    for part in ("backbone", *TRAINED_HEADS):
        assert any(name.startswith(part) for name in changed), part
    model.eval()
    with torch.no_grad():
        expected = model(**{key: value[:1] for key, value in tiny_batch.items()}).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    trainer.save_model(tmp_path / "saved")
    MsctrForSemanticSegmentation.from_pretrained(tmp_path / "saved")


def test_the_trainer_of_transformers_trains_an_adapted_model(tiny_batch, tmp_path):
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    adapter = ContrastiveAdapter(SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **sizes)))
    start = copy.deepcopy(adapter.state_dict())
    images = [{key: value[0] for key, value in tiny_batch.items()}] * 4
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=2, learning_rate=1e-3, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    Trainer(adapter, arguments, train_dataset=images).train()
    changed = {
        name.split(".")[0] for name, value in adapter.state_dict().items() if not torch.equal(value, start[name])
    }
    assert changed == {"model", "projection_head"}


@pytest.mark.parametrize("is_adapted", [False, True])
def test_hidden_states_are_returned_if_the_configuration_says_so(tiny_config, tiny_batch, is_adapted):
    model = adapted_segformer() if is_adapted else MsctrForSemanticSegmentation(tiny_config())
    config = model.model.config if is_adapted else model.config
    model.eval()
    with torch.no_grad():
        assert model(tiny_batch["pixel_values"]).hidden_states is None
        config.output_hidden_states = True
        assert len(model(tiny_batch["pixel_values"]).hidden_states) == 4
        assert model(tiny_batch["pixel_values"], output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("decode_head", DECODE_HEADS)
def test_a_device_map_keeps_every_head_and_the_backbone_whole(tiny_config, decode_head):
    model = MsctrForSemanticSegmentation(tiny_config(decode_head))
    memory = {0: 400_000, 1: 400_000, "cpu": 10**9}  # bytes: no part but the smallest heads fits
    whole = infer_auto_device_map(model, memory, no_split_module_classes=model._no_split_modules)
    assert whole
    assert all("." not in name for name in whole)


@pytest.mark.parametrize(
    ("backbone", "targets"),
    [(SWIN_TINY, r".*\.(q_proj|v_proj)"), ({**TIMM_TINY, "backbone": "resnet18"}, r"backbone\..*\.conv\d")],
    ids=["attention of Swin", "convolutions"],
)
def test_low_rank_adapters_train_and_load_again(tiny_config, tiny_batch, tmp_path, backbone, targets):
    base = MsctrForSemanticSegmentation(tiny_config(backbone=backbone))
    for module in base.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # timm initializes the last one of a block to 0, which would stop all gradients
            torch.nn.init.ones_(module.weight)
            module.momentum = 0.0  # adapters do not save statistics
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=targets, modules_to_save=TRAINED_HEADS))
    model.train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(3):
        output = model(**tiny_batch)
        assert "contrastive/stage_1_to_stage_4" in output.loss_terms
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted = [each for name, each in model.named_parameters() if "lora_B" in name]
    assert len(adapted) > 3
    assert all(each.abs().max() > 0 for each in adapted)
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        expected = model.eval()(tiny_batch["pixel_values"]).logits
        torch.testing.assert_close(loaded(tiny_batch["pixel_values"]).logits, expected)


def convolutions(model):
    """Name all convolutions but dilated ones, which PEFT cannot adapt, and depthwise ones, which limit its rank."""
    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return [name for name, module in convolutions if module.dilation == (1, 1) and module.groups == 1]


def adapted_segformer(**settings):
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **sizes))
    return ContrastiveAdapter(model, projection_dim=8, **settings)


@pytest.mark.parametrize("name", [*DECODE_HEADS, "adapter"])
def test_low_rank_adapters_of_all_convolutions_learn_and_can_be_merged(tiny_config, tiny_batch, name):
    every_stage = {"contrastive_min_anchors_per_class": 1}
    if name == "adapter":
        base = adapted_segformer(**every_stage)
    else:
        base = MsctrForSemanticSegmentation(tiny_config(name, **every_stage))
    for module in base.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm initializes the last one of a block to 0, which stops all gradients
    targets = convolutions(base)
    assert any("projection_head" in target and target.endswith("output") for target in targets)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=targets)).train()
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(2):
        model(**tiny_batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted = {key: each for key, each in model.named_parameters() if "lora_B" in key}
    assert len(adapted) == len(targets)
    assert [key for key, each in adapted.items() if not each.abs().max() > 0] == []
    model.eval()
    with torch.no_grad():
        expected = model(tiny_batch["pixel_values"], output_projections=True)
        merged = model.merge_and_unload()(tiny_batch["pixel_values"], output_projections=True)
    torch.testing.assert_close(merged.logits, expected.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(merged.projections, expected.projections, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wrap", [get_peft_model, PeftMixedModel], ids=["model", "mixed model"])
def test_an_adapter_around_a_model_of_peft_is_refused_in_a_sentence_that_names_the_order_that_works(wrap):
    model = wrap(adapted_segformer().model, LoraConfig(r=2, target_modules=r".*(query|q_proj)"))
    with pytest.raises(ValueError, match=r"wrap .* instead, `get_peft_model\(ContrastiveAdapter\(") as raised:
        ContrastiveAdapter(model)
    assert str(raised.value).count(". ") == 0
    assert ContrastiveAdapter(model.merge_and_unload()).projection_head is not None


@pytest.mark.parametrize(
    "settings",
    [
        LoraConfig(r=2, use_dora=True),
        LoHaConfig(r=2, use_effective_conv2d=True, module_dropout=0),
        LoKrConfig(r=2),
        OFTConfig(r=2, oft_block_size=0),
    ],
    ids=lambda settings: str(settings.peft_type).removeprefix("PeftType."),
)
def test_every_kind_of_adapter_learns_on_the_last_convolution_of_a_projection(tiny_config, tiny_batch, settings):
    settings.target_modules = r"projection_head\.stages\.\d\.output"
    config = tiny_config(contrastive_min_anchors_per_class=1)
    model = get_peft_model(MsctrForSemanticSegmentation(config), settings).train()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    before = {name: each.detach().clone() for name, each in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    for _ in range(2):
        model(**tiny_batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name.split(".output")[0] for name, each in trained.items() if not torch.equal(each, before[name])}
    assert len(changed) == 4
    ignored = {**tiny_batch, "labels": torch.full_like(tiny_batch["labels"], 255)}
    assert model(**ignored).loss.isfinite()  # no pixel is sampled


@pytest.mark.slow
@pytest.mark.parametrize("decode_head", DECODE_HEADS)
def test_prediction_compiles_into_one_graph(tiny_config, tiny_batch, decode_head):
    model = MsctrForSemanticSegmentation(tiny_config(decode_head)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(tiny_batch["pixel_values"]).logits, model(tiny_batch["pixel_values"]).logits, rtol=1e-4, atol=1e-5
        )
