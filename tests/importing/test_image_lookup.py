"""Which file and which split an image of an export is, by the names of files and folders."""

import unicodedata

import exports
import numpy as np
import pytest
from exports import Scene
from PIL import Image

from msctr_hf.errors import UsageError
from msctr_hf.importing.conversion import import_export

CLASSES = ("background", "car")


def scenes(names, split=None):
    labels = np.zeros((8, 12), np.uint8)
    labels[2:5, 3:7] = 1
    images = [np.random.default_rng([*name.encode()]).integers(0, 256, (8, 12, 3), dtype=np.uint8) for name in names]
    return [Scene(name, image, labels, split) for name, image in zip(names, images, strict=True)]


def names_in(folder):
    return {
        split: sorted(path.stem for path in (folder / split / "labels").rglob("*.png")) for split in ("train", "val")
    }


def write_coco(root, **files):
    """Write a JSON file of COCO for each list of scenes, with the images in a folder of the split's name."""
    for name, (folder, listed) in files.items():
        document = exports.coco_document(listed, CLASSES[1:])
        for number, scene in enumerate(listed, 1):
            exports.save_image(root / folder / f"{scene.name}.png", scene.image)
            encoded = {"counts": exports.run_lengths(scene.labels), "size": list(scene.labels.shape)}
            exports.add_annotation(document, number, 1, encoded)
        exports.write_json(root / f"{name}.json", document)
    return root


@pytest.mark.parametrize("pattern", ["{}_annotations", "instances-{}", "my.{}2017.objects", "instances_{}"])
def test_any_part_of_the_name_of_a_coco_file_may_be_its_split(tmp_path, pattern):
    files = {"train": scenes("abc"), "val": scenes("xy")}
    source = write_coco(tmp_path / "export", **{pattern.format(split): (split, each) for split, each in files.items()})
    import_export(source, tmp_path / "data")
    assert names_in(tmp_path / "data") == {"train": ["a", "b", "c"], "val": ["x", "y"]}


def test_several_coco_files_of_which_one_does_not_say_its_split_are_refused(tmp_path):
    source = write_coco(tmp_path / "export", part_train=("one", scenes("abc")), train_val=("two", scenes("xyz")))
    with pytest.raises(UsageError, match=r"The split of .*export/train_val\.json is not known; .* `validation_share`"):
        import_export(source, tmp_path / "data")
    import_export(source, tmp_path / "data", validation_share=0.5)
    found = names_in(tmp_path / "data")
    assert len(found["train"]) == len(found["val"]) == 3


@pytest.mark.parametrize("listed", ["{}", "/home/user/photos/{}"])
@pytest.mark.parametrize("missing", ["0", "012"])
def test_the_image_of_another_split_is_not_taken_for_its_name(tmp_path, listed, missing):
    source = write_coco(
        tmp_path / "export",
        instances_train=("images/train", scenes("012")),
        instances_val=("images/val", scenes("012")),
    )
    path = source / "instances_val.json"
    path.write_text(path.read_text().replace('"0.png"', f'"{listed.format("0.png")}"'))
    for name in missing:
        (source / f"images/val/{name}.png").unlink()
    sentence = r"image 1: the image '.*0\.png' is not below .*; .*images/train/0\.png has its name, but is of another"
    with pytest.raises(UsageError, match=sentence):
        import_export(source, tmp_path / "data")


def test_the_image_of_a_subfolder_of_another_split_is_not_taken_unless_it_is_listed(tmp_path):
    source = write_coco(
        tmp_path / "export",
        instances_train=("images/train", scenes(["left/0", "left/1"])),
        instances_val=("images/val", scenes(["left/0", "left/2"])),
    )
    (source / "images/val/left/0.png").unlink()
    with pytest.raises(
        UsageError, match=r"the image 'left/0\.png' is not below .*; .*images/train/left/0\.png has its"
    ):
        import_export(source, tmp_path / "data")
    path = source / "instances_val.json"
    path.write_text(path.read_text().replace('"left/0.png"', '"train/left/1.png"'))
    import_export(source, tmp_path / "data")
    assert names_in(tmp_path / "data") == {"train": ["0", "1"], "val": ["1", "2"]}


