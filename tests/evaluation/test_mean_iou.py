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


def stock_scores(predictions, references, num_labels, ignore_index=255, nan_to_num=None, label_map=None, reduce=False):
    """Compute what the published metric returns for these arguments, pixel by pixel."""
    counts = np.zeros((3, num_labels))  # intersections, predictions, references
    for prediction, reference in zip(predictions, references, strict=True):
        for p, r in zip(np.asarray(prediction).ravel().tolist(), np.asarray(reference).ravel().tolist(), strict=True):
            r = (label_map or {}).get(r, r)  # all entries of the map refer to the original values
            if reduce:
                r = 255 if r in (0, 255) else r - 1
            if r != ignore_index:
                counts[1, p] += 1
                counts[2, r] += 1
                counts[0, p] += p == r
    with np.errstate(invalid="ignore"):
        iou, accuracy = counts[0] / (counts[1] + counts[2] - counts[0]), counts[0] / counts[2]
        overall = counts[0].sum() / counts[2].sum()
    means = {"mean_iou": np.nanmean(iou), "mean_accuracy": np.nanmean(accuracy), "overall_accuracy": overall}
    scores = {**means, "per_category_iou": iou, "per_category_accuracy": accuracy}
    return (
        scores
        if nan_to_num is None
        else {name: np.nan_to_num(value, nan=nan_to_num) for name, value in scores.items()}
    )


PAIR = {"predictions": [np.array([[0, 0, 1, 2, 2, 2]])], "references": [np.array([[0, 1, 1, 0, 1, 2]])]}


def assert_scores_equal(ours, expected):
    assert set(ours) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-12, err_msg=name)


def test_compute_takes_the_ignore_index_of_the_stock_metric():
    scores = MeanIoU(num_labels=3).compute(**PAIR, ignore_index=0)
    # without the labels 0: the references 1, 1, 1, 2 are predicted as 0, 1, 2, 2
    np.testing.assert_allclose(scores["per_category_iou"], [0, 1 / 3, 1 / 2])
    assert scores["mean_iou"] == pytest.approx(5 / 18)


@pytest.mark.parametrize("values_fit_bytes", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        {"ignore_index": 0},
        {"ignore_index": 2},
        {"ignore_index": None},
        {"label_map": {1: 2, 2: 1}},
        {"label_map": {1: 2, 2: 3, 0: 255}},
        {"label_map": {0: 255}, "nan_to_num": -1},
        {"nan_to_num": 0},
        {"nan_to_num": 0.25, "ignore_index": 1},
        {"reduce_labels": True},
        {"reduce_labels": True, "label_map": {1: 0, 3: 4}, "nan_to_num": 7},
    ],
    ids=str,
)
def test_the_arguments_of_the_stock_metric_give_its_scores(arguments, values_fit_bytes):
    random = np.random.default_rng(0)
    references = random.integers(0, 4, (3, 6, 7))
    predictions = random.integers(0, 4, (3, 6, 7))
    num_labels = 5 if values_fit_bytes else 300
    if not values_fit_bytes:
        predictions[0, 0] = 299
    keywords = {name: value for name, value in arguments.items() if name != "reduce_labels"}
    reduce = arguments.get("reduce_labels", False)
    expected = stock_scores(predictions, references, num_labels, reduce=reduce, **keywords)

    at_once = MeanIoU(num_labels=num_labels).compute(predictions=predictions, references=references, **arguments)
    assert_scores_equal(at_once, expected)
    metric = MeanIoU()  # as `evaluate.load("mean_iou")`: everything is given when the scores are computed
    metric.add(prediction=predictions[0], reference=references[0])
    metric.add_batch(predictions=predictions[1:], references=references[1:])
    assert_scores_equal(metric.compute(num_labels=num_labels, **{"ignore_index": 255, **arguments}), expected)
    made = MeanIoU(num_labels, **arguments)
    made.add_batch(predictions=predictions, references=references)
    assert_scores_equal(made.compute(), expected)


def test_the_example_of_the_stock_metric_gives_its_published_scores():
    maps = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    labels = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    scores = MeanIoU().compute(
        predictions=[np.array(each) for each in maps],
        references=[np.array(each) for each in labels],
        num_labels=10,
        ignore_index=255,
        reduce_labels=False,
    )
    assert scores["mean_iou"] == pytest.approx(0.4775)
    assert scores["mean_accuracy"] == pytest.approx(0.5916666666666666)
    assert scores["overall_accuracy"] == pytest.approx(0.5263157894736842)
    np.testing.assert_allclose(scores["per_category_iou"], [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])


def test_the_arguments_of_one_call_do_not_change_the_next():
    metric = MeanIoU(num_labels=3)
    before = metric.compute(**PAIR)
    metric.compute(**PAIR, ignore_index=0, label_map={1: 2}, nan_to_num=5)
    assert_scores_equal(metric.compute(**PAIR), before)


