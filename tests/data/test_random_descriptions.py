"""Random files dataset.yaml are read as an oracle reads them, or refused in a sentence that names a faulty key."""

import copy
import datetime
import random
import warnings

import numpy as np
import pytest
import yaml

from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.errors import UsageError

ODD = (
    None, True, False, 0, 1, 2, 255, 256, -1, 65535, 65536, 70000, 10**30, 1.5, float("nan"), "", " ", "sky", "road",
    "7", "1,2,3", " 1, 2, 3", "0,0,0", "256,0,0", "-1,0,0", "1,2", "\u00b2,0,0", "two\nlines", "../up", "/root", "a/b",
    ".", [], [255], [0, 1], [-1], [70000], ["1,2,3"], [[1, 2, 3]], [1, 2, 3], [1, "1,2,3"], [None], [[]], [{}],
    ["sky"], ["sky", "sky"], ["sky", 1], [300, 0, 0], [1, 2], [1, 2, 3.0], [True, 0, 0], {}, {"sky": [1, 2, 3]},
    {0: "sky"}, {"1,2,3": "sky", 4: "road"}, {0: None}, {0: ["sky"]}, {None: "sky"}, {True: "sky"}, {"up": []},
    {"up": ["sky"]}, {"up": None}, {"up": [[]]}, {1: ["sky"]}, {"images": None, "labels": "b"},
    {"images": "a", "labels": "a"}, datetime.date(2024, 1, 1),
)  # fmt: skip
KEYS = ("classes", "label_values", "label_colors", "ignored", "palette", "groups", "splits", "name", "license")
BASES = (
    {},
    {"label_values": {3: "sky", 7: "road", 700: "road"}, "ignored": [0, 255]},
    {"label_colors": {"1,2,3": "sky", "128,0,0": "road"}, "ignored": ["0,0,0"]},
    {"palette": {"sky": [1, 2, 3], "road": "4,5,6"}, "groups": {"all": ["road", "sky"]}, "name": "N", "license": "L"},
    {"ignored": [0]},
)


def draw(seed):
    """Draw a description: a valid one with up to three values replaced, at any depth."""
    rng = random.Random(seed)
    folders = {split: {"images": f"{split}/a", "labels": f"{split}/b"} for split in ("train", "validation")}
    description = {"classes": ["sky", "road", "car"], "splits": folders, **copy.deepcopy(rng.choice(BASES))}
    for _ in range(rng.randint(0, 3)):
        place, key = description, rng.choice((*KEYS, *description))
        while (
            isinstance(place, dict) and isinstance(place.get(key), (dict, list)) and place[key] and rng.random() < 0.6
        ):
            place = place[key]
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            if isinstance(place, list):
                break
        value = copy.deepcopy(rng.choice(ODD))
        if isinstance(place, dict) and place is not description and rng.random() < 0.5 and is_key(value):
            place[value] = place.pop(key)
        elif rng.random() < 0.05 and isinstance(place, dict):
            place.pop(key, None)
        else:
            place[key] = value
    return description


def is_key(value):
    return not isinstance(value, (list, dict, float))


def color(value):
    try:
        parts = [int(part) for part in value.split(",")]
    except (AttributeError, ValueError):
        return None
    return tuple(parts) if len(parts) == 3 and all(0 <= part <= 255 for part in parts) else None


def number(value):
    return value if type(value) is int and 0 <= value < 65536 else None


def faults(d):
    """Return the keys at fault; empty if the description is valid."""
    classes = d.get("classes")
    if type(classes) is not list or len(classes) < 2 or {type(name) for name in classes} != {str}:
        return {"classes"}
    if len(set(classes)) < len(classes):
        return {"classes"}
    if "label_colors" in d and "label_values" in d:
        return {"label_values", "label_colors"}
    key, parse = ("label_colors", color) if "label_colors" in d else ("label_values", number)
    valid = {
        key: key not in d or valid_labels(d[key], parse, classes),
        "palette": not d.get("palette") or valid_palette(d["palette"], classes),
        "groups": not d.get("groups") or valid_groups(d["groups"], classes),
        "splits": valid_splits(d.get("splits")),
        "name": type(d.get("name", "")) is str and "\n" not in d.get("name", ""),
        "license": not isinstance(d.get("license"), (list, dict)),
    }
    mapped = {parse(raw) for raw in d[key]} if key in d and valid[key] else set()
    valid["ignored"] = valid_ignored(d.get("ignored", []), parse, mapped)
    return {key for key, fine in valid.items() if not fine}


