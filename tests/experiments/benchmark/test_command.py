import json
import sys

import pytest
import torch
from conftest import ROOT

from experiments.benchmark import contrast, unlabeled
from experiments.benchmark.step import Setting
from msctr_hf.commands.train import command_line


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


def test_a_step_with_unlabeled_images_is_measured_beside_the_supervised_one(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(unlabeled, "peak_megabytes", lambda build, arguments, *_: 10.0 * (1 + len(arguments[1])))
    options = ["--config", ROOT / "configs/quickstart.yaml", "--batch_size", "2", "--crop_size", "64", "64"]
    options += ["--repetitions", "1", "--output", tmp_path / "f.json"]
    code, _, error = run_script("benchmark.py", "unlabeled", *options)
    assert code == 0, error
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert [row["step"] for row in rows] == list(unlabeled.CASES)
    assert [row["unlabeled images"] for row in rows] == [0, 2, 2, 2]
    for row in rows:
        assert row["time / ce"] == pytest.approx(row["step ms"] / rows[0]["step ms"])
        assert row["memory / ce"] == pytest.approx(row["MB"] / 30)


def test_every_step_with_unlabeled_images_does_what_its_name_says():
    recipe = command_line().parse(["--config", str(ROOT / "configs/quickstart.yaml"), "--backbone_weights", "none"])
    setting = Setting(2, (64, 64), torch.device("cpu"))
    anchors = {}
    for name, case in unlabeled.CASES.items():
        step = unlabeled.UnlabeledStep(recipe, name, setting)
        output, forward = [], step.model.forward
        step.model.forward = lambda *args, of=forward, to=output, **more: to.append(of(*args, **more)) or to[-1]
        loss = step.forward()
        loss.backward()
        before = [] if step.average is None else [value.clone() for value in step.average.module.parameters()]
        step.update()
        terms = output[0].loss_terms
        assert ("pseudo_cross_entropy" in terms) == case.has_teacher
        assert any(term.startswith("contrastive") for term in terms) == (case.mode == "ms_cs")
        if case.has_teacher:
            share = output[0].diagnostics["pseudo_cross_entropy/confident_pixels"].item()
            assert share == pytest.approx(unlabeled.CONFIDENT_SHARE, abs=0.05)
            after = step.average.module.parameters()
            assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
        anchors[name] = step.model.contrastive_facts.get("contrastive/stage_1/pseudo_anchors", 0)
    assert [count > 0 for count in anchors.values()] == [False, False, False, True]


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
