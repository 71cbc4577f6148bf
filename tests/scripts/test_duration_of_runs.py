"""Runs can be given a length in epochs, choose the best model by other scores, and stop early."""

import json
from hashlib import sha256

import pytest
import torch
import yaml
from conftest import ROOT
from interrupted_run import finish, start, two_processes
from layouts import write_folder
from safetensors.torch import load_file
from small_run import flags

from msctr_hf.training.checkpointing import find_checkpoint
from msctr_hf.training.run_folder import read_log
from msctr_hf.training.validation import ValidationResult

EPOCHS = {"max_steps": None, "checkpointing_steps": 100}


@pytest.fixture
def folder(tmp_path):
    """Write a data set of three batches per epoch, whose classes form groups."""
    groups = {"ground": ["road"], "rest": ["sky", "car"]}
    description = {"classes": ["sky", "road", "car"], "groups": groups}
    return write_folder(tmp_path / "data", num_train=6, num_validation=3, description=description)


def validated(run):
    return [entry["step"] for entry in read_log(run) if "validation/mean_iou" in entry]


def last_step(run):
    return max(entry["step"] for entry in read_log(run))


def assert_same_weights(run, expected):
    for name in ("last", "."):
        weights, reference = (load_file(each / name / "model.safetensors") for each in (run, expected))
        assert all(torch.equal(weights[key], reference[key]) for key in reference)


def test_the_flag_num_train_epochs_replaces_the_max_steps_of_a_recipe(run_script, folder, tmp_path):
    run, again, longer = tmp_path / "run", tmp_path / "again", tmp_path / "longer"
    recipe = (ROOT / "configs/quickstart.yaml").read_text().replace("validation_steps: 480\n", "")
    assert "max_steps: 480" in recipe
    (tmp_path / "recipe.yaml").write_text(recipe)
    settings = {**EPOCHS, "config": tmp_path / "recipe.yaml", "validation_steps": None}
    code, out, error = run_script("train.py", *flags(folder, run, **settings, num_train_epochs=1.5))
    assert code == 0, error
    assert "5 steps, 1.7 epochs, validation every 3 steps" in out
    assert (last_step(run), validated(run)) == (5, [3, 5])
    description = json.loads((run / "run.json").read_text())
    duration = {"max_steps": 5, "validation_steps": 3, "batches_per_epoch": 3, "num_epochs": 5 / 3}
    assert description["duration"] == duration
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["num_train_epochs"] == 1.5
    assert not {"max_steps", "validation_steps"} & set(config)

    assert run_script("train.py", "--config", run / "config.yaml", "--output_dir", again)[0] == 0
    assert_same_weights(again, run)
    assert run_script("train.py", "--config", run / "config.yaml", "--output_dir", longer, "--max_steps", 2)[0] == 0
    assert last_step(longer) == 2

    code, out, error = run_script("train.py", *flags(folder, run, **settings, num_train_epochs=2, resume="auto"))
    assert code == 0, error
    assert "num_train_epochs was 1.5 and is 2.0 from here on." in out
    assert (last_step(run), validated(run)) == (6, [3, 5, 6])


@pytest.mark.slow
def test_two_processes_share_the_steps_of_an_epoch_and_end_early_together(folder, tmp_path):
    run = tmp_path / "run"
    settings = {**EPOCHS, "num_train_epochs": 40, "validation_steps": 1, "early_stopping_patience": 2}
    settings |= {"optimizer": "sgd", "learning_rate": 0}  # scores change with the statistics only, and soon not at all
    code, output = finish(start(*flags(folder, run, **settings), launcher=two_processes()))
    assert code == 0, output
    assert "40 steps, 40.0 epochs" in output  # 6 images in batches of 2 x 2
    assert output.count("validations, so training ends early") == 1
    assert last_step(run) < 40
    assert (run / "last/model.safetensors").exists()


