"""The division of an export into splits: its own splits, shares, groups."""

from pathlib import Path

import pytest

from msctr_hf.errors import UsageError
from msctr_hf.importing.export import ExportedImage
from msctr_hf.importing.splitting import divide


def images(names, split=None):
    return [ExportedImage(name, Path(name), split, None) for name in names]


def names(divided, split):
    return {image.name for image in divided if image.split == split}


NUMBERED = [f"{number:03d}.jpg" for number in range(200)]


@pytest.mark.parametrize(("share", "count"), [(None, 20), (0.1, 20), (0.25, 50), (0.001, 1), (0.999, 199)])
def test_the_share_of_validation_images_is_kept(share, count):
    divided = divide(images(NUMBERED), share, 0, None)
    assert len(names(divided, "validation")) == count
    assert names(divided, "train") | names(divided, "validation") == {*NUMBERED}


def test_an_export_without_training_images_is_refused_unless_it_is_divided_anew():
    validation, test = images(NUMBERED[:10], "validation"), images(NUMBERED[10:], "test")
    with pytest.raises(UsageError, match="has validation images but no training images; import all of its splits"):
        divide([*validation, *test], None, 0, None)
    assert len(names(divide([*validation, *test], 0.2, 0, None), "train")) == 8
    with pytest.raises(UsageError, match="All 190 images are of the test split"):
        divide(test, None, 0, None)


def test_the_division_depends_on_the_seed_and_not_on_the_order():
    first = names(divide(images(NUMBERED), 0.1, 0, None), "validation")
    assert names(divide(images(NUMBERED[::-1]), 0.1, 0, None), "validation") == first
    assert names(divide(images(NUMBERED), 0.1, 1, None), "validation") != first


def test_the_splits_of_the_export_are_kept_unless_a_share_is_given():
    exported = [*images(["a", "b", "c", "d"], "train"), *images(["e"], "validation"), *images(["f"], "test")]
    assert divide(exported, None, 0, None) == exported
    anew = divide(exported, 0.4, 0, None)
    assert names(anew, "test") == {"f"}
    assert len(names(anew, "validation")) == 2


@pytest.mark.parametrize("pattern", [r"^video\d+", r"(video\d+)_"])
@pytest.mark.parametrize("seed", range(5))
def test_frames_of_one_video_stay_on_one_side(pattern, seed):
    frames = [f"video{video}_{frame}.png" for video in range(12) for frame in range(video + 1)]
    divided = divide(images(frames), 0.2, seed, pattern)
    sides = {}
    for image in divided:
        sides.setdefault(image.name.partition("_")[0], set()).add(image.split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert abs(len(names(divided, "validation")) - 0.2 * len(frames)) <= 6


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(", r"`group_pattern`: '\(' is not a regular expression \("),
        (r"video\d", r"`group_pattern`: 'video\\\\d' matches no part of the name 'a.png'"),
        (r"\.png", r"2 images in 1 group\(s\) cannot be divided"),
    ],
)
def test_patterns_that_divide_nothing_are_refused(pattern, sentence):
    with pytest.raises(UsageError, match=sentence):
        divide(images(["a.png", "b.png"]), None, 0, pattern)


def test_a_pattern_for_splits_that_are_kept_is_refused():
    exported = [*images(["a"], "train"), *images(["b"], "validation")]
    with pytest.raises(UsageError, match="has a validation split, which is kept; add `validation_share`"):
        divide(exported, None, 0, "a")