def valid_labels(labels, parse, classes):
    if not isinstance(labels, dict) or not labels or any(name not in classes for name in labels.values()):
        return False
    raw = [parse(value) for value in labels]
    return None not in raw and len(set(raw)) == len(raw)


def valid_ignored(ignored, parse, mapped):
    return type(ignored) is list and all(parse(raw) is not None and parse(raw) not in mapped for raw in ignored)


def valid_palette(palette, classes):
    return isinstance(palette, dict) and all(n in classes and rgb(value) is not None for n, value in palette.items())


def valid_groups(groups, classes):
    return isinstance(groups, dict) and all(
        type(group) is str and type(names) is list and len(names) > 0 and all(name in classes for name in names)
        for group, names in groups.items()
    )


def rgb(value):
    if type(value) is list:
        return tuple(value) if len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value) else None
    return color(value)


def valid_splits(splits):
    if not isinstance(splits, dict) or not splits:
        return False
    for split, folders in splits.items():
        if split not in ("train", "validation", "test") or not isinstance(folders, dict):
            return False
        if set(folders) != {"images", "labels"} or not all(type(f) is str and f.strip() for f in folders.values()):
            return False
        if any(f.startswith("/") or ".." in f.split("/") for f in folders.values()):
            return False
        if folders["images"] == folders["labels"]:
            return False
    return True


def expected_ids(d):
    """Return the train id of every listed raw label."""
    parse = color if "label_colors" in d else number
    listed = d.get("label_colors") or d.get("label_values") or dict(enumerate(d["classes"]))
    ids = {parse(raw): d["classes"].index(name) for raw, name in listed.items()}
    return {**ids, **{parse(raw): 255 for raw in d.get("ignored", [])}}


def check_accepted(d, spec):
    ids = expected_ids(d)
    for raw, train_id in ids.items():
        labels = np.array([[raw]], np.uint8 if isinstance(raw, tuple) else np.uint16)
        assert spec.mapping(labels, "file").tolist() == [[train_id]], raw
    unlisted = (9, 9, 9) if "label_colors" in d else 999
    with pytest.raises(UsageError, match="not listed"):
        spec.mapping(np.array([[unlisted]], np.uint8 if isinstance(unlisted, tuple) else np.uint16), "file")
    assert list(spec.classes) == d["classes"]
    for name, value in (d.get("palette") or {}).items():
        assert spec.palette[d["classes"].index(name)] == rgb(value)
    for group, names in (d.get("groups") or {}).items():
        assert {d["classes"][label] for label in spec.groups[group]} == set(names)
    (layout,) = spec.source.layouts
    assert {split: (files[0].images, files[0].labels) for split, files in layout.items()} == {
        split: (folders["images"], folders["labels"]) for split, folders in d["splits"].items()
    }


def check(seeds, folder):
    outcomes = {"accepted": 0, "refused": 0}
    for seed in seeds:
        description = draw(seed)
        (folder / "dataset.yaml").write_text(yaml.safe_dump(description, sort_keys=False, allow_unicode=True))
        wrong = faults(description)
        try:
            spec = get_dataset_spec("folder", folder)
        except UsageError as error:
            assert any(f"`{key}:`" in str(error) for key in wrong), (seed, description, wrong, str(error))
            outcomes["refused"] += 1
            continue
        assert not wrong, (seed, description, wrong)
        check_accepted(description, spec)
        outcomes["accepted"] += 1
    assert min(outcomes.values()) > len(seeds) / 10, outcomes


def test_random_descriptions_are_read_as_written_or_refused_by_the_faulty_key(tmp_path):
    check(range(150), tmp_path)


@pytest.mark.long
def test_many_random_descriptions_are_read_as_written_or_refused_by_the_faulty_key(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(range(5_000), tmp_path)