def test_a_recipe_with_both_steps_and_epochs_is_refused(run_script, folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text("max_steps: 3\nnum_train_epochs: 2\n")
    code, _, error = run_script("train.py", "--config", tmp_path / "recipe.yaml")
    assert code == 2
    assert "recipe.yaml sets both --max_steps and --num_train_epochs." in error


def test_a_stream_cannot_be_trained_for_a_number_of_epochs(run_script, folder, tmp_path):
    options = ["--dataset", "folder", "--data_dir", folder, "--num_workers", "0"]
    assert run_script("prepare_dataset.py", *options, "--output_dir", tmp_path / "copy")[0] == 0
    for further in ({}, {"dry_run": True}):
        stream = {**EPOCHS, "streaming": True, "num_train_epochs": 2, **further}
        code, _, error = run_script("train.py", *flags(tmp_path / "copy", tmp_path / "run", **stream))
        assert code == 2
        assert "--num_train_epochs 2.0 counts passes over the training set" in error
        assert not (tmp_path / "run").exists()


def test_a_dry_run_estimates_the_steps_of_all_epochs(run_script, folder, tmp_path):
    settings = {**EPOCHS, "num_train_epochs": 9, "dry_run": True}
    code, out, error = run_script("train.py", *flags(folder, tmp_path / "run", **settings))
    assert code == 0, error
    assert "so 27 steps take about" in out


def test_a_global_batch_size_other_than_that_of_the_recipe_is_reported(run_script, folder, tmp_path):
    settings = {"max_steps": 1, "global_batch_size": 16, "gradient_accumulation_steps": 3}
    _, out, _ = run_script("train.py", *flags(folder, tmp_path / "run", **settings))
    assert "a step sees 2 images x 3 batches x 1 process(es) = 6 images, but learning_rate 0.001 is meant for " in out
    assert "global_batch_size 16" in out
    _, out, _ = run_script("train.py", *flags(folder, tmp_path / "fitting", **{**settings, "global_batch_size": 6}))
    assert "meant for" not in out


@pytest.mark.parametrize(
    ("metric", "keys"), [("mean_accuracy", ["mean_accuracy"]), ("rest", ["groups", "rest", "mean_iou"])]
)
def test_the_best_model_is_the_one_with_the_largest_chosen_score(run_script, folder, tmp_path, metric, keys):
    run = tmp_path / "run"
    scores, logged = {}, set()

    def write_validation_to_scores(log, result, step, chosen):
        scores[step] = result.results
        logged.add(chosen)

    write_validation = "msctr_hf.training.logs.RunLog.write_validation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_validation, write_validation_to_scores)
        settings = {"max_steps": 6, "validation_steps": 1, "metric_for_best_model": metric}
        assert run_script("train.py", *flags(folder, run, **settings))[0] == 0

    def score(results):
        for key in keys:
            results = results[key]
        return results or 0.0

    assert (len(scores), logged) == (6, {metric})
    best = max(scores, key=lambda step: score(scores[step]))  # the first where several are equal
    results = json.loads((run / "results.json").read_text())
    assert results == {"step": best, **scores[best]}


@pytest.fixture
def never_better(monkeypatch):
    """Make all validations return the same score."""
    monkeypatch.setattr(ValidationResult, "score", lambda self, metric: 0.25)


def test_early_stopping_ends_a_run_and_holds_when_it_is_resumed(run_script, folder, tmp_path, never_better):
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    settings = {"max_steps": 9, "checkpointing_steps": 4, "checkpoints_kept": 9, "early_stopping_patience": 2}
    code, out, error = run_script("train.py", *flags(folder, run, **settings))
    assert code == 0, error
    assert "step 6: no new best mean_iou in the last 2 validations, so training ends early" in out
    assert validated(run) == [2, 4, 6]
    assert json.loads((run / "results.json").read_text())["step"] == 2
    assert find_checkpoint(run, "auto").name == "step_6"
    last = load_file(run / "last/model.safetensors")
    checkpoint = load_file(run / "checkpoints/step_6/model.safetensors")
    assert all(torch.equal(last[name], checkpoint[name]) for name in last)

    resume = run / "checkpoints/step_4"
    assert run_script("train.py", *flags(folder, resumed, **settings, resume=resume))[0] == 0
    assert last_step(resumed) == 6
    for name in last:
        assert torch.equal(load_file(resumed / "last/model.safetensors")[name], last[name])

    (run / "last/model.safetensors").unlink()  # as if the run had been killed before it saved this model
    code, out, error = run_script("train.py", *flags(folder, run, **settings, resume="auto"))
    assert code == 0, error
    assert "training ends early" in out
    assert last_step(run) == 6
    assert (run / "last/model.safetensors").exists()

    settings["early_stopping_patience"] = 3
    code, out, error = run_script("train.py", *flags(folder, run, **settings, resume="auto"))
    assert code == 0, error
    assert "early_stopping_patience was 2 and is 3 from here on." in out
    assert validated(run) == [2, 4, 6, 8]
    assert last_step(run) == 8


def test_a_checkpoint_of_an_older_version_can_be_resumed(run_script, folder, tmp_path):
    run = tmp_path / "run"
    assert run_script("train.py", *flags(folder, run, max_steps=2))[0] == 0
    checkpoint = run / "checkpoints/step_2"
    make_old(checkpoint)
    code, _, error = run_script("train.py", *flags(folder, run, max_steps=4, resume="auto"))
    assert code == 0, error
    whole = tmp_path / "whole"
    assert run_script("train.py", *flags(folder, whole, max_steps=4))[0] == 0
    assert validated(run) == [2, 4]
    assert_same_weights(run, whole)


def make_old(checkpoint):
    """Give a checkpoint the names and settings of a version without epochs, metrics and patience."""
    states = torch.load(checkpoint / "states.pt", weights_only=True)
    states["progress"]["best_mean_iou"] = states["progress"].pop("best_score")
    del states["progress"]["validations_without_best"]
    states["progress"]["batches_in_epoch"] = states["progress"].pop("images_in_epoch") // 2
    torch.save(states, checkpoint / "states.pt")
    progress = json.loads((checkpoint / "progress.json").read_text())["progress"]
    old = {"validated_step": 2, "best_mean_iou": progress["best_score"], "best_results": progress["best_results"]}
    checksum = sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
    (checkpoint / "progress.json").write_text(json.dumps({"progress": old, "sha256": checksum}))
    settings = json.loads((checkpoint / "settings.json").read_text())
    for name in ("num_train_epochs", "metric_for_best_model", "early_stopping_patience", "global_batch_size"):
        del settings[name]
    (checkpoint / "settings.json").write_text(json.dumps(settings))
    marker = json.loads((checkpoint / "COMPLETE").read_text())
    for name in ("states.pt", "settings.json"):
        content = (checkpoint / name).read_bytes()
        marker["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (checkpoint / "COMPLETE").write_text(json.dumps(marker))
