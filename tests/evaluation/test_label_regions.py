"""Suspicious cells and their regions: suggestions, connected components, their pixels, and their file."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from msctr_hf.evaluation.label_regions import (
    Component,
    Region,
    find_components,
    load_regions,
    pixels_of_cells,
    save_regions,
    suggest_classes,
)


def plain_suggestion(label, votes, probabilities, can_vote):
    """Suggest a class for one cell; return it with its score."""

    def agreement(each):
        share = (votes[each] + 1) / (sum(votes) + len(votes))
        probability = max(probabilities[each], 1e-3)
        return math.sqrt(share * probability) if can_vote[each] else probability

    candidates = [each for each in range(len(votes)) if can_vote[each]]
    best = max(candidates, key=agreement)
    objections = votes[label] < max(votes), probabilities[label] < max(probabilities)
    score = math.log(agreement(best) / agreement(label)) if all(objections) else 0
    return best, max(score, 0)


def test_suggestions_and_scores_equal_plain_loops():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 200)
    votes = random.multinomial(7, [0.4, 0.3, 0.3, 0.0], 200)
    probabilities = random.dirichlet([0.2] * 4, 200).astype(np.float32)
    can_vote = np.array([True, True, True, False])
    suggestions, scores = suggest_classes(labels, votes, probabilities, can_vote)
    expected = [
        plain_suggestion(*cell, can_vote.tolist())
        for cell in zip(labels.tolist(), votes.tolist(), probabilities.tolist(), strict=True)
    ]
    assert suggestions.tolist() == [suggestion for suggestion, _ in expected]
    np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-6)
    assert (scores > 0).sum() > 50
    assert (scores[labels == 3] > 0).any()
    assert np.isfinite(scores).all()


def test_a_label_that_neighbors_or_network_prefer_is_not_suspicious():
    votes = np.array([[9, 1], [1, 9], [5, 5], [1, 9]])
    probabilities = np.array([[0.01, 0.99], [0.99, 0.01], [0.01, 0.99], [0.01, 0.99]])
    scores = suggest_classes(np.zeros(4, dtype=int), votes, probabilities, np.array([True, True]))[1]
    assert (scores > 0).tolist() == [False, False, False, True]


def test_nothing_is_suggested_without_voters():
    _, scores = suggest_classes(np.zeros(3, dtype=int), np.zeros((3, 2)), np.eye(2)[[1, 1, 0]], np.zeros(2, bool))
    assert scores.tolist() == [0, 0, 0]


def flood_fill(labels, suggestions, scores, width):
    """Find the components of every pair by a plain flood fill; leave out those within `width` cells of a boundary."""
    height, length = labels.shape
    seen, found = set(), []
    for start in np.ndindex(labels.shape):
        if start in seen or scores[start] <= 0:
            continue
        pair, component, waiting = (labels[start], suggestions[start]), set(), [start]
        while waiting:
            row, column = cell = waiting.pop()
            inside = 0 <= row < height and 0 <= column < length
            if not inside or cell in component or scores[cell] <= 0 or (labels[cell], suggestions[cell]) != pair:
                continue
            component.add(cell)
            waiting += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        seen |= component
        if any(is_inside(labels, cell, width) for cell in component):
            found.append((*map(int, pair), sorted(component)))
    return sorted(found)


def is_inside(labels, cell, width):
    rows, columns = (range(max(0, place - width), place + width + 1) for place in cell)
    around = [
        labels[row, column] for row in rows for column in columns if row < len(labels) and column < len(labels[0])
    ]
    return all(label == labels[cell] for label in around)


@pytest.mark.parametrize("width", [0, 1, 2])
def test_components_equal_a_plain_flood_fill(width):
    random = np.random.default_rng(1)
    labels = random.choice([0, 1, 255], (3, 4)).repeat(6, axis=0).repeat(7, axis=1)
    suggestions = random.integers(2, 4, labels.shape)
    scores = (random.random(labels.shape) < 0.6) * (labels != 255) * 1.5
    found = [
        (each.label, each.suggestion, [tuple(map(int, cell)) for cell in np.argwhere(in_map(each, labels.shape))])
        for each in find_components(labels, suggestions, scores, width)
    ]
    assert found == flood_fill(labels, suggestions, scores, width)
    assert len(found) > 3


def in_map(component, size):
    cells = np.zeros(size, dtype=bool)
    cells[component.part] = component.cells
    return cells


def component_of(label, cells):
    """Build a component from its cells in the whole map."""
    (part,) = ndimage.find_objects(cells.astype(int))
    return Component(label, label + 1, part, cells[part])


def whole_map_pixels(cells, extent, labels, label):
    """Upsample the whole map, and cut out the bounding box of the pixels in the cells that have the label."""
    rows, columns = (np.arange(side) * n // e for side, n, e in zip(labels.shape, cells.shape, extent, strict=True))
    pixels = cells[rows][:, columns] & (labels == label)
    if not pixels.any():
        return None
    places = np.argwhere(pixels)
    (top, left), (bottom, right) = places.min(axis=0), places.max(axis=0) + 1
    return top, left, pixels[top:bottom, left:right]


@pytest.mark.parametrize(
    ("size", "extent"), [((60, 83), (60, 84)), ((61, 79), (64, 80)), ((60, 80), (61, 83)), ((9, 11), (13, 12))]
)
def test_components_in_their_boxes_equal_those_of_whole_maps_bit_for_bit(size, extent):
    random, of_map = np.random.default_rng(4), (15, 21)
    labels = random.choice([0, 1, 2, 255], (5, 7)).repeat(3, axis=0).repeat(3, axis=1)
    suggestions = random.integers(0, 3, of_map)
    scores = random.random(of_map) * (random.random(of_map) < 0.8) * (labels != 255)
    of_pixels = random.integers(0, 3, size)
    found = list(find_components(labels, suggestions, scores, 1))
    expected = flood_fill(labels, suggestions, scores, 1)
    assert len(found) == len(expected) > 9
    for component, (label, _, cells) in zip(found, expected, strict=True):
        whole = np.zeros(of_map, dtype=bool)
        whole[tuple(np.transpose(cells))] = True
        (part,) = ndimage.find_objects(whole.astype(int))
        assert component.part == part
        assert component.cells.shape == whole[part].shape
        assert scores[component.part][component.cells].tobytes() == scores[whole].tobytes()  # in the same order
        pixels = pixels_of_cells(component, of_map, extent, of_pixels)
        wanted = whole_map_pixels(whole, extent, of_pixels, label)
        assert (pixels is None) == (wanted is None)
        if pixels is not None:
            assert pixels[:2] == wanted[:2]
            assert np.array_equal(pixels[2], wanted[2])


def test_the_cost_of_a_region_does_not_grow_with_the_map():
    """A region of 4 x 4 cells takes less than the bytes of one side of its image."""
    labels = np.zeros((3000, 3000), dtype=np.uint8)
    scores = np.zeros((750, 750))
    scores[300:304, 500:504] = 1
    (component,) = find_components(np.zeros_like(scores, dtype=int), np.ones_like(scores, dtype=int), scores, 1)
    assert component.cells.base is None  # nothing of the map is kept
    assert component.cells.nbytes == 16
    tracemalloc.start()
    top, left, mask = pixels_of_cells(component, scores.shape, labels.shape, labels)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (top, left, mask.shape) == (1200, 2000, (16, 16))
    assert used < 3000 * np.dtype(int).itemsize


def test_a_region_has_the_pixels_of_its_cells_that_have_its_label():
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, (26, 33))
    cells = np.zeros((7, 9), dtype=bool)
    cells[2:6, 3:9] = random.random((4, 6)) < 0.7
    extent = (28, 36)  # the last cells reach beyond the image
    top, left, mask = pixels_of_cells(component_of(1, cells), cells.shape, extent, labels)
    expected = np.zeros(labels.shape, dtype=bool)
    for row, column in np.ndindex(labels.shape):
        expected[row, column] = cells[row // 4, column // 4] and labels[row, column] == 1
    found = np.zeros_like(expected)
    found[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    assert np.array_equal(found, expected)
    assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()  # noqa: PT018
    assert pixels_of_cells(component_of(5, cells), cells.shape, extent, labels) is None


def test_regions_are_the_same_after_they_were_saved(tmp_path):
    random = np.random.default_rng(3)
    masks = [random.random(size) < 0.5 for size in ((3, 5), (1, 1), (9, 2))]
    regions = [
        Region(number, f"böse/{number}", 1, 2, 1 / (number + 3), 4, 5, mask) for number, mask in enumerate(masks)
    ]
    save_regions(tmp_path / "some.npz", regions, "key")
    save_regions(tmp_path / "none.npz", [])
    again, key = load_regions(tmp_path / "some.npz")
    assert key == "key"
    for before, after in zip(regions, again, strict=True):
        assert np.array_equal(before.mask, after.mask)
        assert {**vars(before), "mask": None} == {**vars(after), "mask": None}
    assert again[0].box == (4, 5, 7, 10)
    assert again[0].area == masks[0].sum()
    assert load_regions(tmp_path / "none.npz") == ([], "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.npz", "some.npz"]


def test_a_damaged_file_of_regions_is_refused_wherever_it_was_cut_off(tmp_path):
    path = tmp_path / "regions.npz"
    save_regions(path, [Region(0, "a", 1, 2, 0.5, 4, 5, np.ones((30, 50), dtype=bool))])
    content = path.read_bytes()
    for changed in (b"", content[:1], content[:100], content[:-1], content[:60] + b"x" + content[61:], b"nothing"):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="."):
            load_regions(path)
    with pytest.raises(FileNotFoundError):
        load_regions(tmp_path / "none.npz")
