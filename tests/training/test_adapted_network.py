import json

import pytest
from layouts import write_folder
from PIL import Image
from small_run import flags
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    DPTImageProcessor,
    Idefics3ImageProcessor,
    MobileViTImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)
from transformers import SegformerImageProcessor as Processor

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.errors import InputWarning
from msctr_hf.training.adapted_network import image_processor_of_saved, other_scale

SMALL = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1]}
NOT_FOR_ADAPTED_MODELS = {"config": None, "hidden_size": None, "auxiliary_hidden_size": None, "class_weights": None}


@pytest.fixture
def image_folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=6, num_validation=3)


@pytest.fixture
def segformer(tmp_path):
    """Save a SegFormer of 150 classes, whose processor reduces labels as for ADE20K."""
    folder = tmp_path / "segformer"
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=150, decoder_hidden_size=16, **SMALL)).save_pretrained(
        folder
    )
    Processor(do_reduce_labels=True, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    return folder


@pytest.fixture
def adapted_flags(segformer, image_folder, tmp_path):
    def build(**changes):
        settings = {**NOT_FOR_ADAPTED_MODELS, "model_name_or_path": segformer, "contrastive_adapter": "true"}
        return flags(image_folder, tmp_path / "run", **{**settings, **changes})

    return build


def test_a_model_of_transformers_is_trained_and_evaluated(run_script, adapted_flags, image_folder, tmp_path):
    code, out, err = run_script("train.py", *adapted_flags())
    assert code == 0, err
    assert "(segformer), ms_cs" in out
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert any("contrastive/stage_1_to_stage_4" in entry and "segmentation" in entry for entry in entries)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run")
    assert type(model) is SegformerForSemanticSegmentation
    assert model.config.num_labels == 3
    processor = Processor.from_pretrained(tmp_path / "run")
    assert (list(processor.image_mean), processor.do_reduce_labels) == ([0.1, 0.2, 0.3], False)
    assert not list((tmp_path / "run").glob("*.py"))  # the model can be loaded without this package
    code, out, err = run_script(
        "evaluate.py", "--model", tmp_path / "run", "--dataset", "folder", "--data_dir", image_folder
    )
    assert code == 0, err
    code, _, err = run_script("train.py", *adapted_flags(resume="auto", max_steps=6))
    assert code == 0, err


def test_a_sentence_says_that_an_image_processor_resizes_whole_images_but_no_crops():
    without, given = {"do_resize": False}, {"do_resize": True, "size": {"shortest_edge": 40}}
    (sentence,) = other_scale(Processor(size={"height": 512, "width": 384}), without)
    assert "resized by the adapted model (height 512, width 384), crops of training are not" in sentence
    assert other_scale(Processor(do_resize=False), without) == other_scale(Processor(), given) == []


@pytest.mark.parametrize("shorter", [0, 40])
def test_the_saved_image_processor_shows_the_whole_images_that_were_scored(segformer, shorter):
    MobileViTImageProcessor(do_reduce_labels=True).save_pretrained(segformer)
    options = {"do_resize": bool(shorter), "size": {"shortest_edge": shorter}, "size_divisor": 1}
    with pytest.warns(InputWarning, match="MobileViTImageProcessor: the center crop is switched off") as caught:
        image_processor_of_saved(str(segformer), options).save_pretrained(segformer)
    assert len(caught) == 1
    saved = AutoImageProcessor.from_pretrained(segformer)
    assert (saved.do_center_crop, saved.do_reduce_labels) == (False, False)
    prepared = saved(Image.new("RGB", (60, 30)), return_tensors="pt")["pixel_values"]
    shorter = shorter or 224
    assert prepared.shape == (1, 3, shorter, 2 * shorter)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"contrastive_adapter": "false"}, "is a segformer; add --contrastive_adapter true"),
        ({"model_name_or_path": None}, "--contrastive_adapter needs a model to adapt"),
        ({"decode_head": "fcn"}, "--decode_head is not a setting of the contrastive objective"),
        ({"size_divisor": 32}, "keeps its own image processor"),
        ({"model_name_or_path": "/nowhere"}, "/nowhere cannot be loaded"),
        ({"resize_shorter_side": 40, "processor": "dpt"}, "DPTImageProcessor of the adapted model cannot resize"),
        ({"processor": "idefics"}, " makes pixel values of the shape (1, 17, 3, 364, 364)"),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_leave_no_folder(
    run_script, adapted_flags, segformer, tmp_path, changes, sentence
):
    changes = dict(changes)
    if processor := {"dpt": DPTImageProcessor, "idefics": Idefics3ImageProcessor}.get(changes.pop("processor", None)):
        processor().save_pretrained(segformer)
    code, _, err = run_script("train.py", *adapted_flags(**changes))
    assert code == 2
    assert sentence in err
    assert not (tmp_path / "run").exists()


def test_a_network_with_the_objective_built_in_is_refused(run_script, adapted_flags, tiny_config, tmp_path):
    MsctrForSemanticSegmentation(tiny_config()).save_pretrained(tmp_path / "ours")
    MsctrImageProcessor().save_pretrained(tmp_path / "ours")
    code, _, err = run_script("train.py", *adapted_flags(model_name_or_path=tmp_path / "ours"))
    assert code == 2
    assert "has the contrastive objective built in; leave it out" in err
