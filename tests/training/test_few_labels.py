"""A run on a part of the training images, with every option of the contrast: files, log, card, resuming."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from layouts import write_folder
from safetensors.torch import load_file

import msctr_hf
from msctr_hf.data.channels import Channels
from msctr_hf.data.loading import get_dataset_spec, replace_channels
from msctr_hf.data.preparation import prepare
from msctr_hf.data.saved_source import SavedDataset
from msctr_hf.data.settings import DataSettings
from msctr_hf.errors import UsageError
from msctr_hf.training.channel_statistics import choose_statistics

SMALL = {
    "dataset": "folder", "crop_size": (32, 32), "hidden_size": 8, "auxiliary_hidden_size": 8, "projection_dim": 8,
    "class_weights": [1, 1, 1], "batch_size": 2, "max_steps": 4, "validation_steps": 4, "checkpointing_steps": 2,
    "logging_steps": 1, "num_workers": 0, "report_to": "none", "seed": 3, "train_images": 5,
    "contrastive_anchor_selection": "hard", "contrastive_positives": "any", "contrastive_warmup_steps": 2,
    "contrastive_schedule": "linear", "contrastive_min_anchors_per_class": 1,
}  # fmt: skip


def train(data, run, **changes):
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    GradientState._reset_state()
    return msctr_hf.train("quickstart", **SMALL | changes, data_dir=data, output_dir=run)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), num_train=9, num_validation=2)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few") / "run"
    train(data, folder)
    return folder


def steps(run):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "images_per_second" in line]


def test_the_images_are_listed_in_run_json_and_in_the_card(run):
    drawn = json.loads((run / "run.json").read_text())["drawn_images"]
    assert (drawn["images"], drawn["of"], drawn["subset_seed"]) == (5, 9, 3)
    assert len(set(drawn["image_ids"])) == 5
    card = (run / "README.md").read_text()
    listed = ", ".join(drawn["image_ids"])
    assert f"| labeled images | 5 of 9 training images, drawn by seed 3: {listed} |" in card
    assert "| contrastive_anchor_selection | hard |" in card


def test_the_log_has_the_weight_and_the_share_of_hard_anchors(run):
    logged = steps(run)
    assert [line["contrastive/weight_factor"] for line in logged] == [0.5, 1.0, 1.0, 0.5]
    assert all(0 <= line["contrastive/stage_1/hard_share"] <= 1 for line in logged)


def test_a_resumed_run_has_the_same_images_weight_and_network(data, run, tmp_path):
    resumed = tmp_path / "resumed"
    train(data, resumed, resume=run / "checkpoints/step_2")
    drawn = [json.loads((each / "run.json").read_text())["drawn_images"] for each in (run, resumed)]
    assert drawn[0] == drawn[1]
    factors = [[line["contrastive/weight_factor"] for line in steps(each)] for each in (run, resumed)]
    assert factors[1] == factors[0][2:]
    weights = [load_file(each / "last/model.safetensors") for each in (run, resumed)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_images": 4}, "train_images was 5 and is 4"),
        ({"train_images": None}, "train_images was 5 and is None"),
        ({"subset_seed": 9}, "subset_seed was None and is 9"),
        ({"contrastive_schedule": "cosine"}, "contrastive_schedule was 'linear' and is 'cosine'"),
    ],
)
def test_a_run_is_not_resumed_on_other_images_or_with_another_weight(data, run, tmp_path, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        train(data, tmp_path / "resumed", resume=run / "checkpoints/step_2", **changes)


def test_more_images_than_there_are_end_the_run_before_its_folder_exists(data, tmp_path):
    with pytest.raises(UsageError, match="`train_images` must be at most 9"):
        train(data, tmp_path / "run", train_images=10)
    assert not (tmp_path / "run").exists()


def test_channels_are_measured_on_the_drawn_images_from_a_folder_and_from_its_copy(data, tmp_path):
    spec = replace_channels(get_dataset_spec("folder", data), Channels(3))
    prepare(spec, None, data, SavedDataset(), output_dir=tmp_path / "copy")
    found = []
    for folder in (data, tmp_path / "copy"):
        settings = DataSettings(dataset="folder", data_dir=str(folder), num_channels=3, train_images=2, num_workers=0)
        drawn, _ = settings.load_training(seed=0)
        found.append(choose_statistics(settings, drawn, None))
    assert found[0] == found[1]
    assert found[0].pixels == (2 * drawn[0]["label"].width * drawn[0]["label"].height,) * 3
