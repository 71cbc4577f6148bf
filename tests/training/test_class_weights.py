"""`class_weights='auto'` in a run: the same as the numbers, saved with the model, and kept on resume."""

import json

import numpy as np
import pytest
from layouts import write_folder, write_labels
from small_run import flags

from msctr_hf import MsctrConfig, load_segmentation_dataset
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.errors import UsageError
from msctr_hf.training.class_weights import ClassPixels, choose_class_weights, describe_class_weights
from msctr_hf.training.run_folder import write_json


@pytest.fixture
def folder(tmp_path):
    """Write a folder whose frequencies of classes are 1/2, 1/4 and 1/4."""
    root = write_folder(tmp_path / "data", num_train=6, num_validation=3)
    relabel(root, [0, 0, 1, 2])
    return root


def relabel(root, rows):
    for path in (root / "train/labels").glob("*.png"):
        write_labels(path, np.repeat(np.array(rows, dtype=np.uint8), 10)[:, None].repeat(56, 1))


@pytest.fixture
def class_pixels(folder):
    spec = get_dataset_spec("folder", folder)
    return ClassPixels(load_segmentation_dataset("folder", "train", folder), spec, 0)


def test_auto_is_computed_from_the_training_split(class_pixels):
    weights = choose_class_weights("auto", class_pixels, None)
    assert weights == [0.5, 1.0, 1.0]
    assert describe_class_weights(weights, class_pixels.spec) == (
        "class_weights auto: from 0.5 (sky) to 1 (road), by median frequency"
    )


def test_numbers_and_no_weights_read_no_labels(class_pixels):
    class_pixels.train_set = None
    assert choose_class_weights([1, 2, 3], class_pixels, None) is None
    assert choose_class_weights(None, class_pixels, None) is None


@pytest.mark.parametrize("word", ["Auto", "balanced", "1,2,3"])
def test_other_words_are_refused_in_a_sentence(class_pixels, word):
    with pytest.raises(UsageError, match=f"a number for every class, or 'auto', got '{word}'"):
        choose_class_weights(word, class_pixels, None)


def test_weights_for_another_number_of_classes_are_refused_with_the_remedy(class_pixels):
    with pytest.raises(UsageError, match="one entry per class: 3, got 2.* 'auto' computes them from the labels"):
        choose_class_weights([1, 2], class_pixels, None)


def test_a_stream_is_refused_in_a_sentence(class_pixels):
    class_pixels.train_set = class_pixels.train_set.with_format(None).to_iterable_dataset()
    with pytest.raises(UsageError, match="`class_weights='auto'` needs all labels before training; give a number"):
        choose_class_weights("auto", class_pixels, None)


def test_a_resumed_run_keeps_the_weights_of_its_start(class_pixels, tmp_path):
    write_json(tmp_path / "checkpoint/data.json", {"class_weights": [0.25, 1.0, 4.0]})
    assert choose_class_weights("auto", class_pixels, tmp_path / "checkpoint") == [0.25, 1.0, 4.0]


@pytest.mark.slow
def test_auto_trains_the_same_network_as_its_numbers_and_is_kept_when_labels_change(run_script, folder, tmp_path):
    losses, first = {}, tmp_path / "auto"
    for name, weights in (("auto", "auto"), ("numbers", "[0.5,1,1]"), ("equal", "[1,1,1]")):
        code, out, error = run_script("train.py", *flags(folder, tmp_path / name, class_weights=weights, max_steps=2))
        assert code == 0, error
        assert ("class_weights auto: from 0.5 (sky) to 1 (" in out) == (name == "auto")
        entries = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses[name] = [entry["loss"] for entry in entries if "loss" in entry]
    assert losses["auto"] == losses["numbers"] != losses["equal"]
    assert MsctrConfig.from_pretrained(first).class_weights == [0.5, 1.0, 1.0]
    run = json.loads((first / "run.json").read_text())
    assert (run["class_weights"], run["settings"]["class_weights"]) == ([0.5, 1.0, 1.0], "auto")
    relabel(folder, [0, 1, 2, 2])
    again = flags(folder, first, class_weights="auto", max_steps=3, resume="auto")
    code, _, error = run_script("train.py", *again)
    assert code == 0, error
    assert MsctrConfig.from_pretrained(first / "last").class_weights == [0.5, 1.0, 1.0]
    code, _, error = run_script("train.py", *again, "--class_weights", "[0.5,1,1]")
    assert code == 2
    assert "class_weights was 'auto' and is [0.5, 1, 1]" in error
