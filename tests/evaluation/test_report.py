import csv
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from msctr_hf.evaluation.boundary_iou import BoundaryIoU
from msctr_hf.evaluation.mean_iou import ConfusionMatrix
from msctr_hf.evaluation.report import write_report
from msctr_hf.evaluation.scoring import ScoredImage, Scores

CLASSES = ("sky", "road", "car")
PALETTE = ((1, 2, 3), (4, 5, 6), (7, 8, 9))


@pytest.fixture
def scores():
    reference = np.array([[0, 0, 0, 1, 1, 255]], dtype=np.uint8).repeat(4, axis=0)
    prediction = np.array([[0, 0, 1, 1, 1, 1]], dtype=np.uint8).repeat(4, axis=0)
    confusion, boundary = ConfusionMatrix(3), BoundaryIoU(3)
    confusion.update(prediction, reference)
    boundary.update(prediction, reference)
    shown = (Image.new("RGB", (6, 4)), reference, prediction)
    return Scores(
        confusion, boundary, [ScoredImage(0.25, "a"), ScoredImage(0.5, "b")], [ScoredImage(0.25, "a", shown)]
    )


def write(scores, folder):
    results = scores.results(dict(enumerate(CLASSES)), {"ground": [1, 2]}) | {
        "dataset": "folder",
        "protocol": {"flip": False},
    }
    return write_report(folder, results, scores, CLASSES, PALETTE)


def test_the_report_lists_classes_groups_confusions_and_images(scores, tmp_path):
    assert write(scores, tmp_path) == []
    text = (tmp_path / "report.md").read_text()
    assert "| sky | 66.67 % | 66.67 % |" in text
    assert "| car | absent | absent | absent |" in text
    assert "| sky | road | 33.33 % |" in text
    assert "| ground | 66.67 % | 66.67 % |" in text
    assert "| a | 25.00 % |" in text
    assert "flip" not in text
    for name in ("confusion.png", "worst.png"):
        assert f"]({name})" in text
        assert Image.open(tmp_path / name).width > 100
    with open(tmp_path / "confusion.csv") as file:
        assert list(csv.reader(file))[1] == ["sky", "8", "4", "0"]
    with open(tmp_path / "images.csv") as file:
        assert list(csv.reader(file)) == [["image_id", "mean_iou"], ["a", "0.250000"], ["b", "0.500000"]]


def test_without_matplotlib_the_figure_is_replaced_by_a_note(scores, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (note,) = write(scores, tmp_path)
    assert "matplotlib" in note
    assert "confusion.png" not in (tmp_path / "report.md").read_text()


def test_figures_of_an_earlier_evaluation_are_neither_kept_nor_shown(scores, tmp_path, monkeypatch):
    write(scores, tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write(replace(scores, worst=[]), tmp_path)
    assert not list(tmp_path.glob("*.png"))
    assert "![" not in (tmp_path / "report.md").read_text()


def test_confusions_are_shares_of_the_labeled_pixels(scores):
    (confusion,) = scores.results(dict(enumerate(CLASSES)), {})["largest_confusions"]
    assert confusion == {"class": "sky", "predicted_as": "road", "share": pytest.approx(1 / 3)}


WRITE_AND_READ = r"""
import sys
from pathlib import Path
from msctr_hf.evaluation.mean_iou import ConfusionMatrix
from msctr_hf.evaluation.report import write_report
from msctr_hf.evaluation.scoring import Scores
from msctr_hf.training.run_folder import replace_file
from msctr_hf.commands.train import command_line
folder, classes = Path(sys.argv[1]), ("Stra\u00dfe", "\u9053")
scores = Scores(ConfusionMatrix(2), None, [], [])
write_report(folder, scores.results(dict(enumerate(classes)), {}), scores, classes, ((1, 2, 3), (4, 5, 6)))
replace_file(folder / "config.yaml", "data_dir: Stra\u00dfe\n")
data = command_line().parse(["--config", str(folder / "config.yaml"), "--dataset", "folder"])[1]
assert data.data_dir == "Stra\u00dfe", ascii(data.data_dir)
"""


def test_names_of_classes_and_folders_may_have_letters_that_the_locale_lacks(tmp_path):
    """Windows encodes texts by its code page, this process by that of the locale C: ASCII."""
    environment = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITE_AND_READ, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for name in ("report.md", "confusion.csv"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "Stra\u00dfe" in text
        assert "\u9053" in text
