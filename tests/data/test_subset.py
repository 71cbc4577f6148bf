"""A part of the training images is drawn by a seed alone, from every source whose images can be counted."""

import numpy as np
import pytest
from layouts import write_folder

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.settings import DataSettings
from msctr_hf.data.subset import draw_images
from msctr_hf.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), num_train=12)


@pytest.fixture(scope="module")
def images(folder):
    return load_segmentation_dataset("folder", "train", folder)


def ids(dataset):
    return [sample["image_id"] for sample in dataset]


def test_images_are_drawn_without_replacement_in_their_order_and_described(images):
    drawn, description = draw_images(images, 5, seed=3)
    found = ids(drawn)
    assert len(set(found)) == 5
    assert found == [each for each in ids(images) if each in found]
    assert description == {"images": 5, "of": 12, "subset_seed": 3, "image_ids": found}


def test_another_seed_draws_other_images_and_fewer_are_among_more(images):
    draws = [ids(draw_images(images, 6, seed)[0]) for seed in range(5)]
    assert len({tuple(each) for each in draws}) == 5
    assert set(ids(draw_images(images, 3, seed=2)[0])) < set(draws[2])
    assert ids(draw_images(images, 12, seed=2)[0]) == ids(images)


def test_every_image_is_drawn_equally_often(images):
    plain = images.with_format(None).remove_columns([name for name in images.column_names if name != "image_id"])
    draws = 400
    hits = sum(
        np.isin(np.array(plain["image_id"][:]), draw_images(plain, 3, seed)[1]["image_ids"]).astype(int)
        for seed in range(draws)
    )
    deviation = (draws * 0.25 * 0.75) ** 0.5
    assert abs(hits - draws / 4).max() < 4 * deviation


@pytest.mark.parametrize("predecode", [False, True], ids=["parquet", "predecoded"])
def test_a_copy_of_a_folder_gives_the_same_images(run_script, folder, images, tmp_path, predecode):
    options = ["--dataset", "folder", "--data_dir", folder, "--num_workers", "0", "--output_dir", tmp_path / "copy"]
    assert run_script("prepare_dataset.py", *options, "--predecode", str(predecode))[0] == 0
    copy = load_segmentation_dataset("folder", "train", tmp_path / "copy")
    drawn, description = draw_images(copy, 4, seed=1)
    assert description == draw_images(images, 4, seed=1)[1]
    assert ids(drawn) == description["image_ids"]
    assert drawn[0]["label"].size == images[0]["label"].size


def test_images_that_are_computed_or_of_several_splits_are_drawn_too(folder):
    for settings in ({"dataset": "synthetic_scenes"}, {"dataset": "folder", "data_dir": str(folder)}):
        both = DataSettings(**settings, train_split="train+validation", train_images=3)
        drawn, description = both.load_training(seed=7)
        assert len(ids(drawn)) == description["images"] == 3
        assert description["of"] == len(both.load("train+validation"))
        assert description["subset_seed"] == 7
    assert DataSettings(train_images=3, subset_seed=2).load_training(seed=7)[1]["subset_seed"] == 2


def test_all_images_are_used_by_default(folder, images):
    everything, description = DataSettings(dataset="folder", data_dir=str(folder)).load_training(seed=7)
    assert ids(everything) == ids(images)
    assert description is None


def test_more_images_than_there_are_a_stream_and_a_seed_without_a_number_are_refused(images):
    with pytest.raises(UsageError, match="`train_images` must be at most 12, the number of training images, got 13"):
        draw_images(images, 13, seed=0)
    with pytest.raises(UsageError, match="`train_images=5` draws from all images, and a stream does not tell"):
        draw_images(images.with_format(None).to_iterable_dataset(), 5, seed=0)
    with pytest.raises(UsageError, match="`subset_seed` is 3, but all images are trained on"):
        DataSettings(subset_seed=3)
    with pytest.raises(UsageError, match="`train_images` must be at least 1, got 0"):
        DataSettings(train_images=0)
