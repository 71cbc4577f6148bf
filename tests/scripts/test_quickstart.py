"""The quickstart recipe trains a network that segments synthetic scenes, from random weights."""

import json

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_quickstart_with_few_labels_learns_from_the_other_images(run_script, tmp_path):
    config, run = ROOT / "configs/quickstart_few_labels.yaml", tmp_path / "run"
    steps = ["--max_steps", "3", "--unlabeled_start_step", "1", "--logging_steps", "1", "--report_to", "none"]
    code, out, error = run_script("train.py", "--config", config, "--output_dir", run, *steps)
    assert code == 0, error
    assert "20 training, 380 unlabeled and 60 validation images" in out
    assert (run / "pseudo_labels.png").exists()
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert ["pseudo_cross_entropy" in line for line in logged if "loss" in line] == [False, True, True]


@pytest.mark.slow(minutes=8)
def test_the_quickstart_reaches_a_mean_iou_of_70_percent(run_script, tmp_path):
    code, out, error = run_script(
        "train.py", "--config", ROOT / "configs/quickstart.yaml", "--output_dir", tmp_path / "quickstart"
    )
    assert code == 0, error
    results = json.loads((tmp_path / "quickstart/results.json").read_text())
    assert results["mean_iou"] >= 0.70
    assert all(name in out for name in results["per_category_iou"])
    assert (tmp_path / "quickstart/predictions.png").exists()
