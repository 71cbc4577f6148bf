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


SHARES = [[0.25, 0.1], [0.5, 0.1], [0.5, 0.9], [0.25, 0.9]]  # of the image as it is shown


def test_photos_that_a_viewer_turns_are_refused_in_coco_of_label_studio(tmp_path):
    """Its converter multiplies shares of the turned image by the stored size, so that they fit neither frame."""
    polygons = {scene.name: [(0, SHARES)] for scene in scenes()[:3]}
    source = exports.write_label_studio_coco(tmp_path / "export", scenes(), polygons, ["car"], orientation=6)
    sentence = (
        r"image 0 .* has the 60x40 pixels of .*frame_0\.png before its EXIF orientation turns it to 40x60; .*JSON"
    )
    with pytest.raises(UsageError, match=sentence):
        import_export(source, tmp_path / "data", unannotated_images="background")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("orientation", [1, 3])
def test_other_photos_are_read_from_coco_of_label_studio(tmp_path, orientation):
    polygons = {scene.name: [(0, SHARES)] for scene in scenes()[:3]}
    source = exports.write_label_studio_coco(tmp_path / "export", scenes(), polygons, ["car"], orientation)
    import_export(source, tmp_path / "data", unannotated_images="background")
    expected = np.zeros((40, 60), np.uint8)
    expected[4:36, 15:30] = 1
    labels = labels_of(tmp_path / "data")
    assert all(np.array_equal(labels[scene.name], expected) for scene in scenes()[:3])
    assert not labels["frame_3"].any()


def test_another_tool_may_draw_on_photos_as_they_are_stored(tmp_path):
    polygons = {scene.name: [(0, SHARES)] for scene in scenes()}
    source = exports.write_label_studio_coco(tmp_path / "export", scenes(), polygons, ["car"], orientation=6)
    path = source / "result.json"
    path.write_text(path.read_text().replace('"Label Studio"', '"somebody"'))
    import_export(source, tmp_path / "data")
    assert {labels.shape for labels in labels_of(tmp_path / "data").values()} == {(40, 60)}


def test_images_that_label_studio_could_not_download_have_no_size(tmp_path):
    tasks = [*scenes()[:3], Scene("gone", None, None)]
    polygons = {scene.name: [(0, SHARES)] for scene in tasks[:3]}
    source = exports.write_label_studio_coco(tmp_path / "export", tasks, polygons, ["car"])
    exports.save_image(source / "images/gone.png", scenes()[3].image)
    import_export(source, tmp_path / "data", unannotated_images="background")
    assert not labels_of(tmp_path / "data")["gone"].any()
