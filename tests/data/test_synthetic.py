import numpy as np
import pytest
from PIL import Image

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.synthetic import ARTIFICIAL_TREE, SYNTHETIC_CLASSES, TREE, draw_bands, draw_scene
from msctr_hf.errors import UsageError


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


def test_red_green_and_blue_do_not_tell_artificial_trees_from_real_ones_but_near_infrared_does():
    inside = {TREE: [], ARTIFICIAL_TREE: []}
    for number in range(12):
        bands, label = draw_bands((1, number))
        image, plain = draw_scene((1, number))
        labels = np.asarray(label)
        assert np.array_equal(bands[..., :3], np.asarray(image))  # drawn before the kind of a tree is chosen
        assert np.array_equal(np.where(labels == ARTIFICIAL_TREE, TREE, labels), np.asarray(plain))
        for kind, values in inside.items():
            values.append(bands[labels == kind])
    real, artificial = (np.concatenate(inside[kind])[:, 3].astype(float) for kind in (TREE, ARTIFICIAL_TREE))
    assert min(len(real), len(artificial)) > 10_000  # half of the trees are artificial
    assert real.mean() - artificial.mean() > 5 * (real.std() + artificial.std()) / 2


@pytest.mark.parametrize(("count", "dtype"), [(None, Image.Image), (3, np.ndarray), (4, np.ndarray)])
def test_scenes_with_near_infrared_have_three_or_four_bands(count, dtype):
    row = load_segmentation_dataset("synthetic_scenes_nir", "validation", num_channels=count)[0]
    assert isinstance(row["image"], dtype)
    assert np.asarray(row["image"]).shape == (192, 256, count or 3)
    assert np.array_equal(np.asarray(row["image"])[..., :3], np.asarray(draw_scene((1, 0))[0]))
    rows = load_segmentation_dataset("synthetic_scenes", "validation", num_channels=4)
    with pytest.raises(UsageError, match="A scene has 3 channels, but `num_channels` is 4"):
        rows[0]


@pytest.mark.parametrize("argument", ["data_dir", "dataset_name", "corrections"])
def test_files_are_refused_since_scenes_are_drawn(tmp_path, argument):
    with pytest.raises(UsageError, match=f"`{argument}` .*synthetic_scenes is drawn on demand .*`dataset='folder'`"):
        load_segmentation_dataset("synthetic_scenes", "train", **{argument: str(tmp_path)})
