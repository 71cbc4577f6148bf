"""A validation in which nothing is labeled, or whose network is not finite, is reported and is not a score."""

import json

import numpy as np
import pytest
import torch
from layouts import write_folder
from PIL import Image
from safetensors.torch import load_file
from small_run import flags

from msctr_hf import MsctrForSemanticSegmentation
from msctr_hf.training.step_guard import StepGuard


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def validations(run):
    return {
        entry["step"]: {name: value for name, value in entry.items() if name.startswith("validation/")}
        for entry in log(run)
        if any(name.startswith("validation/") for name in entry)
    }


def same_weights(folder, other):
    weights, others = (load_file(each / "model.safetensors") for each in (folder, other))
    return all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture
def unlabeled(tmp_path):
    """A folder whose validation labels are all ignored."""
    folder = write_folder(tmp_path / "data", description={"ignored": [255]})
    for path in (folder / "val/labels").iterdir():
        Image.fromarray(np.full((40, 56), 255, np.uint8)).save(path)
    return folder


def test_where_nothing_is_labeled_the_newest_network_is_kept_without_a_score(run_script, unlabeled, tmp_path):
    run = tmp_path / "run"
    code, out, error = run_script("train.py", *flags(unlabeled, run, max_steps=6, early_stopping_patience=2))
    assert code == 0, error
    assert "0.00 %" not in out
    assert [step for step in (2, 4, 6) if f"step {step}: validation has no score, because its images have" in out] == [
        2, 4, 6,
    ]  # fmt: skip
    assert "no labeled pixel for mean_iou, so the newest model was kept, of step 6" in out
    assert {step: entry["validation/mean_iou"] for step, entry in validations(run).items()} == {
        2: None,
        4: None,
        6: None,
    }
    results = json.loads((run / "results.json").read_text())
    assert (results["step"], results["mean_iou"], results["without_score"]) == (6, None, "mean_iou")
    assert same_weights(run, run / "last")
    assert "0.00 %" not in (run / "README.md").read_text()


def test_a_group_without_a_labeled_pixel_is_not_a_score(run_script, tmp_path):
    groups = {"groups": {"vehicles": ["car"], "rest": ["sky", "road"]}}
    folder, run = write_folder(tmp_path / "data", description=groups), tmp_path / "run"
    for path in (folder / "val/labels").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) % 2).save(path)  # cars become sky
    settings = {"max_steps": 6, "metric_for_best_model": "vehicles", "report_to": "tensorboard"}
    code, out, error = run_script("train.py", *flags(folder, run, **settings))
    assert code == 0, error
    assert "no labeled pixel for vehicles, so the newest model was kept, of step 6" in out
    assert [entry["validation/vehicles"] for entry in validations(run).values()] == [None] * 3
    assert all(entry["validation/mean_iou"] is not None for entry in validations(run).values())
    assert json.loads((run / "results.json").read_text())["step"] == 6
    assert same_weights(run, run / "last")


def test_evaluate_refuses_images_without_a_labeled_pixel(run_script, unlabeled, tmp_path):
    model = tmp_path / "model"
    assert run_script("train.py", *flags(unlabeled, model, max_steps=1))[0] == 0
    code, out, error = run_script(
        "evaluate.py", "--model", model, "--dataset", "folder", "--data_dir", unlabeled, "--device", "cpu",
        "--num_workers", 0, "--output_dir", tmp_path / "scores",
    )  # fmt: skip
    assert (code, out) == (2, ""), out
    assert "the images of validation have no labeled pixel" in error
    assert not (tmp_path / "scores").exists()


@pytest.fixture
def overflowing(monkeypatch):
    """Make networks that are validated predict NaN after some steps; return the list of these steps."""
    steps, update, forward = [], StepGuard.update, MsctrForSemanticSegmentation.forward
    current = [0]

    def count(self, step, *arguments, **options):
        current[0] = step
        return update(self, step, *arguments, **options)

    def predict(self, *arguments, **options):
        output = forward(self, *arguments, **options)
        if not self.training and current[0] in steps:
            output.logits[:, 1, 0, 0] = float("nan")
        return output

    monkeypatch.setattr(StepGuard, "update", count)
    monkeypatch.setattr(MsctrForSemanticSegmentation, "forward", predict)
    return steps


@pytest.mark.parametrize("faulty", [[2], [2, 4, 6], [4], [6]])
def test_a_run_continues_after_a_validation_that_is_not_finite_and_never_keeps_it(
    run_script, tmp_path, overflowing, faulty
):
    folder, run = write_folder(tmp_path / "data"), tmp_path / "run"
    overflowing += faulty
    code, out, error = run_script("train.py", *flags(folder, run, max_steps=6))
    assert code == 0, error
    for step, entry in validations(run).items():
        assert ("validation/not_finite" in entry) == (step in faulty)
        assert ("validation/mean_iou" in entry) == (step not in faulty)
        sentence = f"step {step}: validation has no score. 0: The logits of the network are not finite (1 NaN of "
        assert (sentence in out) == (step in faulty)
    assert [entry["step"] for entry in log(run) if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert (run / "last/model.safetensors").exists()
    if len(faulty) == 3:
        assert "no validated network was finite, so there is no best model; the last is in" in out
        assert not (run / "results.json").exists()
        assert not (run / "model.safetensors").exists()
    else:
        assert json.loads((run / "results.json").read_text())["step"] not in faulty


def test_weights_that_become_faulty_are_reported_by_a_validation(run_script, tmp_path, monkeypatch):
    folder, run = write_folder(tmp_path / "data"), tmp_path / "run"
    update = StepGuard.update

    def update_and_poison(self, step, *arguments, **options):
        update(self, step, *arguments, **options)
        if step == 4:
            self.statistics[0].buffers[0].fill_(float("inf"))

    monkeypatch.setattr(StepGuard, "update", update_and_poison)
    code, out, error = run_script("train.py", *flags(folder, run, max_steps=4))
    assert code == 0, error
    assert "step 4: validation has no score. 1 of " in out
    assert "infinite" in validations(run)[4]["validation/not_finite"]
    assert json.loads((run / "results.json").read_text())["step"] == 2


def test_a_resumed_run_repeats_a_validation_that_is_not_finite(run_script, tmp_path, overflowing):
    folder, whole, part = write_folder(tmp_path / "data"), tmp_path / "whole", tmp_path / "part"
    overflowing += [2, 4]
    assert run_script("train.py", *flags(folder, whole, max_steps=6))[0] == 0
    assert run_script("train.py", *flags(folder, part, max_steps=6, checkpoints_kept=9))[0] == 0
    for step in (6, 4):
        (part / f"checkpoints/step_{step}/COMPLETE").unlink()
    code, _, error = run_script("train.py", *flags(folder, part, max_steps=6, checkpoints_kept=9, resume="auto"))
    assert code == 0, error
    assert validations(part) == validations(whole)
    assert same_weights(part, whole)
