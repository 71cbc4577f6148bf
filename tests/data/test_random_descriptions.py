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
    {"images": "a", "labels": "a"}, datetime.date(2024, 1, 1), "10 %", "12.5%", "60 %", "100 %", "0 %", "x %", "-5 %",
    "list.txt", ["0001", "a/2"], ["0001", 2], [" "], "p/*.jpg", "m/*_mask.png", "m/*", "p/*/*.jpg", "p/**/*.jpg",
    "v*/i", "m/*.jpg", "_mask", "_mask.png", ".gif", ".jpg", "a*", {"images": "p/*.jpg", "labels": "m/*_mask.png"},
    {"images": "p/*.jpg", "labels": "m"}, {"images": "p/*/*.jpg", "labels": "m/*.png"}, {"images": "a"},
    {"images": "a", "label_suffix": "_m"}, {"images": "a", "label_suffix": "_m.jpg"},
    {"images": "a/*.jpg", "label_suffix": "_m"}, {"images": "v*/i", "labels": "m/*.png"},
    {"images": "a", "labels": "b", "names": "c"},
)  # fmt: skip
KEYS = (
    *("classes", "label_values", "label_colors", "ignored", "palette", "groups", "splits", "name", "license"),
    *("images", "labels", "label_suffix", "ignore_case", "seed"),
)
SPLITS = ("train", "validation", "test")
SHARED = {"images": "a", "labels": "b"}
BASES = (
    {},
    {"label_values": {3: "sky", 7: "road", 700: "road"}, "ignored": [0, 255]},
    {"label_colors": {"1,2,3": "sky", "128,0,0": "road"}, "ignored": ["0,0,0"]},
    {"palette": {"sky": [1, 2, 3], "road": "4,5,6"}, "groups": {"all": ["road", "sky"]}, "name": "N", "license": "L"},
    {"ignored": [0]},
    {**SHARED, "splits": {"validation": "10 %"}, "seed": 1},
    {**SHARED, "splits": {"train": "70 %", "validation": "20%", "test": "test.txt"}, "ignore_case": True},
    {**SHARED, "splits": {"train": "a/train.txt", "validation": ["0001", "a/2"]}},
    {"images": "a", "label_suffix": "_mask", "splits": {"validation": "10 %", "test": {"images": "test"}}},
    {"images": "p/*.jpg", "labels": "m/*_mask.png", "splits": {"train": "80 %", "validation": "20 %"}},
    {"splits": {"train": {**SHARED}, "validation": "10 %"}, "seed": 0},
    {"label_suffix": "_mask"},
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
        "name": type(d.get("name", "")) is str and "\n" not in d.get("name", ""),
        "license": not isinstance(d.get("license"), (list, dict)),
    }
    mapped = {parse(raw) for raw in d[key]} if key in d and valid[key] else set()
    valid["ignored"] = valid_ignored(d.get("ignored", []), parse, mapped)
    return {key for key, fine in valid.items() if not fine} | layout_faults(d)


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


def layout_faults(d):
    """Return the keys at fault among those about files."""
    if "splits" not in d:
        return {key for key in ("images", "labels", "label_suffix", "ignore_case", "seed") if key in d}
    wrong, splits = set(), d["splits"]
    if type(d.get("ignore_case", False)) is not bool:
        wrong.add("ignore_case")
    if "seed" in d and (type(d["seed"]) is not int or d["seed"] < 0):
        wrong.add("seed")
    if "label_suffix" in d and not valid_suffix(d["label_suffix"]):
        wrong.add("label_suffix")
    if ("images" in d or "labels" in d) and not valid_files(d, d.get("label_suffix"), labels_needed=True):
        wrong |= {"images", "labels", "label_suffix"}
    if not isinstance(splits, dict) or not splits or not set(splits) <= set(SPLITS):
        return {*wrong, "splits"}
    if not all(valid_split(split, part, d.get("label_suffix")) for split, part in splits.items()):
        wrong |= {"splits", "label_suffix"}
    kinds = {split: kind(part) for split, part in splits.items()}
    divided = {split for split in splits if kinds[split] != "files"}
    shares = {split: percent(splits[split]) for split in splits if kinds[split] == "share"}
    if "seed" in d and not shares:
        wrong.add("seed")
    if not divided and "images" in d:
        wrong.add("images")
    if divided and "images" not in d and kinds.get("train") != "files":
        wrong.add("splits")
    if (
        "train" in splits
        and shares
        and "train" not in shares
        and not ("images" not in d and kinds["train"] == "files")
    ):
        wrong.add("splits")
    if None not in shares.values() and sum(shares.values()) > (100 if "train" in shares else 99.99):
        wrong.add("splits")
    return wrong


def kind(part):
    if isinstance(part, str):
        return "share" if "%" in part else "list"
    return "list" if isinstance(part, list) else "files"


def percent(part):
    try:
        value = float(part.removesuffix("%"))
    except ValueError:
        return None
    return value if 0 < value < 100 else None


def valid_split(split, part, suffix):
    if isinstance(part, dict):
        if not set(part) <= {"images", "labels", "label_suffix"}:
            return False
        if "label_suffix" in part and not valid_suffix(part["label_suffix"]):
            return False
        return valid_files(part, part.get("label_suffix", suffix), labels_needed=split != "test")
    if isinstance(part, list):
        return bool(part) and all(type(name) is str and name.strip() for name in part)
    return isinstance(part, str) and (percent(part) is not None if "%" in part else valid_path(part))


def valid_suffix(suffix):
    return type(suffix) is str and suffix.strip() != "" and not set(suffix) & set("/*") and not suffix.endswith(".jpg")


def valid_path(path):
    return type(path) is str and path.strip() != "" and not path.startswith("/") and ".." not in path.split("/")


def valid_files(files, suffix, labels_needed):
    images, labels = files.get("images"), files.get("labels")
    if "images" not in files or (labels_needed and "labels" not in files and suffix is None):
        return False
    if not valid_path(images) or ("labels" in files and not valid_path(labels)):
        return False
    labels = labels or ""
    if "*" not in images + labels:
        return suffix is not None or images != labels
    if suffix is not None or any("*" in path and "*" not in path.split("/")[-1] for path in (images, labels)):
        return False
    if "*" in labels and labels.endswith(".jpg"):
        return False
    if "*" not in images or "*" not in labels:
        return True
    return images != labels and ("**" in images + labels or images.count("*") == labels.count("*"))


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
    check_layout(d, spec.source.layouts[0])


def check_layout(d, layout):
    splits = d.get("splits", {})
    divided = {split for split, part in splits.items() if kind(part) != "files"}
    assert set(layout) == set(splits) | ({"train"} if divided and "train" not in splits else set())
    common = d if "images" in d else splits.get("train")
    for split, (files,) in layout.items():
        part = splits.get(split)
        has_own = isinstance(part, dict) and not (split == "train" and divided and "images" not in d)
        described = part if has_own else common
        suffix = described.get("label_suffix", d.get("label_suffix"))
        assert (files.images, files.label_suffix) == (described["images"], suffix)
        assert files.labels == described.get("labels", described["images"] if suffix is not None else None)
        assert files.ignore_case == d.get("ignore_case", False)
        listed = part if kind(part) == "list" and not isinstance(part, dict) and part is not None else None
        assert files.names == (tuple(listed) if isinstance(listed, list) else listed)
        assert (files.share is None) == (has_own or listed is not None)
        if files.share is not None:
            assert (files.share.split, files.share.seed) == (split, d.get("seed", 0))


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
