"""The network in examples/ labels its images well however it is loaded, and has the recorded score."""

import json
import shlex

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from experiments.model_zoo import read_rows
from msctr_hf.commands.train import command_line
from msctr_hf.data.synthetic import SYNTHETIC_CLASSES, draw_scene
from msctr_hf.evaluation.demo_page import segment_image, similarity_figures
from msctr_hf.evaluation.predictor import load_predictor

NETWORK, IMAGES = ROOT / "examples/street_scenes", ROOT / "examples/images"
SCENES = sorted(IMAGES.iterdir())
NUMBERS = {"scene_0.png": 16, "scene_1.png": 32}  # numbers of the scenes in the test split
(RECORD,) = read_rows([ROOT / "results/example.json"])
CAR, SIGN = SYNTHETIC_CLASSES.index("car"), SYNTHETIC_CLASSES.index("sign")


def drawn(path):
    """Draw a shipped scene again, and return its image and labels."""
    image, labels = draw_scene((2, NUMBERS[path.name]))
    return np.asarray(image), np.asarray(labels)


def assert_labels_are_those_of_the_scene(predicted, labels):
    valid = labels != 255
    assert (predicted == labels)[valid].mean() > 0.93
    for label in (CAR, SIGN):
        found, there = (predicted == label) & valid, labels == label
        assert (found & there).sum() / (found | there).sum() > 0.7


@pytest.fixture(scope="module")
def predictor():
    return load_predictor(str(NETWORK), device="cpu")


def test_the_network_and_the_images_are_small_and_come_without_code():
    files = {path.name: path.stat().st_size for path in NETWORK.iterdir()}
    assert set(files) == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert sum(files.values()) < 8_000_000
    assert len(SCENES) == 2
    assert all(path.stat().st_size < 100_000 for path in SCENES)


@pytest.mark.parametrize("path", SCENES, ids=lambda path: path.stem)
def test_the_shipped_scenes_are_labeled_as_they_were_drawn(predictor, path):
    image, labels = drawn(path)
    shipped = np.asarray(Image.open(path))
    assert np.abs(shipped.astype(int) - image).mean() < 1  # blurring may round differently in another Pillow
    assert_labels_are_those_of_the_scene(next(predictor([Image.open(path)])), labels)


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_the_auto_classes_of_transformers_load_and_apply_the_network(backend):
    model = AutoModelForSemanticSegmentation.from_pretrained(NETWORK)
    processor = AutoImageProcessor.from_pretrained(NETWORK, backend=backend)
    assert model.dtype == torch.float32
    image = Image.open(SCENES[0])
    with torch.no_grad():
        output = model(**processor(image, return_tensors="pt"))
    (predicted,) = processor.post_process_semantic_segmentation(output, target_sizes=[(image.height, image.width)])
    assert_labels_are_those_of_the_scene(predicted.numpy(), drawn(SCENES[0])[1])


def test_the_image_segmentation_pipeline_finds_the_drawn_cars_and_signs():
    masks = {found["label"]: np.asarray(found["mask"]) > 0 for found in pipeline("image-segmentation", NETWORK)(
        str(SCENES[0]))}  # fmt: skip
    labels = drawn(SCENES[0])[1]
    for label in (CAR, SIGN):
        found, there = masks[SYNTHETIC_CLASSES[label]] & (labels != 255), labels == label
        assert (found & there).sum() / (found | there).sum() > 0.7


def test_pixels_of_a_car_are_most_similar_to_cars(predictor):
    labels = drawn(SCENES[0])[1]
    rows, columns = np.nonzero(labels == CAR)
    middle = np.argmin(np.hypot(rows - np.median(rows), columns - np.median(columns)))
    finest = similarity_figures(segment_image(predictor, SCENES[0]), int(columns[middle]), int(rows[middle]))[0]
    blue = np.asarray(finest).astype(int)[..., 2]  # the redder, the more similar
    assert blue[labels == CAR].mean() + 30 < blue[(labels != CAR) & (labels != 255)].mean()


def test_predict_writes_labels_and_overlays_of_both_scenes(run_script, tmp_path):
    code, _, error = run_script(
        "predict.py", "--model", NETWORK, "--input", IMAGES, "--output_dir", tmp_path, "--device", "cpu"
    )
    assert code == 0, error
    for path in SCENES:
        assert (tmp_path / f"{path.stem}_overlay.png").is_file()
        assert_labels_are_those_of_the_scene(np.asarray(Image.open(tmp_path / path.name)), drawn(path)[1])


def test_the_recorded_command_can_be_parsed_and_the_card_states_the_recorded_score():
    words = shlex.split(RECORD["command"])[2:]
    *_, arguments, _, _ = command_line().parse(words)
    assert arguments.max_steps == RECORD["max_steps"]
    score = f"{100 * RECORD['mean_iou']:.1f} %"
    assert score in (NETWORK / "README.md").read_text()
    assert score in (ROOT / "configs/example.yaml").read_text()


@pytest.mark.slow
def test_the_score_on_the_validation_split_is_the_recorded_one(run_script, tmp_path):
    code, _, error = run_script(
        "evaluate.py", "--model", NETWORK, "--dataset", "synthetic_scenes", "--num_workers", "0", "--device", "cpu",
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert code == 0, error
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["mean_iou"] == pytest.approx(RECORD["mean_iou"], abs=0.002)
    for name, iou in RECORD["per_category_iou"].items():
        assert results["per_category_iou"][name] == pytest.approx(iou, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("script, options", [
    ("export.py", ["--format", "torch"]),
    ("visualize_embeddings.py", ["--dataset", "synthetic_scenes", "--num_images", "4", "--pixels_per_class", "10",
                                 "--device", "cpu"]),
])  # fmt: skip
def test_export_and_embeddings_accept_the_network(run_script, tmp_path, script, options):
    code, _, error = run_script(script, "--model", NETWORK, "--output_dir", tmp_path / "out", *options)
    assert code == 0, error
    assert any((tmp_path / "out").iterdir())
