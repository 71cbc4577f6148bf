"""Faults of one kind are one sentence, whatever the names of their files are."""

import pytest

from msctr_hf.data.faults import group_faults

SIZE = "/data/masks/{0}.png is 50x40 pixels but its image /data/images/{0}.jpg is 56x40; they must have the same size."


@pytest.mark.parametrize(
    "names", [("0", "1", "7b"), ("5", "40", "a"), ("a/50", "b/56x40", "c"), ("img 1", "é", "x.y")]
)
def test_faults_that_differ_only_in_names_and_numbers_are_told_once(names):
    (sentence,) = group_faults([(name, SIZE.format(name)) for name in names])
    assert sentence.startswith(f"3 images: {SIZE.format(names[0])[:-1]} (likewise {names[1]}, {names[2]}")


def test_faults_of_different_kinds_are_told_apart():
    faults = [
        ("5", SIZE.format("5")),
        ("6", "/data/images/6.jpg has no label."),
        ("7", "/data/images/7.jpg has no label."),
    ]
    assert [sentence.split(":")[0] for sentence in group_faults(faults)][1] == "2 images"
