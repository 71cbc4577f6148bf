"""COCO instances as CVAT and Label Studio write them, with what is peculiar to each."""

import exports
import numpy as np
import pytest
from exports import Scene
from PIL import Image

from msctr_hf.errors import UsageError
from msctr_hf.importing.conversion import import_export

CLASSES = ("background", "car", "tree")


def scenes(count=4, split=None):
    labels = np.zeros((40, 60), np.uint8)
    labels[5:20, 5:30] = 1
    images = np.random.default_rng(0).integers(0, 256, (count, 40, 60, 3), dtype=np.uint8)
    return [Scene(f"frame_{number}", image, labels, split) for number, image in enumerate(images)]


def labels_of(folder):
    return {path.stem: np.asarray(Image.open(path)) for path in folder.glob("*/labels/**/*.png")}


def test_masks_of_cvat_which_are_marked_as_crowds_need_the_word_of_the_user(tmp_path):
    tree = [[40, 20], [55, 20], [55, 35], [40, 35]]
    source = exports.write_cvat_coco(
        tmp_path / "export", scenes(), CLASSES, {scene.name: [(2, tree)] for scene in scenes()}
    )
    with pytest.raises(UsageError, match=r"export has 4 crowd regions \(iscrowd\), as which CVAT .*`crowd_regions`"):
        import_export(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    expected = scenes()[0].labels.copy()
    expected[20:35, 40:55] = 2
    import_export(source, tmp_path / "class", crowd_regions="class")
    assert all(np.array_equal(labels, expected) for labels in labels_of(tmp_path / "class").values())
    import_export(source, tmp_path / "ignore", crowd_regions="ignore")
    expected[expected == 1] = 255
    assert all(np.array_equal(labels, expected) for labels in labels_of(tmp_path / "ignore").values())


def test_polygons_of_cvat_alone_need_no_word(tmp_path):
    square = [[5, 5], [30, 5], [30, 20], [5, 20]]
    bare = [Scene(scene.name, scene.image, None) for scene in scenes()]
    polygons = {scene.name: [(1, square)] for scene in bare}
    import_export(exports.write_cvat_coco(tmp_path / "export", bare, CLASSES, polygons), tmp_path / "data")
    assert all(np.array_equal(labels, scenes()[0].labels) for labels in labels_of(tmp_path / "data").values())
