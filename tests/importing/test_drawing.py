"""Polygons cover the pixels whose centers are inside by the even-odd rule; overlaps follow one rule."""

import numpy as np
import pytest

from msctr_hf.importing.drawing import DrawnObject, Patch, draw_objects, fill_polygons

HEIGHT, WIDTH = 96, 128
SIZE = (WIDTH, HEIGHT)


def inside(points, offset):
    """Test the center of every pixel against every edge: an odd number of edges to its right means inside."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + offset
    odd = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


def whole(patch):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    height, width = patch.mask.shape
    mask[patch.top : patch.top + height, patch.left : patch.left + width] = patch.mask
    return mask


def intersection_over_union(one, other):
    return (one & other).sum() / (one | other).sum()


def outlines(seed, count=60, crossing=False):
    """Draw stars of 5 to 12 points and of 4 to 40 pixels, some across the border; `crossing` shuffles points."""
    random = np.random.default_rng(seed)
    while count:
        number, radius = random.integers(5, 13), random.uniform(4, 40)
        angles = np.sort(random.uniform(0, 2 * np.pi, number))
        radii = radius * random.uniform(0.5, 1, (number, 1))
        points = random.uniform(0, SIZE) + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        visible = np.ptp(np.clip(points, 0, SIZE), axis=0)
        if visible.min() >= 6:
            count -= 1
            yield random.permutation(points) if crossing else points


@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize(("centers", "offset"), [(False, 0.5), (True, 0.0)])
def test_polygons_equal_the_even_odd_rule_at_the_centers_of_pixels(centers, offset, crossing):
    worst = min(
        intersection_over_union(whole(fill_polygons([points], SIZE, centers=centers)), inside(points, offset))
        for points in outlines(seed=3 + crossing, crossing=crossing)
    )
    assert worst >= 0.98


@pytest.mark.parametrize("centers", [False, True])
def test_the_two_conventions_are_half_a_pixel_apart(centers):
    square = np.array([[2.0, 3.0], [6.0, 3.0], [6.0, 8.0], [2.0, 8.0]])
    mask = whole(fill_polygons([square], SIZE, centers=centers))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    # edges: 4 by 5 pixels from 2, 3 on; centers: the outline belongs to it, one more each way
    assert (columns.tolist(), rows.tolist()) == ([*range(2, 6 + centers)], [*range(3, 8 + centers)])
    assert mask.sum() == len(rows) * len(columns)


def test_an_outline_at_the_border_of_the_image_fills_it():
    edges = np.array([[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]], dtype=float)
    assert whole(fill_polygons([edges], SIZE)).all()
    assert whole(fill_polygons([edges - [[0, 0], [1, 0], [1, 1], [0, 1]]], SIZE, centers=True)).all()


@pytest.mark.parametrize("end", [(10, 10), (10, 20), (20, 10), (20, 20), (20, 15)])
def test_a_polygon_thinner_than_a_pixel_is_a_line_where_the_outline_belongs_to_it(end):
    points = np.array([[10, 10], end, end, [10, 10]], dtype=float)
    mask = whole(fill_polygons([points], SIZE, centers=True))
    assert mask.sum() == max(end[0] - 10, end[1] - 10) + 1
    assert mask[10, 10] and mask[end[1], end[0]]
    assert not whole(fill_polygons([points + 500], SIZE, centers=True)).any()


def test_polygons_outside_the_image_cover_nothing():
    far = np.array([[200.0, 10.0], [300.0, 10.0], [250.0, 90.0]])
    assert not whole(fill_polygons([far], SIZE)).any()
    assert not whole(fill_polygons([far - 400], SIZE)).any()


def test_polygons_of_an_object_are_united_where_they_overlap():
    square = np.array([[10.0, 10], [30, 10], [30, 30], [10, 30]])
    both = whole(fill_polygons([square, square + 10], SIZE))
    assert np.array_equal(both, inside(square, 0.5) | inside(square + 10, 0.5))


def test_a_hole_that_is_joined_to_the_outline_stays_a_hole():
    outer = [[10, 10], [40, 10], [40, 40], [10, 40], [10, 10]]
    hole = [[20, 20], [20, 30], [30, 30], [30, 20], [20, 20]]
    mask = whole(fill_polygons([np.array([*outer, *hole], dtype=float)], SIZE))
    assert mask.sum() == 30 * 30 - 10 * 10
    assert not mask[20:30, 20:30].any()


def test_smaller_objects_are_above_larger_ones_and_the_later_above_an_equal_one():
    def square(size, left):
        return Patch(np.ones((size, size), dtype=bool), left, 0)

    objects = [
        DrawnObject(1, square(3, 0)),
        DrawnObject(2, square(6, 0)),
        DrawnObject(3, square(4, 8)),
        DrawnObject(4, square(4, 8)),
        DrawnObject(255, square(2, 0), is_crowd=True),
    ]
    labels = draw_objects(objects, (14, 7), background=0)
    assert labels[0].tolist() == [1, 1, 1, 2, 2, 2, 0, 0, 4, 4, 4, 4, 0, 0]
    assert labels[5].tolist() == [2] * 6 + [0] * 8
    assert not labels[6].any()
