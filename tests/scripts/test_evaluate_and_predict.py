import json

import numpy as np
import pytest
from layouts import write_folder, write_image
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor, load_segmentation_dataset
from msctr_hf.evaluation.mean_iou import ConfusionMatrix


@pytest.fixture
def model(tiny_config, tmp_path):
    config = tiny_config(num_labels=3, palette=[[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    MsctrForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    MsctrImageProcessor(size_divisor=32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", num_validation=3)


def test_evaluate_gives_the_scores_of_the_files_that_predict_writes(run_script, model, folder, tmp_path):
    view = ["--scales", "0.75", "1", "--flip"]
    code, out, error = run_script(
        "evaluate.py", "--model", model, "--dataset", "folder", "--data_dir", folder, "--num_workers", "0",
        "--device", "cpu", "--output_dir", tmp_path / "scores", *view,
    )  # fmt: skip
    assert code == 0, error
    assert "mean" in out
    results = json.loads((tmp_path / "scores/results.json").read_text())
    assert run_script("predict.py", "--model", model, "--input", folder / "val/images", "--output_dir",
                      tmp_path / "maps", "--device", "cpu", *view)[0] == 0  # fmt: skip
    confusion = ConfusionMatrix(3)
    for sample in load_segmentation_dataset("folder", "validation", folder):
        prediction = np.asarray(Image.open(tmp_path / "maps" / f"{sample['image_id']}.png"))
        confusion.update(prediction, np.asarray(sample["label"]))
    expected = confusion.scores()
    assert results["mean_iou"] == expected["mean_iou"]
    assert list(results["per_category_iou"]) == ["sky", "road", "car"]
    assert results["protocol"]["scales"] == [0.75, 1.0]
    assert results["split"] == "validation"
    assert results["images"] == 3


def test_batch_size_does_not_change_scores(run_script, model, folder, tmp_path):
    common = ["--model", model, "--dataset", "folder", "--data_dir", folder, "--num_workers", "0", "--device", "cpu"]
    results = []
    for batch_size in (1, 3):
        out = tmp_path / str(batch_size)
        assert run_script("evaluate.py", *common, "--batch_size", batch_size, "--output_dir", out)[0] == 0
        results.append(json.loads((out / "results.json").read_text())["mean_iou"])
    assert results[0] == pytest.approx(results[1], abs=1e-3)


def test_any_segmentation_model_of_transformers_can_be_scored(run_script, folder, tmp_path):
    config = SegformerConfig(
        num_labels=3, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "segformer")
    code, out, error = run_script(
        "evaluate.py", "--model", tmp_path / "segformer", "--dataset", "folder", "--data_dir", folder,
        "--num_workers", "0", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, error
    assert "car" in out


def test_prediction_writes_train_ids_and_overlays_at_the_size_of_the_image(run_script, model, tmp_path):
    write_image(tmp_path / "images/street.jpg", (45, 70))
    write_image(tmp_path / "images/below/house.png", (33, 32))
    code, out, _ = run_script(
        "predict.py", "--model", model, "--input", tmp_path / "images", "--output_dir", tmp_path / "maps",
        "--window_size", "32", "32", "--batch_size", "2", "--device", "cpu", "--dtype", "bfloat16",
    )  # fmt: skip
    assert (code, "2 image" in out) == (0, True)
    labels = Image.open(tmp_path / "maps/street.png")
    assert (labels.mode, labels.size) == ("P", (70, 45))
    assert labels.getpalette()[:9] == [255, 0, 0, 0, 255, 0, 0, 0, 255]
    assert np.asarray(labels).max() < 3
    overlay = Image.open(tmp_path / "maps/below/house_overlay.png")
    assert overlay.width == 32
    assert overlay.height > 33


def test_prediction_takes_several_inputs_and_writes_gray_files_on_request(run_script, model, tmp_path):
    for name in ("a.png", "b.png", "night/c.png", "day/d.png"):
        write_image(tmp_path / "images" / name)
    code, out, error = run_script(
        "predict.py", "--model", model, "--input", tmp_path / "images/a.png", tmp_path / "images/b.png",
        "--input", tmp_path / "images/nig*", f"--input={tmp_path / 'images/day'}", "--output_dir", tmp_path / "maps",
        "--palette", "false", "--batch_size", "2", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, error
    assert "4 image" in out
    names = ["a.png", "b.png", "d.png", "night/c.png"]
    assert {Image.open(tmp_path / "maps" / name).mode for name in names} == {"L"}


@pytest.mark.parametrize(
    ("script", "changes", "message"),
    [
        ("evaluate.py", {"model": "/no/model"}, "/no/model"),
        ("evaluate.py", {"dataset": "synthetic_scenes"}, "predicts 3 classes"),
        ("evaluate.py", {"dataset": "ade"}, "is unknown"),
        ("evaluate.py", {"split": "test"}, "splits"),
        ("evaluate.py", {"device": "cuda:77"}, "--device"),
        ("evaluate.py", {"batch_size": "0"}, "batch_size"),
        ("evaluate.py", {"window_size": "32"}, "window_size"),
        ("evaluate.py", {"dtype": "int8"}, "dtype"),
        ("predict.py", {"input": "/no/image.jpg"}, "/no/image.jpg"),
        ("predict.py", {"input": "/no/*.jpg"}, "--input: nothing matches '/no/*.jpg'"),
        ("predict.py", {"model": "/no/model"}, "/no/model"),
    ],
)
def test_wrong_input_is_reported_in_one_sentence(run_script, model, folder, tmp_path, script, changes, message):
    settings = {"model": model, "device": "cpu", "output_dir": tmp_path / "out"}
    settings |= (
        {"dataset": "folder", "data_dir": folder} if script == "evaluate.py" else {"input": folder / "val/images"}
    )
    settings |= changes
    code, _, error = run_script(script, *(word for key, value in settings.items() for word in (f"--{key}", value)))
    assert code == 2
    assert message in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["run/config.json", "run/run.json", "run"])
def test_a_folder_of_a_model_or_a_run_is_refused_before_scoring(run_script, folder, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    code, _, error = run_script(
        "evaluate.py", "--model", "/no/model", "--dataset", "folder", "--data_dir", folder, "--output_dir",
        tmp_path / "run",
    )  # fmt: skip
    assert code == 2
    assert error.startswith(f"error: --output_dir: {tmp_path / 'run'} ")
    assert len(error.splitlines()) == 1
    assert (str(tmp_path / "run/evaluation") in error) == (name != "run")
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["run"]


def test_a_run_is_not_predicted_into_whose_figure_an_image_could_replace(run_script, tmp_path):
    write_image(tmp_path / "images/predictions.png")
    write_image(tmp_path / "run/predictions.png")
    (tmp_path / "run/run.json").touch()
    before = (tmp_path / "run/predictions.png").read_bytes()
    code, _, error = run_script(
        "predict.py", "--model", "/no/model", "--input", tmp_path / "images", "--output_dir", tmp_path / "run"
    )
    assert code == 2
    assert error.startswith(f"error: --output_dir: {tmp_path / 'run'} holds a model or a run")
    assert str(tmp_path / "run/predictions") in error
    assert (tmp_path / "run/predictions.png").read_bytes() == before


def test_unreadable_images_are_named_and_the_others_are_labeled(run_script, model, tmp_path):
    write_image(tmp_path / "images/good.png")
    (tmp_path / "images/bad.png").write_bytes(b"nothing")
    code, _, error = run_script(
        "predict.py", "--model", model, "--input", tmp_path / "images", "--output_dir", tmp_path / "maps"
    )
    assert (code, "bad.png" in error, "good.png" in error) == (2, True, False)
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["good.png", "good_overlay.png"]


def test_prediction_never_overwrites_its_input(run_script, model, tmp_path):
    write_image(tmp_path / "images/street.png")
    before = (tmp_path / "images/street.png").read_bytes()
    code, _, error = run_script(
        "predict.py", "--model", model, "--input", tmp_path / "images", "--output_dir", tmp_path / "images"
    )
    assert (code, "overwrite" in error) == (2, True)
    assert (tmp_path / "images/street.png").read_bytes() == before


def change_config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


NO_MODEL = {
    "another kind of model": (change_config(model_type="bert"), "cannot be loaded"),
    "an unknown kind of model": (change_config(model_type="nonesuch"), "cannot be loaded"),
    "an unknown setting": (change_config(contrastive_temprature=0.1), "Did you mean"),
    "an unknown decode head": (change_config(decode_head="linear"), "linear"),
    "broken weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"none"), "cannot be loaded"),
    "a run without a model yet": (lambda folder: (folder / "config.json").unlink(), "after its first validation"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
}


@pytest.mark.parametrize("case", NO_MODEL)
@pytest.mark.parametrize("script", ["evaluate.py", "predict.py"])
def test_a_folder_that_is_not_a_network_is_reported_in_one_sentence(run_script, model, folder, script, case):
    damage, sentence = NO_MODEL[case]
    damage(model)
    data = ["--dataset", "folder", "--data_dir", folder] if script == "evaluate.py" else ["--input", folder]
    code, _, error = run_script(script, "--model", model, "--device", "cpu", *data)
    assert code == 2, error
    assert error.strip().splitlines()[-1].startswith(f"error: --model: {model} cannot be loaded: ")
    assert sentence in error
    assert "Traceback" not in error
