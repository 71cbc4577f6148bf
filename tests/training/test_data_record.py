"""A resumed run has the classes, label values and training images of the run that wrote its checkpoint."""

import json
from dataclasses import replace

import pytest
import yaml
from layouts import write_folder

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.specs import DATASETS
from msctr_hf.errors import UsageError
from msctr_hf.training.data_record import compare_data, describe_data, describe_validation
from msctr_hf.training.run_folder import write_json

SAME_RUNS = {
    "class names in another spelling": {"classes": ["Sky", "road ", "CAR"]},
    "the same label values, listed": {"label_values": {2: "car", 1: "road", 0: "sky"}},
    "other colors": {"palette": {"sky": "1,2,3"}},
}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data")


def record_of(folder, **description):
    """Record the data of a folder, after changes of its dataset.yaml."""
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **description}))
    return describe_data(get_dataset_spec("folder", folder), load_segmentation_dataset("folder", "train", folder))


@pytest.fixture
def checkpoint(folder, tmp_path):
    """A folder with the record of the data, as in a checkpoint."""
    write_json(tmp_path / "checkpoint/data.json", record_of(folder))
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("case", SAME_RUNS)
def test_what_changes_no_label_resumes_without_a_note(checkpoint, folder, case):
    assert compare_data(checkpoint, record_of(folder, **SAME_RUNS[case])) == []


def test_a_raw_value_that_would_have_ended_the_run_may_be_added(checkpoint, folder):
    notes = compare_data(checkpoint, record_of(folder, ignored=[255]))
    assert notes == ["the raw value 255 was refused and is ignored from here on."]


def test_names_that_differ_only_in_spelling_are_other_classes(folder, tmp_path):
    write_json(tmp_path / "checkpoint/data.json", record_of(folder, classes=["car", "Car", "sky"]))
    swapped = record_of(folder, classes=["Car", "car", "sky"])
    with pytest.raises(UsageError, match="class 0 was 'car' and is 'Car'; class 1 was 'Car' and is 'car'"):
        compare_data(tmp_path / "checkpoint", swapped)


def test_values_that_are_not_listed_are_described_as_such(folder, tmp_path):
    spec, training_set = get_dataset_spec("folder", folder), load_segmentation_dataset("folder", "train", folder)
    write_json(tmp_path / "checkpoint/data.json", describe_data(replace(spec, ignored=None), training_set))
    with pytest.raises(UsageError, match="other data: any unlisted raw value was ignored and is refused. Restore"):
        compare_data(tmp_path / "checkpoint", describe_data(spec, training_set))


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["Sky", "road ", "CAR"], "groups": {"ground": ["CAR", "road "]}},
        {"groups": {"ground": ["car", "road"]}},
    ],
)
def test_a_group_of_the_same_classes_keeps_the_best_score(folder, change):
    def described(**description):
        record_of(folder, **description)
        validation_set = load_segmentation_dataset("folder", "validation", folder)
        return describe_validation(get_dataset_spec("folder", folder), validation_set, "ground")

    assert described(groups={"ground": ["road", "car"]}) == described(**change)


def test_differences_are_listed_with_the_names_of_the_classes(checkpoint, folder):
    values = {7: "sky", 8: "road", 0: "car"}
    with pytest.raises(UsageError) as refused:
        compare_data(checkpoint, record_of(folder, label_values=values, ignored=[1]))
    sentence = str(refused.value)
    assert "the raw value 0 was 'sky' and is 'car'; the raw value 1 was 'road' and is ignored; the raw" in sentence
    assert "the raw value 2 was 'car' and is refused. Restore the data set" in sentence


@pytest.mark.parametrize("predecode", [False, True])
def test_a_folder_and_its_copy_are_the_same_data(run_script, checkpoint, folder, tmp_path, predecode):
    copy = tmp_path / "copy"
    options = ["--dataset", "folder", "--data_dir", folder, "--num_workers", "0", "--output_dir", copy]
    assert run_script("prepare_dataset.py", *options, "--predecode", str(predecode))[0] == 0
    assert record_of(copy) == record_of(folder)
    assert compare_data(checkpoint, record_of(copy)) == []


def test_a_stream_has_classes_and_label_values_but_no_images(folder, tmp_path, run_script):
    options = ["--dataset", "folder", "--data_dir", folder, "--num_workers", "0", "--output_dir", tmp_path / "copy"]
    assert run_script("prepare_dataset.py", *options)[0] == 0
    stream = load_segmentation_dataset("folder", "train", tmp_path / "copy", streaming=True)
    spec = get_dataset_spec("folder", tmp_path / "copy")
    record = describe_data(spec, stream)
    assert (record["training"], record["classes"]) == (None, ["sky", "road", "car"])
    write_json(tmp_path / "data.json", record)
    assert compare_data(tmp_path, record) == []
    swapped = describe_data(replace(spec, label_values={0: 1, 1: 0, 2: 2}), stream)
    with pytest.raises(UsageError, match="the raw value 0 was 'sky' and is 'road'"):
        compare_data(tmp_path, swapped)


@pytest.mark.parametrize("name", DATASETS)
def test_the_record_of_every_data_set_survives_json_and_equals_itself(tmp_path, name):
    scenes = load_segmentation_dataset("synthetic_scenes", "validation")
    record = describe_data(DATASETS[name], scenes)
    write_json(tmp_path / "data.json", record)
    assert compare_data(tmp_path, json.loads(json.dumps(record))) == []
