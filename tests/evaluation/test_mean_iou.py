import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from experiments.benchmark.stock_mean_iou import StockMeanIoU
from msctr_hf import MeanIoU
from msctr_hf.evaluation import mean_iou
from msctr_hf.evaluation.mean_iou import ConfusionMatrix


def iou_by_sets(predictions, references, num_labels, ignore_index=255):
    scores = []
    for label in range(num_labels):
        intersection = union = 0
        for prediction, reference in zip(predictions, references, strict=True):
            for p, r in zip(prediction.ravel(), reference.ravel(), strict=True):
                if r != ignore_index:
                    intersection += p == label and r == label
                    union += p == label or r == label
        scores.append(intersection / union if union else float("nan"))
    return scores


def test_iou_equals_that_of_sets_counted_pixel_by_pixel():
    random = np.random.default_rng(0)
    references = [random.choice([0, 1, 2, 4, 255], (9, 7)) for _ in range(3)]
    predictions = [random.choice([0, 1, 2, 4], (9, 7)) for _ in range(3)]
    metric = MeanIoU(num_labels=6)
    metric.add_batch(predictions=predictions[:2], references=references[:2])
    metric.add_batch(predictions=predictions[2:], references=references[2:])
    scores = metric.compute()
    expected = iou_by_sets(predictions, references, 6)
    np.testing.assert_allclose(scores["per_category_iou"], expected)
    assert scores["mean_iou"] == pytest.approx(np.nanmean(expected))
    assert np.isnan(scores["per_category_iou"][[3, 5]]).all()  # absent from both: excluded from the mean


def test_scores_equal_those_computed_by_hand():
    scores = MeanIoU(num_labels=3).compute(
        predictions=[np.array([[0, 0, 1, 2]])], references=[np.array([[0, 1, 1, 255]])]
    )
    np.testing.assert_allclose(scores["per_category_iou"], [0.5, 0.5, np.nan])
    np.testing.assert_allclose(scores["per_category_accuracy"], [1.0, 0.5, np.nan])
    assert scores["overall_accuracy"] == pytest.approx(2 / 3)
    assert scores["mean_accuracy"] == pytest.approx(0.75)


def test_compute_resets_the_metric():
    metric = MeanIoU(num_labels=2)
    metric.add(prediction=np.array([[0]]), reference=np.array([[1]]))
    assert metric.compute()["mean_iou"] == 0
    assert metric.compute(predictions=[np.array([[1]])], references=[np.array([[1]])])["mean_iou"] == 1


def test_counts_beyond_float32_are_exact():
    confusion = ConfusionMatrix(2)
    confusion.matrix[:] = [[2**40, 1], [1, 2**40]]
    confusion.update(np.zeros((1, 1), int), np.zeros((1, 1), int))
    assert confusion.matrix[0, 0] == 2**40 + 1
    assert confusion.matrix.dtype == np.int64


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([[3]], [[0]], "prediction has values in 3..3"),
        ([[-1]], [[0]], "prediction"),
        ([[3]], [[255]], "prediction"),
        ([[0]], [[7]], "reference has values in"),
        ([[0, 1]], [[0]], "shape"),
    ],
)
def test_values_outside_the_classes_are_refused(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(num_labels=3).add_batch(predictions=[np.array(prediction)], references=[np.array(reference)])


def test_a_reference_that_is_ignored_everywhere_gives_nan():
    scores = MeanIoU(num_labels=2).compute(predictions=[np.zeros((2, 2), int)], references=[np.full((2, 2), 255)])
    assert np.isnan(scores["mean_iou"])


def random_maps(num_labels, count=6, seed=0):
    """Make label maps in which classes are absent and pixels are ignored."""
    random = np.random.default_rng(seed)
    present = random.choice(num_labels, max(2, num_labels // 2), replace=False)
    references = random.choice([*present, 255], (count, 20, 30)).astype(np.uint8)
    predictions = np.where(random.random(references.shape) < 0.6, references, random.choice(present, references.shape))
    return np.where(predictions == 255, present[0], predictions).astype(np.uint8), references


@pytest.mark.parametrize("num_labels", [3, 19, 150])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_scores_agree_with_the_stock_metric_and_with_torchmetrics(num_labels, dtype):
    predictions, references = random_maps(num_labels)
    metric = MeanIoU(num_labels=num_labels)
    metric.add_batch(predictions=predictions.astype(dtype), references=references.astype(dtype))
    ours = metric.compute()

    stock_metric = StockMeanIoU()
    stock_metric.add_batch(predictions=predictions, references=references)
    stock = stock_metric.compute(num_labels=num_labels, ignore_index=255)
    assert set(stock) == set(ours)
    for name, value in stock.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-12)

    jaccard = MulticlassJaccardIndex(num_labels, ignore_index=255, average="none")
    iou = jaccard(torch.from_numpy(predictions).long(), torch.from_numpy(references).long()).numpy()
    present = np.isfinite(ours["per_category_iou"])
    np.testing.assert_allclose(ours["per_category_iou"][present], iou[present], rtol=1e-6)
    assert ours["mean_iou"] == pytest.approx(iou[present].mean(), rel=1e-6)


@pytest.mark.parametrize("ignore_index", [0, 2, 255, -1, 1000])
def test_any_value_can_be_ignored(ignore_index):
    random = np.random.default_rng(0)
    references = random.choice([0, 1, 2, 3], (8, 9))
    references[0] = ignore_index
    predictions = random.choice([0, 1, 2, 3], (8, 9))
    scores = MeanIoU(num_labels=4, ignore_index=ignore_index).compute(
        predictions=[predictions], references=[references]
    )
    expected = iou_by_sets([predictions], [references], 4, ignore_index)
    np.testing.assert_allclose(scores["per_category_iou"], expected)


def test_more_than_256_classes_are_counted():
    random = np.random.default_rng(0)
    predictions, references = random.integers(0, 700, (2, 50, 60))
    confusion = ConfusionMatrix(700, ignore_index=-1)
    confusion.update(predictions, references)
    expected = np.zeros((700, 700), dtype=int)
    np.add.at(expected, (references.ravel(), predictions.ravel()), 1)
    assert np.array_equal(confusion.matrix, expected)


def load_metric(name, **environment):
    """Load the metric with `evaluate` in a new process and score two pixels."""
    program = (
        "import evaluate, numpy, sys\n"
        "metric = evaluate.load(sys.argv[1], num_labels=3)\n"
        "maps = {'predictions': [numpy.array([[0, 1]])], 'references': [numpy.array([[0, 2]])]}\n"
        "metric.add_batch(**maps)\n"
        "print(metric.compute()['mean_iou'])"
    )
    variables = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", program, name],
        env={**variables, **environment},
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.strip().splitlines()[-1])


MODULE = Path(mean_iou.__file__)


def test_evaluate_loads_the_metric_by_path_without_the_package(tmp_path):
    assert load_metric(str(MODULE), HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1") == pytest.approx(1 / 3)


def test_evaluate_loads_the_metric_by_the_id_of_a_space(tmp_path):
    """A local server answers as the Hub does for the files of a Space."""
    served = tmp_path / "www/spaces/someone/mean_iou/resolve/main"
    served.mkdir(parents=True)
    (served / "mean_iou.py").write_text(MODULE.read_text())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        score = load_metric("someone/mean_iou", HF_HOME=str(tmp_path / "home"), HF_ENDPOINT=endpoint)
        server.shutdown()
    assert score == pytest.approx(1 / 3)
