import json
import sys

import pytest
import torch
from conftest import ROOT

from experiments.benchmark import contrast


@pytest.fixture(autouse=True)
def restore_number_of_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("loss", ["--sizes", "100", "--classes", "3", "--repetitions", "1"], 2),
        ("projection", ["--batch_size", "1", "--repetitions", "1"], 5),
        ("upsampling", ["--repetitions", "1"], 2),
        ("data", ["--repetitions", "1"], 4),
        ("metric", ["--repetitions", "1"], 2),
    ],
)
def test_a_benchmark_prints_its_table_and_writes_it_as_json(run_script, tmp_path, name, options, rows):
    output = tmp_path / "figures.json"
    code, out, _ = run_script("benchmark.py", name, *options, "--output", output)
    assert code == 0
    figures = json.loads(output.read_text())
    assert len(figures["rows"]) == rows
    assert figures["threads"] == 1
    assert figures["device"]
    for row in figures["rows"]:
        other, ours = (row[name] for name in row if name.endswith(" ms"))
        measurable = min(other, ours) >= 0.01
        assert row["speed-up"] == (pytest.approx(other / ours) if measurable else None)
    assert "speed-up" in out


def test_options_are_measured_beside_the_defaults(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(contrast, "CROP", (64, 64))
    monkeypatch.setattr(contrast, "peak_megabytes", lambda *_: 2.0)  # in processes of their own, which is tested above
    options = ["--batch_sizes", "1", "--sizes", "100", "--classes", "3", "--repetitions", "1"]
    code, _, _ = run_script("benchmark.py", "options", *options, "--output", tmp_path / "f.json")
    assert code == 0
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    parts = ["objective, rarest", "objective, budget", "loss, within", "loss, across"]
    assert [row["part"] for row in rows] == parts
    for row in rows:
        assert row["any / default"] == pytest.approx(row["any ms"] / row["default ms"])
        assert (row["hard / default"] is None) == row["part"].startswith("loss")
    assert all(0 <= row["hard share"] <= 1 for row in rows[:2])


def test_a_search_is_measured_with_the_features_of_the_head_and_of_the_projections(run_script, tmp_path):
    options = ["--images", "2", "--repetitions", "1", "--output", tmp_path / "f.json"]
    code, _, error = run_script("benchmark.py", "search", *options)
    assert code == 0, error
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert [(row["features"], row["channels"], row["images"]) for row in rows] == [
        ("decode_head", 256, 2),
        ("projection", 1024, 2),
    ]
    assert all(row["limit"] == pytest.approx(3 / row["search s"]) for row in rows)


def test_a_training_step_is_measured_in_all_modes(run_script, tmp_path):
    options = ["--config", ROOT / "configs/quickstart.yaml", "--batch_size", "2", "--crop_size", "64", "64"]
    code, out, _ = run_script("benchmark.py", "step", *options, "--repetitions", "1", "--output", tmp_path / "f.json")
    assert code == 0
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert [row["mode"] for row in rows] == ["ce", "ms", "ms_cs", "ms_cs, straightforward"]
    assert rows[0]["time / ce"] == 1
    for row in rows:
        phases = [row[f"{phase} ms"] for phase in ("forward", "loss", "backward", "optimizer")]
        assert sum(phases) == pytest.approx(row["step ms"])
        assert row["images/s"] == pytest.approx(2000 / row["step ms"])
        assert row["data ms"] > 0


def test_a_missing_gpu_and_a_missing_configuration_are_reported_in_one_sentence(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, error = run_script("benchmark.py", "loss", "--device", "cuda", "--output", tmp_path / "f.json")
    assert code == 2
    assert "no GPU" in error
    code, _, error = run_script(
        "benchmark.py", "step", "--config", tmp_path / "none.yaml", "--output", tmp_path / "f.json"
    )
    assert code == 2
    assert "none.yaml" in error
    assert not list(tmp_path.iterdir())


def test_missing_opencv_is_reported_in_one_sentence(run_script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    code, _, error = run_script("benchmark.py", "data", "--repetitions", "1", "--output", tmp_path / "f.json")
    assert code == 2
    assert "needs OpenCV: pip install opencv-python-headless" in error
