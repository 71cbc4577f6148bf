"""A tiny experiment is trained, scored and judged by real processes, and the command of a row repeats its run."""

import shlex
import sys

import forked
import numpy as np
import pytest
from interrupted_run import ENVIRONMENT
from layouts import write_folder
from PIL import Image
from simulated import confirmation
from small_run import flags

from experiments.evidence import provenance
from experiments.evidence.bench import Options, run_experiment
from experiments.evidence.video_scores import video_of
from msctr_hf.evaluation.predictor import load_predictor
from msctr_hf.training.run_folder import read_json


def mean_iou(matrix):
    both = np.diag(matrix)
    either = matrix.sum(0) + matrix.sum(1) - both
    return np.mean((both / either)[either > 0])


def confusions(model, folder, names):
    """Count pixels in plain loops over images: the matrix of all, and of every video."""
    predictor, matrices = load_predictor(str(model), device="cpu"), {}
    for name in names:
        image = Image.open(folder / f"val/images/{name}.jpg").convert("RGB")
        labels = np.asarray(Image.open(folder / f"val/labels/{name}.png"))
        prediction = next(iter(predictor([image])))
        for key in ("all", name.rpartition("_")[0]):
            matrix = matrices.setdefault(key, np.zeros((3, 3), dtype=int))
            np.add.at(matrix, (labels.ravel(), prediction.ravel()), 1)
    return matrices


@pytest.mark.slow
def test_an_experiment_is_trained_scored_and_judged(tmp_path, monkeypatch, run_script):
    monkeypatch.setattr(provenance, "hash_of_code", lambda: "0" * 16)
    monkeypatch.setattr(provenance, "refuse_uncommitted", lambda path: None)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    parts = {split: {"images": f"{split}/images", "labels": f"{split}/labels"} for split in ("train", "val")}
    splits = {"train": parts["train"], "validation": parts["val"], "test": parts["val"]}
    folder = write_folder(tmp_path / "data", num_train=6, num_validation=3, description={"splits": splits})
    names = ["day_0", "day_1", "night_0"]
    for number, name in enumerate(names):
        for kind in ("images/{}.jpg", "labels/{}.png"):
            (folder / "val" / kind.format(number)).rename(folder / "val" / kind.format(name))
    common = flags(folder, None, validation_steps=None, mixed_precision="no", checkpointing_steps=4)
    confirmation(
        tmp_path,
        flags=shlex.join(common),
        seeds=[7],
        arms={"chosen": {"run": "ms_cs", "control": "placebo"}, "ce_time": {"run": "ce", "equal_time": True}},
        groups={"small": ["car"]},
    )
    options = Options(tmp_path / "runs", (), parallel=2, results=tmp_path / "results")
    with monkeypatch.context() as patch:  # all processes of the experiment are forked
        patch.setattr(sys, "executable", str(forked.write_executable(tmp_path / "python", ENVIRONMENT)))
        run_experiment(tmp_path / "simulated.yaml", options)

    (chosen,) = tmp_path.glob("runs/*/chosen/seed_7")
    record = read_json(tmp_path / "results/simulated/runs/chosen_seed_7.json")
    matrices = confusions(chosen / "last", folder, names)
    assert record["mean_iou"] == pytest.approx(mean_iou(matrices["all"]), abs=1e-12)
    for video in ("day", "night"):
        assert record["videos"][video]["mean_iou"] == pytest.approx(mean_iou(matrices[video]), abs=1e-12)
    assert record["groups"]["small"] == record["per_category_iou"]["car"]
    assert 0 <= record["mean_boundary_iou"] <= 1
    assert record["machine"]["threads"] == 1
    assert record["device"].endswith("1 thread(s)")
    assert not (chosen / "checkpoints").exists()
    baseline = read_json(tmp_path / "results/simulated/runs/ce_time_seed_7.json")
    assert (record["max_steps"], baseline["max_steps"]) == (4, 6)
    primary = read_json(tmp_path / "results/simulated/verdict.json")["primary"]
    assert primary["mean"] == pytest.approx(100 * (record["mean_iou"] - baseline["mean_iou"]))
    assert (primary["n"], primary["low"], primary["p_sign_flip"], primary["shown"]) == (1, None, None, False)

    words = [str(folder) if word == "DATA_DIR" else word for word in shlex.split(record["command"])[2:]]
    code, _, error = run_script("control.py", *words, "--output_dir", tmp_path / "alone")
    assert code == 0, error
    assert read_json(tmp_path / "alone/results.json") == read_json(chosen / "results.json")


@pytest.mark.parametrize("image_id, video", [("0001TP_008550", "0001TP"), ("a/b_2/c_1_9", "c_1"), ("scene", "scene")])
def test_a_video_is_what_comes_before_the_last_underscore(image_id, video):
    assert video_of(image_id) == video