@pytest.mark.parametrize(
    ("method", "keywords", "named"),
    [
        ("compute", {"prediction": PAIR["predictions"], "references": PAIR["references"]}, "prediction"),
        ("compute", {**PAIR, "ignore_label": 0}, "ignore_label"),
        ("compute", {**PAIR, "reduce_zero_label": True}, "reduce_zero_label"),
        ("compute", {"predictions": PAIR["predictions"]}, "references"),
        ("compute", {"references": PAIR["references"]}, "predictions"),
        ("add_batch", {"prediction": PAIR["predictions"], "references": PAIR["references"]}, "prediction"),
        ("add_batch", {"predictions": PAIR["predictions"]}, "references"),
        ("add_batch", {**PAIR, "ignore_index": 0}, "ignore_index"),
        ("add", {"predicted": PAIR["predictions"][0], "reference": PAIR["references"][0]}, "predicted"),
        ("add", {"prediction": PAIR["predictions"][0]}, "reference"),
        ("compute", {**PAIR, "num_labels": 0}, "num_labels"),
        ("compute", {**PAIR, "num_labels": 2.5}, "num_labels"),
        ("compute", {**PAIR, "ignore_index": "0"}, "ignore_index"),
        ("compute", {**PAIR, "label_map": [2, 1, 0]}, "label_map"),
        ("compute", {**PAIR, "label_map": {"0": 1}}, "label_map"),
        ("compute", {**PAIR, "label_map": {0: "road"}}, "label_map"),
        ("compute", {**PAIR, "nan_to_num": "zero"}, "nan_to_num"),
        ("compute", {**PAIR, "reduce_labels": "yes"}, "reduce_labels"),
        ("compute", {**PAIR, "label_map": {1: 3}}, "reference"),
    ],
)
def test_arguments_that_the_stock_metric_does_not_have_or_cannot_use_are_errors_and_change_nothing(
    method, keywords, named
):
    metric = MeanIoU(num_labels=3)
    metric.add_batch(**PAIR)
    with pytest.raises((TypeError, ValueError), match=named):
        getattr(metric, method)(**keywords)
    assert_scores_equal(metric.compute(), MeanIoU(num_labels=3).compute(**PAIR))


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (np.array([[0.9, 0.2]]), np.array([[1, 0]]), "prediction.*float64.*argmax"),
        (np.array([[1.0, 0.0]], np.float32), np.array([[1, 0]]), "prediction.*float32"),
        (torch.tensor([[0.9, 0.2]]), np.array([[1, 0]]), "prediction.*float32"),
        (np.array([[1, 0]]), np.array([[1.0, 0.0]]), "reference.*float64"),
        (np.array([["a", "b"]]), np.array([[1, 0]]), "prediction"),
        (np.array([[1, None]]), np.array([[1, 0]]), "prediction"),
        (np.array([[0, 1]]), np.array([[2**40, 0]]), "reference has values"),
    ],
)
def test_maps_that_are_not_integers_are_refused(prediction, reference, message):
    for add in (ConfusionMatrix(2).update, lambda p, r: MeanIoU(num_labels=2).add(prediction=p, reference=r)):
        with pytest.raises(ValueError, match=message):
            add(prediction, reference)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint16, np.int32, np.uint64])
def test_maps_of_any_integers_or_booleans_are_counted(dtype):
    maps = np.array([[0, 1, 1, 0]]).astype(dtype)
    scores = MeanIoU(num_labels=2).compute(predictions=[maps], references=[np.array([[0, 1, 0, 0]])])
    np.testing.assert_allclose(scores["per_category_iou"], [2 / 3, 1 / 2])


@pytest.mark.parametrize(
    "batch",
    [
        {"predictions": [[[0]], [[7]]], "references": [[[0]], [[0]]]},
        {"predictions": [[[0]], [[1]]], "references": [[[0]], [[7]]]},
        {"predictions": [[[0]], [[1, 1]]], "references": [[[0]], [[1]]]},
        {"predictions": [[[0]], [[0.5]]], "references": [[[0]], [[1]]]},
        {"predictions": [[[0]], [[1]]], "references": [[[0]]]},
    ],
)
@pytest.mark.parametrize("method", ["add_batch", "compute"])
def test_a_refused_batch_counts_none_of_its_pairs(batch, method):
    metric = MeanIoU(num_labels=3)
    metric.add_batch(**PAIR)
    with pytest.raises(ValueError):
        getattr(metric, method)(**batch)
    assert_scores_equal(metric.compute(), MeanIoU(num_labels=3).compute(**PAIR))


def test_any_number_of_different_pairs_is_added_up(monkeypatch):
    monkeypatch.setattr(mean_iou, "_MANY_PAIRS", 50)
    random = np.random.default_rng(0)
    references = random.choice([-1, 0, 1, 2, 3, 255, 70_000], (5, 9, 8))
    predictions = random.choice([-1, 0, 1, 2, 3], (5, 9, 8))
    metric = MeanIoU()
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    # only pixels whose values are classes, and those that the map of labels ignores, are left
    predictions[predictions == -1] = 0
    with pytest.raises(ValueError, match="prediction has values in -1..-1"):
        metric.compute(num_labels=4, label_map={-1: 255, 70_000: 2})
    metric = MeanIoU()
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    expected = stock_scores(predictions, references, 4, label_map={-1: 255, 70_000: 2})
    assert_scores_equal(metric.compute(num_labels=4, label_map={-1: 255, 70_000: 2}), expected)


def test_scores_of_nothing_are_an_error():
    metric = MeanIoU(num_labels=2)
    with pytest.raises(ValueError, match="add"):
        metric.compute()
    with pytest.raises(ValueError, match="num_labels"):
        MeanIoU().compute(**PAIR)


def test_shares_of_several_processes_are_not_counted_as_the_whole():
    with pytest.raises(ValueError, match="num_process"):
        MeanIoU(num_labels=2, num_process=2, process_id=0)


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
