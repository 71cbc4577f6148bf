"""The whole road in small: train, the folder it leaves, continue, and what happens with wrong input."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from layouts import write_folder, write_labels
from safetensors.torch import load_file
from small_run import flags

from msctr_hf import MsctrForSemanticSegmentation


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=6, num_validation=3)


def test_training_leaves_a_complete_folder(run_script, folder, tmp_path):
    output = tmp_path / "run"
    code, out, _ = run_script("train.py", *flags(folder, output, report_to="tensorboard"))
    assert code == 0
    assert "mean" in out
    results = json.loads((output / "results.json").read_text())
    assert set(results["per_category_iou"]) == {"sky", "road", "car"}
    assert 0 <= results["mean_iou"] <= 1
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in log if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    for name in ("cross_entropy", "auxiliary", "contrastive/stage_1", "contrastive/stage_1_to_stage_4"):
        assert name in steps[0]
    for name in ("anchors", "classes", "positive_cosine"):
        assert f"contrastive/stage_1/{name}" in steps[0]
    assert [entry["step"] for entry in log if "validation/mean_iou" in entry] == [2, 4]
    run = json.loads((output / "run.json").read_text())
    assert run["settings"]["learning_rate"] == 0.001
    assert torch.__version__.startswith(run["versions"]["torch"])
    assert (output / "predictions.png").exists()
    assert list((output / "tensorboard").rglob("events.*"))
    for saved in (output, output / "last"):
        model = MsctrForSemanticSegmentation.from_pretrained(saved)
        assert model.config.id2label == {0: "sky", 1: "road", 2: "car"}
        assert (saved / "preprocessor_config.json").exists()
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step_2", "step_4"]


def test_continued_run_ends_with_the_weights_of_an_uninterrupted_one(run_script, folder, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run_script("train.py", *flags(folder, whole, max_steps=5))[0] == 0
    # 3 batches an epoch: step 4 lies inside the second
    assert run_script("train.py", *flags(folder, part, max_steps=5, resume=whole / "checkpoints/step_4"))[0] == 0
    expected, weights = (load_file(run / "last/model.safetensors") for run in (whole, part))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_starts_from_a_saved_model_with_other_classes(run_script, folder, tmp_path):
    assert run_script("train.py", *flags(folder, tmp_path / "first", max_steps=1))[0] == 0
    description = {"classes": ["a", "b", "c", "d"]}
    other = write_folder(tmp_path / "other", num_train=4, description=description)
    start = {"model_name_or_path": tmp_path / "first", "max_steps": 1, "class_weights": "[1,1,1,1]"}
    code, _, error = run_script("train.py", *flags(other, tmp_path / "second", **start))
    assert code == 0, error
    assert MsctrForSemanticSegmentation.from_pretrained(tmp_path / "second").config.num_labels == 4
    code, _, error = run_script("train.py", *flags(other, tmp_path / "third", hidden_size=16, **start))
    assert (code, "describe another network" in error) == (2, True)
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"contrastive_mode": "ce", "mixed_precision": "bf16"},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "max_steps": 2},
        {"freeze_backbone": True, "optimizer": "sgd", "schedule": "constant"},
        {"activation_checkpointing": True, "backbone_learning_rate_factor": 0.1},
        {"repeat_factor_threshold": 0.9, "train_split": "train+validation", "batch_size": 9},
    ],
    ids=["bf16 ce", "accumulation and clipping", "frozen", "checkpointing", "repeat factors and two splits"],
)
def test_options_train(run_script, folder, tmp_path, changes):
    code, _, error = run_script("train.py", *flags(folder, tmp_path / "run", **{"max_steps": 1, **changes}))
    assert code == 0, error


@pytest.mark.parametrize("streaming", [False, True])
def test_trains_and_scores_on_a_parquet_copy(run_script, folder, tmp_path, streaming):
    options = ["--dataset", "folder", "--data_dir", folder, "--num_workers", "0"]
    assert run_script("prepare_dataset.py", *options, "--output_dir", tmp_path / "copy")[0] == 0
    run = tmp_path / "run"
    code, out, error = run_script("train.py", *flags(tmp_path / "copy", run, streaming=streaming))
    assert code == 0, error
    assert ("streamed" in out) == streaming
    scores = []
    for data_dir, stream in ((tmp_path / "copy", streaming), (folder, False)):
        common = [
            "--model",
            run,
            "--dataset",
            "folder",
            "--data_dir",
            data_dir,
            "--device",
            "cpu",
            "--num_workers",
            "0",
        ]
        assert run_script("evaluate.py", *common, "--streaming", stream, "--output_dir", tmp_path / "scores")[0] == 0
        scores.append(json.loads((tmp_path / "scores/results.json").read_text())["mean_iou"])
    assert scores[0] == scores[1]


def other_labels(folder):
    for path in (folder / "train/labels").iterdir():
        write_labels(path, torch.full((40, 56), 9, dtype=torch.uint8).numpy())


def smaller_labels(folder):
    for path in (folder / "train/labels").iterdir():
        write_labels(path, torch.zeros(20, 56, dtype=torch.uint8).numpy())


def broken_pictures(folder):
    for path in (folder / "train/images").iterdir():
        path.write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (None, {"data_dir": "/no/such/folder"}, "no/such/folder"),
        (lambda folder: (folder / "train/labels/0.png").unlink(), {}, "no label"),
        (smaller_labels, {}, "same size"),
        (other_labels, {}, "label values [9]"),
        (broken_pictures, {}, "cannot be read"),
        (broken_pictures, {"num_workers": 1}, "cannot be read"),
        (None, {"contrastive_temprature": 0.1}, "contrastive_temprature"),
        (None, {"max_steps": "many"}, "max_steps"),
        (None, {"hidden_size": "wide"}, "hidden_size"),
        (None, {"contrastive_mode": "all"}, "contrastive_mode"),
        (None, {"dataset": "cityscape"}, "There is no data set 'cityscape'"),
        (None, {"backbone": "resnet1"}, "resnet1"),
        (None, {"backbone_weights": "/no/file.pth"}, "no file /no/file.pth"),
        (None, {"backbone_weights": "hub"}, "--backbone_weights FILE"),
        (None, {"batch_size": 100}, "lower --batch_size"),
        (None, {"crop_size": "32"}, "crop_size"),
        (None, {"report_to": "paper"}, "tensorboard"),
        (None, {"model_name_or_path": "/no/model"}, "/no/model"),
        (None, {"resume": "/no/checkpoint"}, "no complete checkpoint"),
        (None, {"config": "/no/config.yaml"}, "no file /no/config.yaml"),
        (None, {"id_map": "seven"}, "--id_map must look like"),
        (None, {"streaming": True}, "--streaming reads parquet"),
        (None, {"repeat_factor_threshold": 2}, "repeat_factor_threshold"),
        (None, {"corrections": "/no/corrections.csv"}, "--corrections"),
    ],
)
def test_wrong_input_gets_one_sentence_and_leaves_nothing(run_script, folder, tmp_path, damage, changes, message):
    if damage:
        damage(folder)
    code, _, error = run_script("train.py", *flags(folder, tmp_path / "run", **changes))
    assert code == 2
    last_line = error.strip().splitlines()[-1]
    assert message in last_line
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_stepz: 3", "unknown key `max_stepz`. Did you mean `max_steps`?"),
        ("max_steps: [1, 2]", "max_steps"),
        ("- a", "key: value"),
        ("a: [", "no valid YAML"),
    ],
)
def test_faulty_configuration_file_gets_one_sentence(run_script, tmp_path, content, message):
    (tmp_path / "config.yaml").write_text(content)
    code, _, error = run_script("train.py", "--config", tmp_path / "config.yaml")
    assert code == 2
    assert message in error.strip().splitlines()[-1]


def test_weights_that_do_not_fit_leave_nothing(run_script, folder, tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    code, _, error = run_script(
        "train.py", *flags(folder, tmp_path / "run", backbone_weights=tmp_path / "weights.pth")
    )
    assert (code, "does not fit" in error) == (2, True)
    assert not (tmp_path / "run").exists()


def test_folder_of_another_run_is_kept(run_script, folder, tmp_path):
    run = tmp_path / "run"
    assert run_script("train.py", *flags(folder, run, max_steps=1))[0] == 0
    before = (run / "model.safetensors").read_bytes()
    code, _, error = run_script("train.py", *flags(folder, run, max_steps=1, seed=1))
    assert (code, "holds another run" in error) == (2, True)
    assert (run / "model.safetensors").read_bytes() == before
    code, _, error = run_script("train.py", *flags(folder, folder, max_steps=1, overwrite_output_dir=True))
    assert (code, "holds no run" in error) == (2, True)
    assert (folder / "dataset.yaml").exists()
    assert run_script("train.py", *flags(folder, run, max_steps=1, seed=1, overwrite_output_dir=True))[0] == 0
    assert (run / "model.safetensors").read_bytes() != before


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(folder, tmp_path):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29613"]
    subprocess.run(
        [*torchrun, ROOT / "scripts/train.py",
         *flags(folder, run, batch_size=2, max_steps=2, num_workers=0, contrastive_gather_anchors=True,
                 repeat_factor_threshold=0.9)],
        env=environment, check=True, timeout=300,
    )  # fmt: skip
    score = ["--model", run, "--dataset", "folder", "--data_dir", folder, "--device", "cpu", "--num_workers", "0"]
    evaluate = [ROOT / "scripts/evaluate.py", *score, "--output_dir"]
    subprocess.run([sys.executable, *evaluate, tmp_path / "one"], env=environment, check=True, timeout=300)
    subprocess.run([*torchrun, *evaluate, tmp_path / "two"], env=environment, check=True, timeout=300)
    in_training, one, two = (
        json.loads((f / "results.json").read_text()) for f in (run, tmp_path / "one", tmp_path / "two")
    )
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy"):
        assert in_training[name] == one[name] == two[name]
