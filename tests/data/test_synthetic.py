import numpy as np
import pytest

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.synthetic import SYNTHETIC_CLASSES, draw_scene


def test_scenes_are_the_same_for_the_same_seed_and_differ_otherwise():
    first, again, other = (np.asarray(draw_scene(seed)[0]) for seed in ((0, 1), (0, 1), (0, 2)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_splits_have_different_scenes_that_together_show_every_class():
    seen = set()
    for split, count in (("train", 400), ("validation", 60)):
        dataset = load_segmentation_dataset("synthetic_scenes", split)
        assert len(dataset) == count
        for index in range(10):
            seen |= set(np.unique(np.asarray(dataset[index]["label"])))
    assert seen - {255} == set(range(len(SYNTHETIC_CLASSES)))
    assert len(SYNTHETIC_CLASSES) >= 8
    first, second = (
        np.asarray(load_segmentation_dataset("synthetic_scenes", split)[0]["image"])
        for split in ("train", "validation")
    )
    assert not np.array_equal(first, second)


def test_objects_range_from_a_few_pixels_to_half_the_image():
    heights = []
    for number in range(40):
        labels = np.asarray(draw_scene((5, number))[1])
        rows = np.flatnonzero((labels == SYNTHETIC_CLASSES.index("person")).any(axis=1))
        if len(rows):
            gaps = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
            heights += [len(gap) for gap in gaps]
    assert min(heights) <= 6
    assert max(heights) >= 0.4 * 192


def test_an_unknown_split_is_refused_with_a_list_of_the_splits():
    with pytest.raises(ValueError, match="splits"):
        load_segmentation_dataset("synthetic_scenes", "val")
