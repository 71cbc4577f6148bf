"""Runs on images of any number of channels, and everything that follows a run."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import ROOT
from layouts import write_folder
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

import msctr_hf
from msctr_hf import MsctrImageProcessor, load_segmentation_dataset
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.demo_page import build_page
from msctr_hf.evaluation.embeddings import stage_features
from msctr_hf.evaluation.predictor import load_predictor

TYPES = {1: np.uint16, 4: np.uint8, 7: np.float32}
TINY = {
    "config": str(ROOT / "configs/quickstart.yaml"),
    "dataset": "folder",
    "crop_size": [32, 32],
    "hidden_size": 8,
    "auxiliary_hidden_size": 8,
    "projection_dim": 8,
    "class_weights": None,
    "batch_size": 2,
    "max_steps": 2,
    "validation_steps": 2,
    "checkpointing_steps": 2,
    "num_workers": 0,
    "report_to": "none",
}


def write_channels(folder, count, dtype):
    """Write a data set of one `.npy` per image, whose classes differ in the last channel."""
    write_folder(folder, num_train=3, num_validation=2)
    random = np.random.default_rng(count)
    for path in sorted(folder.rglob("images/*")):
        labels = np.asarray(Image.open(folder / path.parent.parent.name / "labels" / f"{path.stem}.png"))
        pixels = random.normal(90, 20, (*labels.shape, count))
        pixels[..., -1] += 40 * labels
        pixels = pixels.clip(0, 255) * (200 if dtype == np.uint16 else 1)
        np.save(path.with_suffix(".npy"), pixels.astype(dtype))
        path.unlink()
    return folder


@pytest.fixture(scope="module", params=TYPES)
def trained(request, tmp_path_factory):
    """Train on images of 1, 4 or 7 channels; return (number, folder of the data, folder of the run)."""
    count = request.param
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    folder = tmp_path_factory.mktemp(f"channels_{count}")
    data = write_channels(folder / "data", count, TYPES[count])
    msctr_hf.train(**TINY, data_dir=str(data), output_dir=str(folder / "run"), num_channels=count)
    return count, data, folder / "run"


def arrays(data, split="val"):
    return {path.stem: np.load(path) for path in sorted((data / split / "images").iterdir())}


def expected_maps(run, data):
    """Compute class maps by plain arithmetic from the files, the saved statistics and the saved network."""
    settings = json.loads((run / "preprocessor_config.json").read_text())
    model = AutoModelForSemanticSegmentation.from_pretrained(run).eval()
    maps = {}
    for name, image in arrays(data).items():
        mean, std = np.array(settings["image_mean"]), np.array(settings["image_std"])
        values = (image * settings["rescale_factor"] - mean) / std
        with torch.no_grad():
            logits = model(torch.from_numpy(values).permute(2, 0, 1)[None].float()).logits
        logits = torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear")
        maps[name] = logits[0].argmax(0).numpy()
    return maps


def test_a_run_saves_mean_and_standard_deviation_of_the_training_images(trained):
    count, data, run = trained
    processor = AutoImageProcessor.from_pretrained(run)
    white = {np.uint16: 65535, np.uint8: 255, np.float32: 1}[TYPES[count]]
    pixels = np.concatenate([image.reshape(-1, count) for image in arrays(data, "train").values()]) / float(white)
    np.testing.assert_allclose(processor.image_mean, pixels.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(processor.image_std, pixels.std(0, dtype=np.float64), rtol=1e-5)
    assert (processor.num_channels, processor.value_type) == (count, np.dtype(TYPES[count]).name)
    kept = json.loads((run / "checkpoints/step_2/data.json").read_text())["channels"]
    np.testing.assert_allclose(np.array(kept["means"]) / white, processor.image_mean)


def test_predict_evaluate_and_the_pipeline_label_as_the_network_does(trained, run_script, tmp_path):
    count, data, run = trained
    expected = expected_maps(run, data)
    code, _, error = run_script("predict.py", "--model", run, "--input", data / "val/images", "--output_dir",
                                tmp_path / "maps", "--device", "cpu")  # fmt: skip
    assert code == 0, error
    segment = pipeline("msctr-segmentation", model=str(run), device="cpu")
    for name, labels in expected.items():
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "maps" / f"{name}.png")), labels)
        assert (tmp_path / "maps" / f"{name}_overlay.png").is_file()
        result = segment(str(data / "val/images" / f"{name}.npy"))
        np.testing.assert_array_equal(result["labels"], labels)
        assert result["overlay"].size == labels.shape[::-1]
    np.testing.assert_array_equal(segment(arrays(data)["0"])["labels"], expected["0"])

    code, _, error = run_script(
        "evaluate.py", "--model", run, "--dataset", "folder", "--data_dir", data, "--num_workers", "0",
        "--device", "cpu", "--output_dir", tmp_path / "scores",
    )  # fmt: skip
    assert code == 0, error
    right = sum((expected[name] == np.asarray(Image.open(data / f"val/labels/{name}.png"))).sum() for name in expected)
    scores = json.loads((tmp_path / "scores/results.json").read_text())
    assert scores["overall_accuracy"] == pytest.approx(right / sum(labels.size for labels in expected.values()))


def test_images_of_other_channels_or_types_are_refused_with_both_numbers(trained, run_script, tmp_path):
    count, data, run = trained
    np.save(tmp_path / "other.npy", np.zeros((40, 56, count + 1), TYPES[count]))
    np.save(tmp_path / "type.npy", np.zeros((40, 56, count), np.int32))
    code, _, error = run_script("predict.py", "--model", run, "--input", tmp_path, "--output_dir", tmp_path / "maps")
    assert code == 2
    assert f"has {count + 1} channels, but `num_channels` is {count}" in error
    assert f"values of type int32, but the network is for images of type {np.dtype(TYPES[count])}" in error


def test_stock_pipeline_and_image_processors_refuse_other_images_in_a_sentence(trained):
    count, data, run = trained
    photo = Image.new("RGB", (56, 40))
    stock = pipeline("image-segmentation", model=str(run), device="cpu")
    with pytest.raises(ValueError, match=r"pipeline\('msctr-segmentation'\)"):
        stock(photo)
    if count == 1:
        AutoImageProcessor.from_pretrained(run, backend="pil")
        return
    with pytest.raises(ValueError, match=f"on PIL reads 1 or 3 channels, but the network reads {count}"):
        AutoImageProcessor.from_pretrained(run, backend="pil")
    with pytest.raises(ValueError, match=f"have 3 channel.*reads {count}"):
        AutoModelForSemanticSegmentation.from_pretrained(run)(torch.zeros(1, 3, 64, 64))


def test_the_demo_refuses_such_networks_and_embeddings_are_computed(trained):
    count, data, run = trained
    predictor = load_predictor(str(run), device="cpu")
    with pytest.raises(UsageError, match=f"shows RGB images of 8 bits, but this network reads {count} channel"):
        build_page(predictor, "network")
    features = stage_features(predictor, arrays(data)["0"])
    assert all(tile.embeddings.isfinite().all() and len(tile.embeddings) == 8 for tile in features.values())


@pytest.mark.slow
def test_an_export_reads_as_many_channels_as_the_network(trained, run_script, tmp_path):
    count, _, run = trained
    code, out, error = run_script("export.py", "--model", run, "--output_dir", tmp_path / "out", "--format", "torch",
                                  "--fixed_size", "64", "64")  # fmt: skip
    assert code == 0, error
    assert f"torch.zeros(1, {count}, 64, 64)" in out
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    assert program(pixel_values=torch.zeros(1, count, 64, 64)).logits.shape[:2] == (1, 3)


def test_the_card_of_a_network_of_other_channels_names_the_pipeline_that_reads_them(trained):
    count, _, run = trained
    card = (run / "README.md").read_text()
    assert 'pipeline("msctr-segmentation"' in card
    assert "the viewer of the Hub and the pipeline `image-segmentation` cannot show this network" in card
    assert f"Images have {count} channel" in card


def test_a_run_takes_the_statistics_of_the_check_and_a_resumed_run_those_of_its_checkpoint(run_script, tmp_path):
    data = write_channels(tmp_path / "data", 2, np.uint16)
    code, out, error = run_script("prepare_dataset.py", "--dataset", "folder", "--data_dir", data, "--num_channels", 2,
                                  "--output_dir", tmp_path / "copy", "--num_workers", 0)  # fmt: skip
    assert code == 0, error
    assert "channels of uint16, mean ± standard deviation" in out
    card = (tmp_path / "copy/README.md").read_text()
    assert "--data_dir THIS_FOLDER --num_channels 2" in card
    assert "Images have 2 channels, which the viewer of the Hub cannot show." in card
    report = json.loads((tmp_path / "copy/report_train.json").read_text())
    report["channels"]["means"] = [1000.0, 2000.0]  # to see where they come from
    (tmp_path / "copy/report_train.json").write_text(json.dumps(report))
    run = {**TINY, "data_dir": str(tmp_path / "copy"), "output_dir": str(tmp_path / "run"), "num_channels": 2}
    msctr_hf.train(**run)
    expected = [1000 / 65535, 2000 / 65535]
    assert AutoImageProcessor.from_pretrained(tmp_path / "run").image_mean == pytest.approx(expected)
    (tmp_path / "copy/report_train.json").unlink()
    msctr_hf.train(**{**run, "resume": "auto", "max_steps": 3, "validation_steps": 3, "checkpointing_steps": 3})
    assert AutoImageProcessor.from_pretrained(tmp_path / "run").image_mean == pytest.approx(expected)


def test_a_run_refuses_images_and_settings_that_do_not_match(tmp_path):
    data = write_channels(tmp_path / "data", 4, np.uint8)
    run = {**TINY, "data_dir": str(data), "output_dir": str(tmp_path / "run"), "dry_run": True}
    with pytest.raises(UsageError, match=r"has 4 channels, but `num_channels` is 5"):
        msctr_hf.train(**run, num_channels=5)
    np.save(data / "train/images/1.npy", np.zeros((40, 56, 4), np.uint16))
    with pytest.raises(UsageError, match="1 has values of type uint16, but 0 has uint8"):
        msctr_hf.train(**run, num_channels=4)


def test_16_bit_images_keep_their_bits_only_where_the_number_of_channels_is_given(tmp_path):
    write_folder(tmp_path, num_train=1, num_validation=1)
    pixels = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56) * 25
    (tmp_path / "train/images/0.jpg").unlink()
    Image.fromarray(pixels).save(tmp_path / "train/images/0.png")
    read = {
        number: np.asarray(load_segmentation_dataset("folder", "train", tmp_path, num_channels=number)[0]["image"])
        for number in (None, 1, 3)
    }
    np.testing.assert_array_equal(read[None], (pixels >> 8).astype(np.uint8)[..., None].repeat(3, 2))
    np.testing.assert_array_equal(read[1], pixels[..., None])
    np.testing.assert_array_equal(read[3], pixels[..., None].repeat(3, 2))


def test_a_folder_saved_before_loads_as_three_channels(tmp_path):
    MsctrImageProcessor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in settings.items() if k not in ("num_channels", "value_type")}))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert (processor.num_channels, processor.value_type, processor.reads_rgb) == (3, None, True)
