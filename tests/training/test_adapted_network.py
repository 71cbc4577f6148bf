import json

import pytest
from layouts import write_folder
from small_run import flags
from transformers import AutoModelForSemanticSegmentation, SegformerConfig, SegformerForSemanticSegmentation
from transformers import SegformerImageProcessor as Processor

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor

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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"contrastive_adapter": "false"}, "is a segformer; add --contrastive_adapter true"),
        ({"model_name_or_path": None}, "--contrastive_adapter needs a model to adapt"),
        ({"decode_head": "fcn"}, "--decode_head is not a setting of the contrastive objective"),
        ({"size_divisor": 32}, "keeps its own image processor"),
        ({"model_name_or_path": "/nowhere"}, "/nowhere cannot be loaded"),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_leave_no_folder(
    run_script, adapted_flags, tmp_path, changes, sentence
):
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
