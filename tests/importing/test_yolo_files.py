"""Polygon files as ultralytics, CVAT and Roboflow lay them out: keys of data.yaml, lists of images, splits."""

import exports
import numpy as np
import pytest
import yaml
from exports import Scene

from msctr_hf.errors import UsageError
from msctr_hf.importing.conversion import import_export

CLASSES = ("background", "car")
SQUARE = [[3, 2], [7, 2], [7, 5], [3, 5]]


def scenes(names, split):
    images = [np.random.default_rng([*name.encode()]).integers(0, 256, (8, 12, 3), dtype=np.uint8) for name in names]
    return [Scene(name, image, None, split) for name, image in zip(names, images, strict=True)]


def write(root, *, listed=False):
    written = [*scenes("abc", "train"), *scenes("xy", "validation")]
    return exports.write_yolo(root, written, CLASSES, {scene.name: [(1, SQUARE)] for scene in written}, listed=listed)


def describe(source, change):
    """Change data.yaml by a function."""
    description = yaml.safe_load((source / "data.yaml").read_text())
    change(description)
    (source / "data.yaml").write_text(yaml.safe_dump(description))


def names_in(folder):
    found = {split: (folder / split / "labels").rglob("*.png") for split in ("train", "val", "test")}
    return {split: sorted(path.stem for path in paths) for split, paths in found.items()}


SPLITS = {"train": ["a", "b", "c"], "val": ["x", "y"], "test": []}


@pytest.mark.parametrize("spelling", ["data/{}", "{}", "./{}", "data\\{}", "{} "])
def test_lists_of_images_may_have_the_paths_of_cvat_or_of_windows(tmp_path, spelling):
    source = write(tmp_path / "export", listed=True)
    for path in (source / "train.txt", source / "val.txt"):
        lines = path.read_text().splitlines()
        assert all(line.startswith("data/") for line in lines)
        listed = [spelling.format(line.removeprefix("data/")) for line in lines]
        path.write_text("\n".join(line.replace("/", "\\") if "\\" in spelling else line for line in listed))
    import_export(source, tmp_path / "data")
    assert names_in(tmp_path / "data") == SPLITS


def test_poses_are_not_drawn_as_polygons(tmp_path):
    source = write(tmp_path / "export")
    describe(source, lambda description: description.update(kpt_shape=[2, 2]))
    for path in (source / "labels").rglob("*.txt"):
        path.write_text("1 0.5 0.5 0.2 0.3 0.45 0.4 0.55 0.6\n")
    with pytest.raises(UsageError, match=r"data\.yaml describes poses \(`kpt_shape`\); .* polygons do\."):
        import_export(source, tmp_path / "data")


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("key", ["Validation", "validation", "valid", "val", "Val2017"])
def test_every_name_of_a_split_is_a_key(tmp_path, key, listed):
    source = write(tmp_path / "export", listed=listed)
    describe(source, lambda description: description.update({key: description.pop("val")}))
    describe(source, lambda description: description.update(Train=description.pop("train"), nc=2, test=None))
    import_export(source, tmp_path / "data")  # the format is recognized
    assert names_in(tmp_path / "data") == SPLITS


def test_two_keys_of_one_split_are_refused(tmp_path):
    source = write(tmp_path / "export")
    describe(source, lambda description: description.update(valid="images/train"))
    with pytest.raises(UsageError, match=r"data\.yaml: val and valid are both of the split validation; list"):
        import_export(source, tmp_path / "data")


@pytest.mark.parametrize("listed", [False, True])
def test_a_key_of_no_split_that_names_images_is_refused(tmp_path, listed):
    source = write(tmp_path / "export", listed=listed)
    describe(source, lambda description: description.update(holdout=description.pop("val")))
    with pytest.raises(UsageError, match=r"`holdout` names (val\.txt|images/val), with 2 images of no split; rename"):
        import_export(source, tmp_path / "data")


def test_keys_of_no_split_may_name_anything_else(tmp_path):
    source = write(tmp_path / "export")
    (source / "classes.txt").write_text("car\n")
    others = {"labels": "labels", "images": "images", "classes": "classes.txt", "root": ".", "download": "a\n" * 999}
    describe(source, lambda description: description.update(others, roboflow={"version": 3}, channels=3))
    import_export(source, tmp_path / "data")
    assert names_in(tmp_path / "data") == SPLITS


def test_a_test_split_that_does_not_exist_is_left_out_with_a_line(tmp_path, capsys):
    """Roboflow names it in data.yaml even if the version has none."""
    source = write(tmp_path / "export")
    describe(source, lambda description: description.update(test="../test/images"))
    import_export(source, tmp_path / "data")
    assert names_in(tmp_path / "data") == SPLITS
    line = f"`test` of {source / 'data.yaml'} names ../test/images, which does not exist; there is no test split."
    assert line in capsys.readouterr().out.splitlines()
    describe(source, lambda description: description.update(val="../valid/images"))
    with pytest.raises(UsageError, match=r"data\.yaml: `val` names \.\./valid/images, but .* does not exist"):
        import_export(source, tmp_path / "other")
