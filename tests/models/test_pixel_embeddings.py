"""Embeddings of pixels: their formula, their stages, the choices that a network has, and adapted models."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, SegformerConfig, SegformerForSemanticSegmentation

from msctr_hf import ContrastiveAdapter, MsctrForSemanticSegmentation

SIZES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4, "num_labels": 3}


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 64, 96, dtype=torch.float64)


def network(config):
    return MsctrForSemanticSegmentation(config).double().eval()


def bilinear(values, size, align_corners):
    """Interpolate (C, h, w) pixel by pixel, as the definition says."""
    channels, *source = values.shape
    result = np.empty((channels, *size))
    for row in range(size[0]):
        for column in range(size[1]):
            weighted = []
            for place, to, of in zip((row, column), size, source, strict=True):
                exact = (
                    place * (of - 1) / max(to - 1, 1)
                    if align_corners
                    else np.clip((place + 0.5) * of / to - 0.5, 0, of - 1)
                )
                low = int(exact)
                weighted.append([(low, 1 - exact + low), (min(low + 1, of - 1), exact - low)])
            result[:, row, column] = sum(
                weight_y * weight_x * values[:, y, x] for y, weight_y in weighted[0] for x, weight_x in weighted[1]
            )
    return result


def unit(values):
    return values / np.linalg.norm(values, axis=0, keepdims=True)


@pytest.mark.parametrize("align_corners", [False, True])
def test_joined_stages_are_resized_to_the_finest_normalized_and_divided_by_the_root_of_their_number(
    tiny_config, pixel_values, align_corners
):
    model = network(tiny_config(align_corners=align_corners, projection_stages=[1, 3, 4]))
    with torch.no_grad():
        projections = [each[1].numpy() for each in model(pixel_values, output_projections=True).projections]
        joined = model.embed(pixel_values)
    size = projections[0].shape[1:]
    stages = [unit(bilinear(unit(each), size, align_corners)) for each in projections]
    np.testing.assert_allclose(joined[1].numpy(), np.concatenate(stages) / np.sqrt(3), atol=1e-12)
    np.testing.assert_allclose(joined.norm(dim=1).numpy(), 1, atol=1e-12)


def test_every_stage_alone_is_the_unit_vector_of_its_map(tiny_config, pixel_values):
    model = network(tiny_config(projection_source="decode_head", projection_stages=[2, 4]))
    with torch.no_grad():
        output = model(pixel_values, output_projections=True, output_hidden_states=True)
        pyramid = model.decode_head(output.hidden_states)[1]
        expected = {
            "projection": dict(zip([2, 4], output.projections, strict=True)),
            "decode_head": dict(enumerate(pyramid, start=1)),
            "backbone": dict(enumerate(output.hidden_states, start=1)),
        }
        for features, maps in expected.items():
            assert model.embedding_stages(features) == list(maps)
            for stage, stage_map in maps.items():
                embeddings = model.embed(pixel_values, features, stage)
                torch.testing.assert_close(embeddings * stage_map.norm(dim=1, keepdim=True), stage_map)


@pytest.mark.parametrize(
    ("former", "name"), [("projections", "projection"), ("pyramid", "decode_head"), ("stages", "backbone")]
)
def test_former_names_of_features_are_accepted(tiny_config, pixel_values, former, name):
    model = network(tiny_config())
    with torch.no_grad():
        assert torch.equal(model.embed(pixel_values, former), model.embed(pixel_values, name))


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"contrastive_mode": "ce"}, {}, "without contrast.*; use `features='decode_head'` or `features='backbone'`"),
        ({"decode_head": "fcn"}, {"features": "decode_head"}, "only UPerNet .* or `features='backbone'`"),
        ({"projection_stages": [1, 4]}, {"stage": 2}, "must be one of 1, 4 with `features='projection'`, got 2"),
        ({}, {"features": "logits"}, "must be 'projection', 'decode_head' or 'backbone', got 'logits'"),
    ],
)
def test_what_a_network_does_not_have_is_refused_with_what_it_has(tiny_config, settings, arguments, message):
    model = MsctrForSemanticSegmentation(tiny_config(**settings)).eval()
    with pytest.raises(ValueError, match=message):
        model.embed(torch.zeros(1, 3, 64, 64), **arguments)


def test_embeddings_of_half_precision_are_float32_and_of_length_1(tiny_config):
    model = MsctrForSemanticSegmentation(tiny_config()).bfloat16().eval()
    with torch.no_grad():
        embeddings = model.embed(torch.randn(1, 3, 64, 64).bfloat16())
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones_like(embeddings[:, 0]))


@pytest.fixture
def adapted(tmp_path):
    """Save an adapted SegFormer with its projection head; return the folder and the adapter."""
    model = SegformerForSemanticSegmentation(SegformerConfig(**SIZES))
    adapter = ContrastiveAdapter(model, projection_dim=6, projection_stages=[1, 2, 4])
    for module in adapter.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)  # so that the statistics matter
    adapter.eval().save_pretrained(tmp_path / "adapted")
    return tmp_path / "adapted", adapter


def test_a_saved_adapted_model_gives_the_projections_of_its_saved_head(adapted):
    folder, adapter = adapted
    pixel_values = torch.randn(1, 3, 64, 96)
    loaded = ContrastiveAdapter.with_saved_head(AutoModelForSemanticSegmentation.from_pretrained(folder))
    with torch.no_grad():
        assert torch.equal(loaded.embed(pixel_values), adapter.embed(pixel_values))
        projections = adapter(pixel_values=pixel_values, output_projections=True).projections
        for stage, stage_map in zip([1, 2, 4], projections, strict=True):
            embeddings = loaded.embed(pixel_values, stage=stage)
            torch.testing.assert_close(embeddings * stage_map.norm(dim=1, keepdim=True), stage_map)


def test_an_adapted_model_without_its_head_gives_hidden_states(adapted):
    folder, _ = adapted
    (folder / "projection_head.safetensors").unlink()
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    loaded = ContrastiveAdapter.with_saved_head(model)
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        hidden_states = model(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        for stage, state in enumerate(hidden_states, start=1):
            embeddings = loaded.embed(pixel_values, "backbone", stage)
            torch.testing.assert_close(embeddings * state.norm(dim=1, keepdim=True), state)
    for features in ("projection", "decode_head"):
        with pytest.raises(ValueError, match="use `features='backbone'`"):
            loaded.embedding_stages(features)


@pytest.mark.parametrize(("damage", "message"), [("cut off", "is damaged"), ("other channels", "of another model")])
def test_a_damaged_head_and_that_of_another_model_are_refused(adapted, damage, message):
    folder, _ = adapted
    path = folder / "projection_head.safetensors"
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        wider = SegformerForSemanticSegmentation(SegformerConfig(**{**SIZES, "hidden_sizes": [16, 16, 16, 16]}))
        ContrastiveAdapter(wider, projection_dim=6).save_pretrained(folder / "other")
        path.write_bytes((folder / "other/projection_head.safetensors").read_bytes())
    with pytest.raises(ValueError, match=message):
        ContrastiveAdapter.with_saved_head(AutoModelForSemanticSegmentation.from_pretrained(folder))
