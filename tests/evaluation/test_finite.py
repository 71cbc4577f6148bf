"""Networks that are not finite are refused, and never scored: argmax takes NaN for the most probable class."""

import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from layouts import write_folder, write_image
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import pipeline

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor, load_segmentation_dataset
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.embeddings import stage_features
from msctr_hf.evaluation.finite import find_fault_of_weights
from msctr_hf.evaluation.inference import predict_labels, predict_probabilities
from msctr_hf.evaluation.predictor import Predictor, load_predictor
from msctr_hf.evaluation.scoring import score_dataset
from msctr_hf.evaluation.settings import InferenceSettings
from msctr_hf.hub.export import export_network


@pytest.fixture
def saved(tmp_path, tiny_config):
    MsctrForSemanticSegmentation(tiny_config(num_labels=3)).save_pretrained(tmp_path / "model")
    MsctrImageProcessor(size_divisor=32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder, change):
    """Change the saved weights; `change` gets them by name."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def poison(name, value):
    def change(weights):
        weights[name].view(-1)[0] = value

    return change


def overflow_in_half_precision(weights):
    """Give the classifier weights that float16 can store and whose sums it cannot."""
    name = next(name for name in weights if name.startswith("decode_head") and name.endswith("classifier.bias"))
    weights[name][1] = 6e4
    weights[name.replace("bias", "weight")][1] = 6e4


CLASSIFIER = "decode_head.classifier.weight"


def command(script, model, folder, output_dir):
    data = {
        "evaluate.py": ["--dataset", "folder", "--data_dir", folder, "--num_workers", 0, "--device", "cpu"],
        "predict.py": ["--input", folder / "val/images", "--device", "cpu"],
        "export.py": [],
        "visualize_embeddings.py": ["--dataset", "folder", "--data_dir", folder, "--device", "cpu"],
    }[script]
    return [script, "--model", model, *data, "--output_dir", output_dir]


@pytest.mark.parametrize(
    ("kind", "value"), [("decode_head", np.nan), ("backbone", np.inf), ("statistics", -np.inf), ("statistics", np.nan)]
)
@pytest.mark.parametrize("script", ["evaluate.py", "predict.py", "export.py", "visualize_embeddings.py"])
def test_commands_refuse_weights_that_are_not_finite_and_name_them(run_script, saved, tmp_path, script, kind, value):
    names = load_file(saved / "model.safetensors")
    ending = ".running_var" if kind == "statistics" else ".weight"
    start = "" if kind == "statistics" else kind
    name = next(name for name in names if name.startswith(start) and name.endswith(ending))
    change_weights(saved, poison(name, value))
    folder = write_folder(tmp_path / "data")
    code, out, error = run_script(*command(script, saved, folder, tmp_path / "out"))
    assert (code, "Traceback" in error) == (2, False), out
    assert f"--model: {saved} cannot be used: 1 of {len(names)} tensors of the network are not finite: {name}" in error
    assert ("1 NaN" if np.isnan(value) else "1 infinite") in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("window", [[], ["--window_size", "32", "32"], ["--scales", "1", "1.5", "--flip"]])
@pytest.mark.parametrize("script", ["evaluate.py", "predict.py"])
def test_logits_that_overflow_in_half_precision_are_refused_with_the_name_of_the_image(
    run_script, saved, tmp_path, script, window
):
    change_weights(saved, overflow_in_half_precision)
    folder = write_folder(tmp_path / "data", size=(64, 64))
    arguments = [*command(script, saved, folder, tmp_path / "out"), *window]
    assert run_script(*arguments)[0] == 0  # float32
    shutil.rmtree(tmp_path / "out")
    code, out, error = run_script(*arguments, "--dtype", "float16")
    assert code == 2, out
    assert error.strip().splitlines()[-1].startswith("error: 0: The logits of the network are not finite (")
    assert "use --dtype float32, or bfloat16" in error
    assert not (tmp_path / "out").exists()


def test_weights_that_overflow_when_they_are_loaded_in_half_precision_are_refused(run_script, saved, tmp_path):
    change_weights(saved, poison(CLASSIFIER, 1e6))
    folder = write_folder(tmp_path / "data")
    arguments = command("predict.py", saved, folder, tmp_path / "out")
    code, _, error = run_script(*arguments, "--dtype", "float16")
    assert (code, "(1 infinite of " in error, "--dtype float32" in error) == (2, True, True)


def test_images_before_one_that_overflows_are_labeled(run_script, saved, tmp_path, monkeypatch):
    forward = MsctrForSemanticSegmentation.forward

    def overflowing(self, pixel_values=None, **options):
        output = forward(self, pixel_values=pixel_values, **options)
        if pixel_values.shape[-2:] == (64, 96):
            output.logits[:, 0, 0, 0] = float("nan")
        return output

    monkeypatch.setattr(MsctrForSemanticSegmentation, "forward", overflowing)
    for name, size in (("a", (32, 32)), ("b", (64, 96)), ("c", (32, 32))):
        write_image(tmp_path / f"images/{name}.png", size)
    code, _, error = run_script(
        "predict.py", "--model", saved, "--input", tmp_path / "images", "--output_dir", tmp_path / "maps",
        "--device", "cpu",
    )  # fmt: skip
    assert (code, "error: b: The logits of the network are not finite (1 NaN of" in error) == (2, True)
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a.png", "a_overlay.png"]


def test_the_pipeline_refuses_weights_and_logits_that_are_not_finite(saved):
    image = Image.fromarray(np.zeros((40, 40, 3), np.uint8))
    segment = pipeline("msctr-segmentation", model=str(saved))
    segment(image)
    with torch.no_grad():
        segment.model.decode_head.classifier.weight[0] = float("inf")
    with pytest.raises(UsageError, match=r"logits of the network are not finite"):
        segment(image)
    change_weights(saved, poison(CLASSIFIER, np.nan))
    with pytest.raises(UsageError, match=rf"tensors of the network are not finite: {CLASSIFIER} \(1 NaN of"):
        pipeline("msctr-segmentation", model=str(saved))


def test_the_stock_pipeline_refuses_logits_that_are_not_finite(saved):
    change_weights(saved, poison(CLASSIFIER, np.nan))
    segment = pipeline("image-segmentation", model=str(saved))
    with pytest.raises(ValueError, match="Logits are NaN or infinite"):
        segment(Image.fromarray(np.zeros((40, 40, 3), np.uint8)))


@pytest.fixture
def faulty(saved):
    """A predictor whose logits are NaN."""
    predictor = load_predictor(str(saved), device="cpu")
    with torch.no_grad():
        predictor.model.decode_head.classifier.bias[1] = float("nan")
    return predictor


@pytest.mark.parametrize(
    "settings", [{}, {"window_size": (32, 32)}, {"flip": True}, {"scales": (1.0, 2.0)}, {"size_divisor": 48}]
)
def test_functions_that_predict_refuse_logits_that_are_not_finite(faulty, settings):
    pixel_values = torch.randn(2, 3, 64, 64)
    with pytest.raises(UsageError, match="not finite"):
        predict_labels(faulty.model, pixel_values, InferenceSettings(**settings))
    settings = {"crop_size" if name == "window_size" else name: value for name, value in settings.items()}
    with pytest.raises(UsageError, match="not finite"):
        predict_probabilities(faulty.model, pixel_values, **settings)


def test_functions_that_score_export_and_compare_refuse_a_network_that_is_not_finite(faulty, tmp_path):
    dataset = load_segmentation_dataset("folder", "train", write_folder(tmp_path / "data"))
    with pytest.raises(UsageError, match="^0: The logits of the network are not finite"):
        score_dataset(faulty, dataset, num_labels=3, accelerator=Accelerator(cpu=True))
    with pytest.raises(UsageError, match=r"decode_head.classifier.bias \(1 NaN of 3 values\)"):
        export_network(faulty.model, faulty.image_processor, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    with torch.no_grad():
        next(faulty.model.backbone.parameters())[0] = float("inf")
    with pytest.raises(UsageError, match="The features of the network are not finite"):
        stage_features(Predictor(faulty.model, faulty.image_processor), dataset[0]["image"], "stages")


def test_training_does_not_start_from_weights_that_are_not_finite(run_script, saved, tmp_path):
    change_weights(saved, poison(CLASSIFIER, np.nan))
    folder = write_folder(tmp_path / "data")
    code, _, error = run_script(
        "train.py", "--dataset", "folder", "--data_dir", folder, "--model_name_or_path", saved, "--max_steps", 1,
        "--output_dir", tmp_path / "run", "--crop_size", 32, 32, "--report_to", "none",
    )  # fmt: skip
    assert (code, "Training cannot start: 1 of" in error, CLASSIFIER in error) == (2, True, True)
    assert not (tmp_path / "run").exists()


def test_complex_weights_are_checked():
    network = nn.Module()
    network.filter = nn.Parameter(torch.tensor([1 + 1j, complex(1, float("nan"))]))
    fault = find_fault_of_weights(network)
    assert fault is not None
    assert "filter (1 NaN of 2 values)" in fault
