"""Shares divide images by their names alone: exactly, reproducibly, and almost unchanged by further images."""

import hashlib
import random
from fractions import Fraction

import pytest

from msctr_hf.data.shares import Share, in_seeded_order
from msctr_hf.errors import UsageError

TENTH = (("validation", Fraction(1, 10)),)


def test_the_order_of_names_is_the_one_that_was_recorded():
    names = [f"{number:04d}" for number in range(8)]
    assert in_seeded_order(names, 0) == ["0001", "0006", "0007", "0004", "0000", "0005", "0002", "0003"]
    assert in_seeded_order(names, 1) == ["0005", "0006", "0002", "0000", "0001", "0007", "0003", "0004"]
    by_hand = sorted(names, key=lambda name: hashlib.sha256(f"7 {name}".encode()).hexdigest())
    assert in_seeded_order(names, 7) == by_hand


def test_the_order_of_files_and_the_unicode_form_of_names_do_not_matter():
    names = [f"im\u00e9 {number}" for number in range(50)]
    share = Share("validation", TENTH, rest="train")
    chosen = share.choose(names)
    shuffled = random.Random(0).sample(names, 50)
    assert share.choose(shuffled) == chosen
    decomposed = [name.replace("\u00e9", "e\u0301") for name in shuffled]
    assert {name.replace("e\u0301", "\u00e9") for name in share.choose(decomposed)} == chosen


@pytest.mark.parametrize(
    ("shares", "rest", "count", "expected"),
    [
        ({"validation": 10}, "train", 30, {"validation": 3, "train": 27}),
        ({"validation": 10}, "train", 5, {"validation": 1, "train": 4}),
        ({"validation": 10, "test": 20}, "train", 35, {"validation": 4, "test": 7, "train": 24}),
        ({"validation": 50, "test": 25}, "train", 3, {"validation": 2, "test": 1, "train": 0}),
        ({"validation": "12.5"}, "train", 100, {"validation": 13, "train": 87}),
        ({"validation": 10, "train": 50}, None, 20, {"validation": 2, "train": 10}),
    ],
)
def test_shares_are_rounded_to_whole_images_and_at_least_one(shares, rest, count, expected):
    shares = tuple((split, Fraction(share) / 100) for split, share in shares.items())
    names = [str(number) for number in range(count)]
    if 0 in expected.values():
        with pytest.raises(UsageError, match=rf"`splits:`: {count} images are too few to be divided into validation"):
            Share("train", shares, rest).choose(names)
        return
    parts = {split: Share(split, shares, rest).choose(names) for split in expected}
    assert {split: len(part) for split, part in parts.items()} == expected
    assert len(set().union(*parts.values())) == sum(expected.values())


def test_a_further_image_moves_at_most_one_other():
    names = [f"frame{number}" for number in range(200)]
    share = Share("validation", TENTH, rest="train")
    for count in range(50, 199):
        before, after = share.choose(names[:count]), share.choose(names[: count + 1])
        assert len((before ^ after) - {names[count]}) <= 1


def test_a_further_image_moves_at_most_three_others_with_two_shares():
    names, splits, moved = [str(number) for number in range(100)], ("validation", "test", "train"), []
    shares = (*TENTH, ("test", Fraction(1, 10)))
    before: dict[str, str] = {}
    for count in range(10, 100):
        after = {name: each for each in splits for name in Share(each, shares, "train").choose(names[:count])}
        moved.append(sum(after[name] != split for name, split in before.items()))
        before = after
    assert max(moved) == 3
