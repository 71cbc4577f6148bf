"""A run is not resumed on other classes, label values or images, and best scores are of one validation set."""

import json
import shutil

import pytest
import torch
import yaml
from layouts import write_folder, write_image
from safetensors.torch import load_file
from small_run import flags

from msctr_hf.commands import train as train_command
from msctr_hf.training.checkpointing import Progress, load_progress, replace_progress


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=6, num_validation=3)


def describe(folder, **changes):
    """Change the dataset.yaml of a folder."""
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def train(run_script, folder, run, **settings):
    return run_script("train.py", *flags(folder, run, **{"max_steps": 4, **settings}))


def remove_images(folder, split, *numbers):
    for number in numbers:
        (folder / split / f"images/{number}.jpg").unlink()
        (folder / split / f"labels/{number}.png").unlink()


def rename_image(folder):
    (folder / "train/images/0.jpg").rename(folder / "train/images/9.jpg")
    (folder / "train/labels/0.png").rename(folder / "train/labels/9.png")


OTHER_RUNS = {
    "classes in another order": (
        lambda folder: describe(folder, classes=["road", "sky", "car"]),
        "class 0 was 'sky' and is 'road'; class 1 was 'road' and is 'sky'; the raw value 0 was 'sky' and is 'road'",
    ),
    "another class": (
        lambda folder: describe(folder, classes=["sky", "road", "bus"]),
        "class 2 was 'car' and is 'bus'",
    ),
    "one class more": (
        lambda folder: describe(folder, classes=["sky", "road", "car", "bus"]),
        "3 classes became 4",
    ),
    "one class less": (
        lambda folder: describe(folder, classes=["sky", "road"], ignored=[2]),
        "3 classes became 2; the raw value 2 was 'car' and is ignored",
    ),
    "swapped label values": (
        lambda folder: describe(folder, label_values={0: "road", 1: "sky", 2: "car"}),
        "other data: the raw value 0 was 'sky' and is 'road'; the raw value 1 was 'road' and is 'sky'. Restore",
    ),
    "fewer images": (
        lambda folder: remove_images(folder, "train", 0, 1),
        "the training set had 6 images and has 4",
    ),
    "another image": (rename_image, "the training set has 6 images as before, but others or in another order"),
}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A run of two steps of four, and its data."""
    root = tmp_path_factory.mktemp("started")
    write_folder(root / "data", num_train=6, num_validation=3)
    options = flags(root / "data", root / "run", max_steps=2)
    train_command.main([str(word) for word in options])
    return root


@pytest.fixture
def copied(started, tmp_path):
    """A copy of the run, and of its data, to be changed."""
    shutil.copytree(started, tmp_path / "started")
    return tmp_path / "started"


@pytest.mark.parametrize("case", OTHER_RUNS)
def test_another_run_is_refused_with_what_differs(run_script, copied, case):
    change, difference = OTHER_RUNS[case]
    change(copied / "data")
    before = {path: path.read_bytes() for path in (copied / "run").rglob("*") if path.is_file()}
    code, _, error = train(run_script, copied / "data", copied / "run", resume="auto")
    assert code == 2, error
    sentence = error.strip().splitlines()[-1]
    assert sentence.startswith("error: --resume: ")
    assert "belongs to a run on other data: " in sentence
    assert difference in sentence
    assert {path: path.read_bytes() for path in (copied / "run").rglob("*") if path.is_file()} == before


def test_a_checkpoint_without_a_record_resumes_with_one_sentence(run_script, copied):
    checkpoint = copied / "run/checkpoints/step_2"
    (checkpoint / "data.json").unlink()  # as an older version wrote it
    marker = json.loads((checkpoint / "COMPLETE").read_text())
    del marker["files"]["data.json"]
    (checkpoint / "COMPLETE").write_text(json.dumps(marker))
    remove_images(copied / "data", "train", 0)
    code, out, error = train(run_script, copied / "data", copied / "run", resume="auto")
    assert code == 0, error
    assert out.count("has no record of its classes and images, since an older version wrote it.") == 1


def best_results(run):
    return json.loads((run / "results.json").read_text())


def test_a_changed_validation_set_is_reported_and_best_scores_start_anew(run_script, copied):
    write_image(copied / "data/val/images/2.jpg", (40, 56), seed=77)
    remove_images(copied / "data", "val", 0)
    run = copied / "run"
    earlier = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert best_results(run)["images"] == 3
    code, out, error = train(run_script, copied / "data", run, resume="auto")
    assert code == 0, error
    assert out.count("the validation set had 3 images and has 2, so the best score starts anew.") == 1
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[0] == earlier[0]
    scores = {entry["step"]: entry["validation/mean_iou"] for entry in lines if "validation/mean_iou" in entry}
    assert list(scores) == [2, 4]  # the network of the checkpoint is validated again
    best = max(scores, key=lambda step: scores[step])
    results = best_results(run)
    assert (results["images"], results["step"], results["mean_iou"]) == (2, best, scores[best])

    code, out, error = train(run_script, copied / "data", run, resume="auto")
    assert (code, "starts anew" in out) == (0, False), error


def test_a_better_score_on_the_old_validation_set_does_not_keep_the_new_networks_out(run_script, copied):
    checkpoint = copied / "run/checkpoints/step_2"
    states = torch.load(checkpoint / "states.pt", weights_only=True)
    progress = Progress()
    progress.load_state_dict(states["progress"])
    load_progress(checkpoint, progress)
    progress.best_score = 0.99
    replace_progress(checkpoint, progress)
    remove_images(copied / "data", "val", 0)
    code, _, error = train(run_script, copied / "data", copied / "run", resume="auto")
    assert code == 0, error
    assert best_results(copied / "run")["images"] == 2


def test_a_group_with_other_classes_starts_the_best_score_anew(run_script, folder, tmp_path):
    describe(folder, groups={"ground": ["road"]})
    run, settings = tmp_path / "run", {"metric_for_best_model": "ground", "early_stopping_patience": 9}
    assert train(run_script, folder, run, max_steps=2, **settings)[0] == 0
    describe(folder, groups={"ground": ["road", "car"]})
    code, out, error = train(run_script, folder, run, resume="auto", **settings)
    assert code == 0, error
    assert "the classes of the group changed, so the best score starts anew." in out


def test_a_resumed_run_with_the_same_data_has_no_note_and_the_same_weights(run_script, copied, folder, tmp_path):
    assert train(run_script, copied / "data", tmp_path / "whole")[0] == 0
    code, out, error = train(run_script, copied / "data", copied / "run", resume="auto")
    assert code == 0, error
    assert not any(word in out for word in ("anew", "record", "from here on: the"))
    weights, expected = (load_file(run / "last/model.safetensors") for run in (copied / "run", tmp_path / "whole"))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
