"""A trained network starts training on other classes: loaded, relabeled, trained, saved, and loaded again."""

import logging

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, SegformerConfig, SegformerForSemanticSegmentation

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation

PALETTE = [[10, 0, 0], [20, 0, 0], [30, 0, 0], [40, 0, 0], [50, 0, 0]]
WEIGHTS = [1.0, 2.0, 3.0, 4.0, 5.0]
SIZES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}


@pytest.fixture(params=["network", "segformer"])
def trained(request, tiny_config, tmp_path):
    """Save a network of five classes with palette and class weights, or the SegFormer that shows what users expect."""
    id2label = {label: f"class {label}" for label in range(5)}
    if request.param == "segformer":
        SegformerForSemanticSegmentation(SegformerConfig(id2label=id2label, **SIZES)).save_pretrained(tmp_path)
    else:
        config = tiny_config(palette=PALETTE, class_weights=WEIGHTS)
        MsctrForSemanticSegmentation(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "classes",
    [
        {"num_labels": 3},
        {"id2label": {0: "a", 1: "b", 2: "c"}},
        {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}},
        {"num_labels": 7},
        {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}},
        {"id2label": {label: f"other {label}" for label in range(5)}},
    ],
    ids=["fewer", "named", "fewer and named", "more", "named as in JSON", "as many"],
)
def test_a_network_is_loaded_relabeled_trained_saved_and_loaded(trained, tiny_batch, classes):
    model = AutoModelForSemanticSegmentation.from_pretrained(trained, **classes, ignore_mismatched_sizes=True)
    num_labels = classes.get("num_labels") or len(classes["id2label"])
    assert model.config.num_labels == num_labels
    labels = tiny_batch["labels"].where(tiny_batch["labels"] < num_labels, 255)
    loss = model.train()(tiny_batch["pixel_values"], labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    model.save_pretrained(trained / "again")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(trained / "again")
    assert loaded.config.id2label == {int(key): name for key, name in model.config.id2label.items()}
    with torch.no_grad():
        expected = model.eval()(tiny_batch["pixel_values"]).logits
        torch.testing.assert_close(loaded(tiny_batch["pixel_values"]).logits, expected)
    assert expected.shape[1] == num_labels


@pytest.fixture
def saved(tiny_config, tmp_path):
    """Save the configuration of a network of five classes, with palette and class weights."""
    tiny_config(palette=PALETTE, class_weights=WEIGHTS).save_pretrained(tmp_path)
    return tmp_path


def test_colors_and_weights_of_other_classes_are_dropped_in_one_line(saved, caplog):
    config = MsctrConfig.from_pretrained(saved, id2label={0: "class 0", 1: "lawn"})
    assert (config.palette, config.class_weights) == (None, None)
    assert config.label2id == {"class 0": 0, "lawn": 1}
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "Dropped `palette` and `class_weights`, which belonged to other classes."
    ]


def test_colors_and_weights_follow_classes_that_are_left_out_or_reordered(saved, caplog):
    config = MsctrConfig.from_pretrained(saved, id2label={0: "class 3", 1: "class 1"})
    assert (config.palette, config.class_weights) == ([[40, 0, 0], [20, 0, 0]], [4.0, 2.0])
    assert [record.message for record in caplog.records] == [
        "Reduced `palette` and `class_weights` to the new classes, which are among the former ones."
    ]


def test_settings_for_the_new_classes_are_kept_and_the_same_classes_change_nothing(saved, caplog):
    new = {"palette": [[1, 2, 3], [4, 5, 6]], "class_weights": [1.0, 2.0], "id2label": {0: "a", 1: "b"}}
    config = MsctrConfig.from_pretrained(saved, **new)
    assert (config.palette, config.class_weights) == (new["palette"], new["class_weights"])
    caplog.clear()
    same = MsctrConfig.from_pretrained(saved, num_labels=5, id2label={str(i): f"class {i}" for i in range(5)})
    assert (same.palette, same.class_weights, caplog.records) == (PALETTE, WEIGHTS, [])


def test_other_classes_assigned_to_a_configuration_drop_what_belongs_to_the_former_ones(tiny_config):
    config = tiny_config(palette=PALETTE, class_weights=WEIGHTS)
    config.num_labels = 4
    assert (config.palette, config.class_weights) == (None, None)


def test_names_for_the_classes_of_a_network_keep_their_colors_and_weights(tiny_config, tmp_path):
    model = MsctrForSemanticSegmentation(tiny_config(palette=PALETTE, class_weights=WEIGHTS))
    model.config.id2label = {label: f"renamed {label}" for label in range(5)}
    model.save_pretrained(tmp_path)
    config = MsctrForSemanticSegmentation.from_pretrained(tmp_path).config
    assert (config.palette, config.class_weights) == (PALETTE, WEIGHTS)
    assert config.label2id["renamed 4"] == 4
    config.id2label = {label: f"LABEL_{label}" for label in range(5)}
    config.save_pretrained(tmp_path)
    named = MsctrConfig.from_pretrained(tmp_path, id2label={label: f"class {label}" for label in range(5)})
    assert (named.palette, named.class_weights) == (PALETTE, WEIGHTS)


def test_as_many_other_classes_drop_what_belongs_to_the_former_ones(saved):
    config = MsctrConfig.from_pretrained(saved, id2label={label: f"other {label}" for label in range(5)})
    assert (config.palette, config.class_weights) == (None, None)
    assert config.id2label[0] == "other 0"


def test_settings_that_could_not_be_loaded_are_neither_built_nor_saved(tiny_config, tmp_path):
    config = tiny_config()
    config.class_weights = [1.0, 2.0]
    with pytest.raises(ValueError, match="`class_weights` must have one entry per class: 5, got 2"):
        MsctrForSemanticSegmentation(config)
    with pytest.raises(Exception, match="`class_weights` must have one entry per class: 5, got 2"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_single_class_is_refused_because_its_cross_entropy_is_always_zero(tiny_config):
    for build in (lambda: MsctrConfig(num_labels=1), lambda: tiny_config(num_labels=1)):
        with pytest.raises(ValueError, match="at least two classes, got 1.*give the background a class"):
            build()
