import numpy as np
import pytest

from msctr_hf.evaluation.boundary_iou import BoundaryIoU, near_outline


def near_outline_by_loops(labels, distance):
    height, width = labels.shape
    near = np.zeros(labels.shape, dtype=bool)
    for y in range(height):
        for x in range(width):
            for v in range(y - distance, y + distance + 1):
                for u in range(x - distance, x + distance + 1):
                    outside = not (0 <= v < height and 0 <= u < width)
                    near[y, x] |= outside or labels[v, u] != labels[y, x]
    return near


def blocks(seed, size=(24, 30), num_labels=4, block=6):
    random = np.random.default_rng(seed)
    small = random.integers(0, num_labels, (size[0] // block, size[1] // block), dtype=np.uint8)
    return small.repeat(block, 0).repeat(block, 1)


@pytest.mark.parametrize("distance", [1, 2, 3, 5])
def test_pixels_near_outlines_equal_those_that_plain_loops_find(distance):
    labels = blocks(0)
    assert np.array_equal(near_outline(labels, distance), near_outline_by_loops(labels, distance))


@pytest.mark.parametrize("distance", [0.02, 0.06])
def test_boundary_iou_equals_the_iou_of_sets_of_pixels(distance):
    metric = BoundaryIoU(num_labels=5, distance=distance)
    sets = {label: [set(), set()] for label in range(5)}
    for number in range(3):
        reference, prediction = blocks(number), blocks(number + 1)
        reference[:4, :9] = 255
        metric.update(prediction, reference)
        pixels = max(1, round(distance * np.hypot(24, 30)))
        near = [near_outline_by_loops(labels, pixels) for labels in (reference, prediction)]
        for y, x in zip(*np.nonzero(reference != 255), strict=True):
            for which, labels in enumerate((reference, prediction)):
                if near[which][y, x]:
                    sets[labels[y, x]][which].add((number, y, x))
    scores = metric.scores()
    for label, (in_reference, in_prediction) in sets.items():
        either = in_reference | in_prediction
        expected = len(in_reference & in_prediction) / len(either) if either else float("nan")
        np.testing.assert_allclose(scores[label], expected)
    assert np.isnan(scores[4])


def test_a_shift_lowers_boundary_iou_more_than_iou():
    reference = np.zeros((200, 200), dtype=np.uint8)
    reference[50:150, 50:150] = 1
    prediction = np.roll(reference, 6, axis=1)
    metric = BoundaryIoU(num_labels=2)
    metric.update(prediction, reference)
    area = (reference & prediction).sum() / (reference | prediction).sum()
    assert metric.scores()[1] < 0.6 < 0.85 < area
