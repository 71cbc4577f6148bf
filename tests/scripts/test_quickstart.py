"""The quickstart recipe trains a network that segments synthetic scenes, from random weights."""

import json

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_quickstart_reaches_a_mean_iou_of_70_percent(run_script, tmp_path):
    code, out, error = run_script(
        "train.py", "--config", ROOT / "configs/quickstart.yaml", "--output_dir", tmp_path / "quickstart"
    )
    assert code == 0, error
    results = json.loads((tmp_path / "quickstart/results.json").read_text())
    assert results["mean_iou"] >= 0.70
    assert all(name in out for name in results["per_category_iou"])
    assert (tmp_path / "quickstart/predictions.png").exists()
