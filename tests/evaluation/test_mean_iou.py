import numpy as np
import pytest

from msctr_hf import MeanIoU
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


def test_equals_counting_sets_pixel_by_pixel():
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
    assert np.isnan(scores["per_category_iou"][[3, 5]]).all()  # in neither: no part of the mean


def test_hand_computed_case():
    scores = MeanIoU(num_labels=3).compute(
        predictions=[np.array([[0, 0, 1, 2]])], references=[np.array([[0, 1, 1, 255]])]
    )
    np.testing.assert_allclose(scores["per_category_iou"], [0.5, 0.5, np.nan])
    np.testing.assert_allclose(scores["per_category_accuracy"], [1.0, 0.5, np.nan])
    assert scores["overall_accuracy"] == pytest.approx(2 / 3)
    assert scores["mean_accuracy"] == pytest.approx(0.75)


def test_compute_forgets_and_starts_anew():
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
        ([[3]], [[0]], "prediction holds 3..3"),
        ([[-1]], [[0]], "prediction"),
        ([[3]], [[255]], "prediction"),
        ([[0]], [[7]], "reference holds"),
        ([[0, 1]], [[0]], "shape"),
    ],
)
def test_values_outside_the_classes_raise(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(num_labels=3).add_batch(predictions=[np.array(prediction)], references=[np.array(reference)])


def test_everything_ignored_is_nan_not_an_error():
    scores = MeanIoU(num_labels=2).compute(predictions=[np.zeros((2, 2), int)], references=[np.full((2, 2), 255)])
    assert np.isnan(scores["mean_iou"])
