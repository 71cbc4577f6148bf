import csv
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
