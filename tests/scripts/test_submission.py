"""Files for test servers have the official form, checked with the official evaluation of Cityscapes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from layouts import write_image, write_labels
from PIL import Image

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.data.specs import DATASETS
from msctr_hf.data.synthetic import draw_scene

EVALUATION = """
import json, sys
import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as evaluation
evaluation.args.evalInstLevelScore = False  # synthetic labels have no instances
evaluation.args.quiet = True
evaluation.main()
"""


def save_model(folder, tiny_config, name):
    spec = DATASETS[name]
    config = tiny_config(num_labels=len(spec.classes))
    model = MsctrForSemanticSegmentation(config)
    MsctrImageProcessor(size_divisor=32).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def write_cityscapes(root, count):
    """Write synthetic scenes with raw ids of Cityscapes, some of which are void."""
    random = np.random.default_rng(0)
    for number in range(count):
        city = ("frankfurt", "munster")[number % 2]
        name = f"{city}_{number:06d}_{number:06d}"
        image, label = draw_scene((9, number), (96, 160))
        raw_ids = np.concatenate([random.permutation([0, 3, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 26, 33])])
        labels = raw_ids[np.asarray(label) % len(raw_ids)].astype(np.uint8)
        folder = root / "leftImg8bit/val" / city
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{name}_leftImg8bit.png")
        write_labels(root / "gtFine/val" / city / f"{name}_gtFine_labelIds.png", labels)
    return root


@pytest.mark.slow
def test_the_official_evaluation_of_submitted_files_equals_msctr_evaluate(run_script, tiny_config, tmp_path):
    model = save_model(tmp_path / "model", tiny_config, "cityscapes")
    root = write_cityscapes(tmp_path / "cityscapes", 6)
    code, _, error = run_script(
        "evaluate.py", "--model", model, "--dataset", "cityscapes", "--data_dir", root, "--device", "cpu",
        "--num_workers", "0", "--output_dir", tmp_path / "ours",
    )  # fmt: skip
    assert code == 0, error
    code, _, error = run_script(
        "predict.py", "--model", model, "--input", root / "leftImg8bit/val", "--device", "cpu",
        "--submission_for", "cityscapes", "--output_dir", tmp_path / "submission",
    )  # fmt: skip
    assert code == 0, error
    ours = json.loads((tmp_path / "ours/results.json").read_text())
    official = evaluate_officially(root, tmp_path)
    for name, iou in ours["per_category_iou"].items():
        if iou is None:
            assert np.isnan(official["classScores"][name])
        else:
            assert official["classScores"][name] == pytest.approx(iou, abs=1e-6)
    assert official["averageScoreClasses"] == pytest.approx(ours["mean_iou"], abs=1e-6)
    for name, scores in ours["groups"].items():
        assert official["categoryScores"][name] == pytest.approx(scores["merged_iou"], abs=1e-6)


def evaluate_officially(root, folder):
    """Run `cityscapesscripts` in a separate environment, because it needs an older numpy."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "cityscapesscripts==2.3.0", "numpy<2.4"]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip("cityscapesscripts cannot be installed here")
    (folder / "official").mkdir()
    environment = {
        "CITYSCAPES_DATASET": str(root), "CITYSCAPES_RESULTS": str(folder / "submission"),
        "CITYSCAPES_EXPORT_DIR": str(folder / "official"), "MPLBACKEND": "agg", "HOME": str(folder),
    }  # fmt: skip
    done = subprocess.run([python, "-c", EVALUATION], env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "official/resultPixelLevelSemanticLabeling.json").read_text())


@pytest.mark.parametrize(
    ("name", "file_name", "expected"),
    [
        ("cityscapes", "berlin/berlin_000000_000019_leftImg8bit.png", "berlin_000000_000019_pred_labelIds.png"),
        ("ade20k", "ADE_test_00000001.jpg", "ADE_test_00000001.png"),
    ],
)
def test_submissions_have_official_names_and_raw_values(run_script, tiny_config, tmp_path, name, file_name, expected):
    model = save_model(tmp_path / "model", tiny_config, name)
    write_image(tmp_path / "images" / file_name, (64, 96))
    common = ["--model", model, "--input", tmp_path / "images", "--device", "cpu"]
    assert run_script("predict.py", *common, "--output_dir", tmp_path / "ids")[0] == 0
    code, _, error = run_script(
        "predict.py", *common, "--output_dir", tmp_path / "submission", "--submission_for", name
    )
    assert code == 0, error
    assert [path.name for path in (tmp_path / "submission").iterdir()] == [expected]
    train_ids = np.asarray(Image.open((tmp_path / "ids" / file_name).with_suffix(".png")))
    submitted = Image.open(tmp_path / "submission" / expected)
    assert submitted.mode == "L"
    raw = np.asarray(submitted)
    raw_values = {label: value for value, label in DATASETS[name].label_values.items()}
    assert raw.dtype == np.uint8
    assert np.array_equal(raw, np.vectorize(raw_values.get)(train_ids))


@pytest.mark.parametrize(
    ("name", "file_name", "message"),
    [
        ("camvid", "a.png", "no test server"),
        ("cityscapes", "street.png", "does not end in _leftImg8bit"),
        ("ade20k", "a.jpg", "150 classes, the model 19"),
        ("nothing", "a.jpg", "choose from"),
    ],
)
def test_images_and_models_that_fit_no_test_server_are_reported_in_one_sentence(
    run_script, tiny_config, tmp_path, name, file_name, message
):
    model = save_model(tmp_path / "model", tiny_config, "cityscapes")
    write_image(tmp_path / "images" / file_name, (64, 96))
    code, _, error = run_script(
        "predict.py", "--model", model, "--input", tmp_path / "images", "--device", "cpu", "--submission_for", name,
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert (code, message in error) == (2, True)
    assert not (tmp_path / "out").exists()