def test_the_image_of_another_subset_of_cvat_is_not_taken(tmp_path):
    files = {f"instances_{name}": (f"images/{name}", scenes("01")) for name in ("my_night", "night")}
    source = write_coco(tmp_path / "export", **files)
    (source / "images/my_night/1.png").unlink()
    with pytest.raises(UsageError, match=r"instances_my_night\.json, image 2: the image '1\.png' is not below"):
        import_export(source, tmp_path / "data", validation_share=0.5)


@pytest.mark.parametrize("folder", ["train", "train2017", "images/train"])
@pytest.mark.parametrize("listed", ["{}", "/home/user/photos/{}"])
def test_all_splits_may_have_their_images_in_the_folder_of_one(tmp_path, folder, listed):
    source = write_coco(tmp_path / "export", train=(folder, scenes("abc")), val=(folder, scenes("xy")))
    for path in source.glob("*.json"):
        path.write_text(path.read_text().replace('"file_name": "', f'"file_name": "{listed.format("")}'))
    import_export(source, tmp_path / "data")
    assert names_in(tmp_path / "data") == {"train": ["a", "b", "c"], "val": ["x", "y"]}


def test_images_need_not_be_in_a_folder_that_has_the_name_of_their_file_by_chance(tmp_path):
    source = write_coco(tmp_path / "export", labels=("images", scenes("abc")))
    for scene in scenes("abc"):
        exports.save_image(source / f"labels/{scene.name}_mask.png", scene.labels)
    import_export(source, tmp_path / "data")
    assert len([*(tmp_path / "data").rglob("labels/*.png")]) == 3


def write_labelme(root, places):
    """Write JSON files of LabelMe that list bare names: where they are, and where their images are."""
    for scene, (place, image) in zip(scenes("abc"), places, strict=True):
        exports.save_image(root / image, scene.image)
        document = exports.labelme_document(scene, [exports.labelme_mask("car", scene.labels > 0)])
        exports.write_json(root / place, document | {"imagePath": image.rpartition("/")[2]})
    return root


def test_what_labelme_exports_beside_its_files_does_not_bind_their_images_to_this_folder(tmp_path):
    source = write_labelme(tmp_path / "export", [(f"json/{name}.json", f"images/{name}.png") for name in "abc"])
    for scene in scenes("abc"):
        exports.save_image(source / f"json/{scene.name}_json/img.png", scene.image)
    import_export(source, tmp_path / "data", "labelme", unannotated_images="background")
    labels = [path.stem for path in (tmp_path / "data").rglob("labels/**/*.png")]
    assert sorted(labels) == ["a", "b", "c", "img", "img", "img"]


def test_the_image_of_another_folder_of_labelme_is_not_taken(tmp_path):
    """The folder of some JSON files is that of their images, of which one is missing."""
    places = [("left/json/a.json", "left/a.png"), ("left/json/b.json", "left/b.png"), ("c.json", "right/b.png")]
    source = write_labelme(tmp_path / "export", places)
    (source / "left/b.png").unlink()
    with pytest.raises(
        UsageError, match=r"left/json/b\.json: the image 'b\.png' is not below .*; .*right/b\.png has its"
    ):
        import_export(source, tmp_path / "data", "labelme")


@pytest.mark.parametrize("with_image_dir", [False, True])
def test_the_name_of_the_folder_of_an_export_says_no_split(tmp_path, with_image_dir):
    source = write_coco(tmp_path / "test", labels=("images/train", scenes("abc")))
    import_export(source, tmp_path / "data", image_dir=source / "images" if with_image_dir else None)
    assert {split: len(names) for split, names in names_in(tmp_path / "data").items()} == {"train": 2, "val": 1}


