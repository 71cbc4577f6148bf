"""Training on a few small images: the files of a run, resuming, options, replacing a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from conftest import ROOT
from interrupted_run import finish, start, two_processes
from layouts import write_folder
from PIL import Image
from safetensors.torch import load_file
from small_run import flags

from msctr_hf import MsctrForSemanticSegmentation
from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.training import meter, train
from msctr_hf.training.checkpointing import find_checkpoint
from msctr_hf.training.loop import TrainingLoop


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_train=6, num_validation=3)


def test_training_writes_a_complete_folder(run_script, folder, tmp_path):
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


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(run_script, folder, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run_script("train.py", *flags(folder, whole, max_steps=5))[0] == 0
    # an epoch has 3 batches, so step 4 is within the second epoch
    assert run_script("train.py", *flags(folder, part, max_steps=5, resume=whole / "checkpoints/step_4"))[0] == 0
    expected, weights = (load_file(run / "last/model.safetensors") for run in (whole, part))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_training_starts_from_a_saved_model_with_other_classes(run_script, folder, tmp_path):
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
        {"channels_last": True, "mixed_precision": "bf16", "ema": True, "tf32": True},
        {"freeze_backbone": True, "optimizer": "sgd", "schedule": "constant"},
        {"activation_checkpointing": True, "backbone_learning_rate_factor": 0.1},
        {"repeat_factor_threshold": 0.9, "train_split": "train+validation", "batch_size": 9},
    ],
    ids=[
        "bf16 ce",
        "accumulation and clipping",
        "channels last",
        "frozen",
        "checkpointing",
        "repeat factors and two splits",
    ],
)
def test_training_works_with_options_of_precision_optimizer_network_and_data(run_script, folder, tmp_path, changes):
    code, _, error = run_script("train.py", *flags(folder, tmp_path / "run", **{"max_steps": 1, **changes}))
    assert code == 0, error


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_copy_can_be_trained_and_evaluated_on(run_script, folder, tmp_path, streaming):
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


def test_the_folder_of_another_run_is_replaced_only_on_request(run_script, folder, tmp_path):
    run = tmp_path / "run"
    assert run_script("train.py", *flags(folder, run, max_steps=1))[0] == 0
    before = (run / "model.safetensors").read_bytes()
    code, _, error = run_script("train.py", *flags(folder, run, max_steps=1, seed=1))
    assert (code, "holds another run" in error) == (2, True)
    assert (run / "model.safetensors").read_bytes() == before
    code, _, error = run_script("train.py", *flags(folder, folder, max_steps=1, overwrite_output_dir=True))
    assert (code, "does not hold a run" in error) == (2, True)
    assert (folder / "dataset.yaml").exists()
    assert run_script("train.py", *flags(folder, run, max_steps=1, seed=1, overwrite_output_dir=True))[0] == 0
    assert (run / "model.safetensors").read_bytes() != before


@pytest.mark.slow
def test_two_processes_compute_the_same_scores_as_one_process(folder, tmp_path):
    def run_to_its_end(script, *arguments, launcher):
        code, output = finish(start(*arguments, launcher=launcher, script=ROOT / "scripts" / script))
        assert code == 0, output

    run = tmp_path / "run"
    settings = {"batch_size": 2, "max_steps": 2, "contrastive_gather_anchors": True, "repeat_factor_threshold": 0.9}
    run_to_its_end("train.py", *flags(folder, run, **settings), launcher=two_processes())
    score = ["--model", run, "--dataset", "folder", "--data_dir", folder, "--device", "cpu", "--num_workers", "0"]
    run_to_its_end("evaluate.py", *score, "--output_dir", tmp_path / "one", launcher=())
    run_to_its_end("evaluate.py", *score, "--output_dir", tmp_path / "two", launcher=two_processes())
    in_training, one, two = (
        json.loads((f / "results.json").read_text()) for f in (run, tmp_path / "one", tmp_path / "two")
    )
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy"):
        assert in_training[name] == one[name] == two[name]


def spoil(monkeypatch, spoiled):
    """Let augmentation return NaN for the images that `spoiled(image)` selects."""
    augment = TrainingAugmentation.__call__

    def spoiling(self, image, label, random):
        pixel_values, labels = augment(self, image, label, random)
        return pixel_values * (float("nan") if spoiled(image) else 1), labels

    monkeypatch.setattr(TrainingAugmentation, "__call__", spoiling)


def first_of(folder):
    spoiled = np.asarray(Image.open(folder / "train/images/0.jpg"))
    return lambda image: np.array_equal(image, spoiled)


@pytest.mark.parametrize("ema", [False, True])
def test_a_step_that_is_not_finite_is_skipped_and_its_images_are_named(run_script, folder, tmp_path, monkeypatch, ema):
    spoil(monkeypatch, first_of(folder))
    code, out, error = run_script("train.py", *flags(folder, tmp_path / "run", max_steps=6, ema=ema))
    assert code == 0, error
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    skipped = [entry for entry in log if "skipped" in entry]
    assert len(skipped) == 2  # once in each of the two epochs
    for entry in skipped:
        assert "0" in entry["images"]
        assert len(entry["images"]) == 2
        assert "loss" in entry["not_finite"]
    assert "was skipped; not finite: " in out
    assert log[-1].get("skipped_steps", log[-2].get("skipped_steps")) == 2
    for saved in ("last", "."):
        state = load_file(tmp_path / "run" / saved / "model.safetensors")
        assert all(torch.isfinite(value).all() for value in state.values())


def test_too_many_faulty_steps_in_a_row_end_the_run_with_a_report(run_script, folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert run_script("train.py", *flags(folder, run, max_steps=2))[0] == 0
    expected = load_file(run / "last/model.safetensors")
    spoil(monkeypatch, lambda image: True)
    code, _, error = run_script("train.py", *flags(folder, run, max_steps=50, resume="auto", max_skipped_steps=4))
    assert code == 2
    assert "4 steps in a row were skipped, up to step 6: " in error.strip().splitlines()[-1]
    report = json.loads((run / "not_finite.json").read_text())
    assert report["step"] == 6
    assert len(report["images"]) == 2
    checkpoint = load_file(find_checkpoint(run, "auto") / "model.safetensors")
    assert all(torch.equal(checkpoint[name], value) for name, value in expected.items())


def test_a_run_without_anchors_warns(run_script, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "BATCHES_WITHOUT_ANCHORS", 3)
    with pytest.warns(UserWarning, match="No anchors in the last 3 batches"):
        run_script("train.py", *flags(folder, tmp_path / "run", contrastive_min_anchors_per_class=10_000))


def test_a_dry_run_tries_everything_and_leaves_nothing(run_script, folder, tmp_path):
    code, out, error = run_script("train.py", *flags(folder, tmp_path / "runs/run", max_steps=1000, dry_run=True))
    assert code == 0, error
    assert "dry run: training, validation, saving and loading work" in out
    assert "1000 steps take about" in out
    assert not any(tmp_path.glob("runs/*")), list(tmp_path.rglob("*"))
    assert not any(tmp_path.glob("runs/.*"))


@pytest.mark.parametrize("is_installed", [True, False])
def test_a_dry_run_checks_that_a_tracker_is_installed_but_starts_no_run_there(
    run_script, folder, tmp_path, monkeypatch, is_installed
):
    if is_installed:
        packages = tmp_path / "packages"
        (packages / "wandb").mkdir(parents=True)
        (packages / "wandb/__init__.py").write_text(f"def init(**_):\n    open({str(tmp_path / 'started')!r}, 'w')\n")
        monkeypatch.syspath_prepend(packages)
        monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])  # found when accelerate was imported
    code, out, error = run_script("train.py", *flags(folder, tmp_path / "run", dry_run=True, report_to="wandb"))
    assert not (tmp_path / "started").exists()
    assert not (tmp_path / "run").exists()
    if is_installed:
        assert code == 0, error
        assert "dry run: training, validation, saving and loading work" in out
    else:
        assert (code, error.count("needs the package: pip install wandb")) == (2, 1), error


def test_profiling_writes_a_trace(run_script, folder, tmp_path):
    settings = {"profile": True, "max_steps": 11, "validation_steps": 11, "checkpointing_steps": 11}
    assert run_script("train.py", *flags(folder, tmp_path / "run", **settings))[0] == 0
    trace = json.loads((tmp_path / "run/profile/trace_0.json").read_text())
    assert any("conv" in event.get("name", "") for event in trace["traceEvents"])
    assert "aten::" in (tmp_path / "run/profile/operators_0.txt").read_text()


def test_the_average_of_the_weights_is_validated_and_saved(run_script, folder, tmp_path):
    runs = {"plain": {}, "without_memory": {"ema": True, "ema_decay": 0.0}, "averaged": {"ema": True}}
    weights = {}
    for name, settings in runs.items():
        assert run_script("train.py", *flags(folder, tmp_path / name, max_steps=6, **settings))[0] == 0
        weights[name] = load_file(tmp_path / name / "last/model.safetensors")
    # statistics of normalization belong to the weights that they were computed with, and are averaged like them
    statistics = next(name for name in weights["plain"] if name.endswith("running_var"))
    for key in ("decode_head.classifier.weight", statistics):
        assert torch.equal(weights["plain"][key], weights["without_memory"][key])
        assert not torch.equal(weights["plain"][key], weights["averaged"][key])


def test_a_run_describes_itself_and_its_config_starts_it_again(run_script, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_averysecrettoken")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    first, second = tmp_path / "first", tmp_path / "second"
    settings = {"max_steps": 2, "contrastive_cross_scale_pairs": "[[0,3]]", "contrastive_cross_scale_weights": "[0.5]"}
    # without the line, no_decay is an empty list, which config.yaml must write too
    recipe = (ROOT / "configs/quickstart.yaml").read_text().replace("no_decay: [norm]\n", "")
    (tmp_path / "recipe.yaml").write_text(recipe)
    settings["config"] = tmp_path / "recipe.yaml"
    assert run_script("train.py", *flags(folder, first, **settings, dataset_revision="hf_averysecrettoken"))[0] == 0
    run = json.loads((first / "run.json").read_text())
    assert "--dataset_revision ***" in run["command"]
    assert run["environment"]["SLURM_JOB_ID"] == "17"
    assert {"git_commit", "git_changes", "versions", "device", "started"} <= set(run)
    for path in first.rglob("*"):
        assert not path.is_file() or b"averysecret" not in path.read_bytes(), path
    assert run_script("train.py", "--config", first / "config.yaml", "--output_dir", second)[0] == 0
    weights, expected = (load_file(each / "last/model.safetensors") for each in (second, first))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_run_is_restored_if_the_one_that_was_to_replace_it_fails(run_script, folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert run_script("train.py", *flags(folder, run, max_steps=2))[0] == 0
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for path in (folder / "train/images").iterdir():
        path.write_bytes(b"no image")
    code, _, error = run_script("train.py", *flags(folder, run, overwrite_output_dir=True))
    assert (code, "cannot be read" in error) == (2, True)
    assert {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_log_of_a_run_that_fails_before_it_saved_anything_is_kept(run_script, folder, tmp_path):
    run = tmp_path / "runs/run"
    (folder / "train/images/3.jpg").write_bytes(b"no image")
    settings = {"max_steps": 30, "checkpointing_steps": 30, "validation_steps": 30}
    code, _, error = run_script("train.py", *flags(folder, run, **settings, seed=1))
    assert (code, "3.jpg cannot be read" in error) == (2, True), error
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1]
    assert (run / "run.json").exists()


def test_a_replaced_run_is_restored_and_the_log_of_the_new_one_is_kept(run_script, folder, tmp_path):
    run = tmp_path / "runs/run"
    assert run_script("train.py", *flags(folder, run, max_steps=2))[0] == 0
    before = content(run)
    (folder / "train/images/3.jpg").write_bytes(b"no image")
    settings = {"max_steps": 30, "checkpointing_steps": 30, "validation_steps": 30, "seed": 1}
    code, _, error = run_script("train.py", *flags(folder, run, **settings, overwrite_output_dir=True))
    assert code == 2
    assert "holds the old run again, which was not replaced; the log of the new one is in" in error
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert content(run) == before
    assert sorted(path.name for path in run.parent.iterdir()) == [".run.failed_1", "run"]
    assert (run.parent / ".run.failed_1/log.jsonl").exists()


@pytest.mark.parametrize("next_start", [{"overwrite_output_dir": True}, {"resume": "auto"}], ids=str)
def test_a_start_that_is_killed_before_it_saved_anything_does_not_lose_the_old_run(
    run_script, folder, tmp_path, monkeypatch, next_start
):
    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    run = tmp_path / "runs/run"
    assert run_script("train.py", *flags(folder, run, max_steps=2))[0] == 0
    before = content(run)

    def kill(**changes):
        with monkeypatch.context() as patch:
            patch.setattr(TrainingLoop, "train_step", killed)
            patch.setattr(train, "_clean_up", lambda *_: None)  # a kill would not run it
            with pytest.raises(Killed):
                run_script("train.py", *flags(folder, run, max_steps=2, seed=1, **changes))

    kill(overwrite_output_dir=True)
    assert content(run.parent / ".run.replaced") == before
    code, _, error = run_script("train.py", *flags(folder, run, max_steps=2, seed=1))
    assert (code, "before it saved anything; rename it back" in error) == (2, True)
    kill(**next_start)
    assert content(run.parent / ".run.replaced") == before
    with monkeypatch.context() as patch:  # a start that fails restores it
        patch.setattr(TrainingLoop, "train_step", killed)
        with pytest.raises(Killed):
            run_script("train.py", *flags(folder, run, max_steps=2, seed=1, **next_start))
    assert content(run.parent) == {Path("run") / name: data for name, data in before.items()}


def test_a_replaced_run_is_removed_when_the_new_one_has_saved_a_checkpoint(run_script, folder, tmp_path, monkeypatch):
    run = tmp_path / "runs/run"
    assert run_script("train.py", *flags(folder, run, max_steps=2))[0] == 0
    existed, save = [], TrainingLoop.save_checkpoint

    def look_before_and_after(self):
        before = (run.parent / ".run.replaced").exists()
        save(self)
        existed.append((before, (run.parent / ".run.replaced").exists()))

    monkeypatch.setattr(TrainingLoop, "save_checkpoint", look_before_and_after)
    assert run_script("train.py", *flags(folder, run, max_steps=2, seed=1, overwrite_output_dir=True))[0] == 0
    assert existed == [(True, False)]
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_resuming_another_run_is_refused(run_script, folder, tmp_path):
    run = tmp_path / "run"
    assert run_script("train.py", *flags(folder, run, max_steps=2))[0] == 0
    code, _, error = run_script("train.py", *flags(folder, run, max_steps=4, resume="auto", seed=1, hidden_size=16))
    assert (code, "hidden_size was 8 and is 16; seed was 0 and is 1" in error) == (2, True)
    code, out, _ = run_script("train.py", *flags(folder, run, max_steps=4, resume="auto"))
    assert (code, "max_steps was 2 and is 4 from here on" in out) == (0, True)
