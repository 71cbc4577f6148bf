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