@pytest.mark.parametrize("name", ["test_station", "val_set_1", "train-val"])
def test_only_the_last_part_of_the_name_of_a_single_coco_file_is_its_split(tmp_path, name):
    source = write_coco(tmp_path / "export", **{name: ("images", scenes("abc"))})
    import_export(source, tmp_path / "data")
    assert {split: len(names) for split, names in names_in(tmp_path / "data").items()} == {"train": 2, "val": 1}
    (source / f"{name}.json").rename(source / "instances_val2017.json")
    with pytest.raises(UsageError, match="no training images; .* only by the name of a file or folder, rename it"):
        import_export(source, tmp_path / "other")


def write_tasks(root, listed):
    """Write tasks of Label Studio with local files: their path on the server, and where they are in the export."""
    tasks = []
    for number, (scene, (address, place)) in enumerate(zip(scenes("012"), listed, strict=True), 1):
        exports.save_image(root / place, scene.image)
        region = exports.label_studio_region(scene, "brushlabels", "car", rle=exports.packed(scene.labels > 0))
        tasks.append(exports.label_studio_task(number, f"/data/local-files/?d={address}", [region]))
    exports.write_json(root / "project-1.json", tasks)
    return root


def test_images_of_which_only_the_name_fits_are_counted_with_an_example(tmp_path, capsys):
    places = [("cam1/0.png", "cam2/0.png"), ("cam1/1.png", "cam2/1.png"), ("cam2/2.png", "cam2/2.png")]
    source = write_tasks(tmp_path / "export", places)
    import_export(source, tmp_path / "data")
    sentence = "warning: 2 images were found by their names in folders other than those that the export lists, such as"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: 2 images were")]
    assert line == f"{sentence} {source}/cam2/0.png for '/cam1/0.png'."


@pytest.mark.parametrize("place", ["photos/{}.png", "{}.png"])
def test_images_whose_folder_fits_or_is_the_given_one_are_found_quietly(tmp_path, capsys, place):
    source = write_tasks(tmp_path / "export", [(f"photos/{name}.png", place.format(name)) for name in "012"])
    import_export(source, tmp_path / "data")
    assert "found by their names" not in capsys.readouterr().out


def write_yolo_lists(root, written, classes):
    square = [[3, 2], [7, 2], [7, 5], [3, 5]]
    return exports.write_yolo(root, written, classes, {scene.name: [(1, square)] for scene in written}, listed=True)


WRITERS = {
    "cvat": exports.write_cvat,
    "coco": exports.write_coco,
    "coco_panoptic": exports.write_coco_panoptic,
    "roboflow": exports.write_roboflow,
    "labelme": exports.write_labelme,
    "yolo": write_yolo_lists,
    "label_studio": exports.write_label_studio,
    "supervisely": exports.write_supervisely,
}


@pytest.mark.parametrize("name", WRITERS)
def test_companions_that_a_mac_adds_to_files_are_left_out(tmp_path, name):
    source = WRITERS[name](tmp_path / "export", scenes("012"), CLASSES)
    for path in [path for path in source.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X\xff\xb0")
    import_export(source, tmp_path / "data")  # the format is recognized
    assert len([*(tmp_path / "data").rglob("labels/**/*.png")]) == 3


@pytest.mark.parametrize("of", ["images", "other files"])
@pytest.mark.parametrize("name", WRITERS)
def test_letters_of_names_may_be_composed_otherwise_on_the_disk(tmp_path, name, of):
    """A Mac, and archives from it, may store "ü" as two characters, which the files of the export do not."""
    composed = [unicodedata.normalize("NFC", each) for each in ("Grün 0", "Grün 1", "Grün 2")]
    source = WRITERS[name](tmp_path / "export", scenes(composed), CLASSES)
    for path in source.rglob("*Gr*n*"):
        is_shown = path.suffix == ".png" and not {"SegmentationClass", "annotations"} & {*path.parts}
        if (is_shown and not path.stem.endswith("_mask")) == (of == "images"):
            path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    import_export(source, tmp_path / "data", name)
    labels = [np.asarray(Image.open(path)) for path in (tmp_path / "data").rglob("labels/**/*.png")]
    assert len(labels) == 3
    assert all(np.array_equal(each, scenes("a")[0].labels) for each in labels)
