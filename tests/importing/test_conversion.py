"""Exports of every format become a folder data set whose labels equal those that were exported, pixel by pixel."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import exports
import numpy as np
import pytest
import yaml
from exports import IGNORED, Scene
from PIL import Image

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.synthetic import SYNTHETIC_CLASSES
from msctr_hf.errors import UsageError
from msctr_hf.folder_lock import locked
from msctr_hf.importing.conversion import import_export
from msctr_hf.importing.formats import FORMATS

CLASSES = ("background", *SYNTHETIC_CLASSES)
MASK_FORMATS = {
    "cvat": exports.write_cvat,
    "coco": exports.write_coco,
    "coco_panoptic": exports.write_coco_panoptic,
    "roboflow": exports.write_roboflow,
    "labelme": exports.write_labelme,
    "supervisely": exports.write_supervisely,
}
KEEP_NO_IGNORED = {"cvat", "roboflow", "supervisely"}  # formats in which every pixel has a class


def synthetic_scenes(ignored=True):
    """Draw three scenes with a strip of background and, if wanted, one of ignored pixels."""
    dataset = load_segmentation_dataset("synthetic_scenes", "validation")
    scenes = []
    for number, split in enumerate(("train", "validation", "test")):
        sample = dataset[number]
        labels = np.array(sample["label"]) + 1
        labels[-9:, :40] = 0
        if ignored:
            labels[:7, 30:] = IGNORED
        scenes.append(Scene(f"scene {number}", np.array(sample["image"]), labels.astype(np.uint8), split))
    return scenes


def small(name="a", split=None, labels=((0, 1), (2, 1)), size=8, seed=0):
    image = np.random.default_rng([seed, *name.encode()]).integers(0, 256, (2 * size, 2 * size, 3), dtype=np.uint8)
    if labels is not None:
        labels = np.kron(np.array(labels), np.ones((size, size), int)).astype(np.uint8)
    return Scene(name, image, labels, split)


def four(**changes):
    return [small(name, **changes) for name in "abcd"]


def read_back(folder, scenes):
    """Compare all splits of a folder with the scenes that were exported, by the names of classes."""
    compared = 0
    names = yaml.safe_load((folder / "dataset.yaml").read_text())["classes"]
    assert sorted(names) == sorted(CLASSES)
    label_of = np.full(256, IGNORED)
    label_of[: len(CLASSES)] = [names.index(name) for name in CLASSES]
    for split in ("train", "validation", "test"):
        expected = {scene.name: scene for scene in scenes if scene.split == split}
        dataset = load_segmentation_dataset("folder", split, folder)
        assert sorted(dataset.with_format(None)["image_id"]) == sorted(expected)
        for sample in dataset:
            scene = expected[sample["image_id"]]
            assert np.array_equal(np.asarray(sample["image"]), scene.image)
            assert np.array_equal(np.asarray(sample["label"]), label_of[scene.labels])
            compared += 1
    assert compared == len(scenes)


def labels_of(folder, name):
    (path,) = folder.glob(f"*/labels/**/{name}.png")
    return np.asarray(Image.open(path))


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", MASK_FORMATS)
def test_masks_of_every_format_come_back_pixel_by_pixel(tmp_path, name):
    scenes = synthetic_scenes(ignored=name not in KEEP_NO_IGNORED)
    source = MASK_FORMATS[name](tmp_path / "export", scenes, CLASSES)
    import_export(source, tmp_path / "data")  # the format is recognized
    read_back(tmp_path / "data", scenes)
    assert yaml.safe_load((tmp_path / "data/dataset.yaml").read_text())["classes"][0] == "background"


def test_compressed_run_lengths_come_back_pixel_by_pixel(tmp_path):
    scenes = synthetic_scenes()
    import_export(exports.write_coco(tmp_path / "export", scenes, CLASSES, text=True), tmp_path / "data", "coco")
    read_back(tmp_path / "data", scenes)


def test_brush_masks_of_label_studio_come_back_pixel_by_pixel(tmp_path):
    scenes = [replace(scene, split=None) for scene in synthetic_scenes(ignored=False)]
    import_export(exports.write_label_studio(tmp_path / "export", scenes, CLASSES), tmp_path / "data")
    names = yaml.safe_load((tmp_path / "data/dataset.yaml").read_text())["classes"]
    label_of = np.array([names.index(name) for name in CLASSES])
    for scene in scenes:
        (labels,) = (tmp_path / "data").glob(f"*/labels/upload/1/*-{scene.name.replace(' ', '_')}.png")
        assert np.array_equal(np.asarray(Image.open(labels)), label_of[scene.labels])


@pytest.mark.parametrize("name", ["cvat", "coco_panoptic", "supervisely"])
def test_colors_of_the_export_are_the_palette_of_the_data_set(tmp_path, name):
    import_export(MASK_FORMATS[name](tmp_path / "export", four(), ("background", "road", "car")), tmp_path / "data")
    description = yaml.safe_load((tmp_path / "data/dataset.yaml").read_text())
    assert description["palette"] == {"background": [0, 0, 0], "road": [60, 241, 7], "car": [80, 232, 14]}


@pytest.mark.parametrize("mode", ["P", "L"])
def test_masks_of_cvat_may_have_a_palette_or_the_numbers_of_classes(tmp_path, mode):
    source = exports.write_cvat(tmp_path / "export", four(), ("background", "road", "car"))
    for scene in four():
        mask = Image.fromarray(scene.labels)
        if mode == "P":
            mask = Image.fromarray(2 - scene.labels, "P")
            mask.putpalette([value for color in exports.colors_of(3)[::-1] for value in color])
        mask.save(source / "SegmentationClass" / f"{scene.name}.png")
    import_export(source, tmp_path / "data")
    assert all(np.array_equal(labels_of(tmp_path / "data", scene.name), scene.labels) for scene in four())


def test_names_in_subfolders_are_kept(tmp_path):
    scenes = [small(f"left/{name}") for name in "ab"] + [small(f"right/{name}") for name in "ab"]
    import_export(exports.write_cvat(tmp_path / "cvat", scenes, ("background", "road", "car")), tmp_path / "one")
    source = exports.write_coco(tmp_path / "coco", scenes, ("background", "road", "car"))
    path = source / "annotations/instances_default.json"
    path.write_text(path.read_text().replace('"left/', '"./left/'))
    import_export(source, tmp_path / "two")
    import_export(
        exports.write_labelme(tmp_path / "labelme", scenes, ("background", "car", "road")), tmp_path / "three"
    )
    for folder in ("one", "two", "three"):
        names = {path.relative_to(tmp_path / folder).as_posix() for path in (tmp_path / folder).glob("*/labels/*/*")}
        assert {name.partition("/labels/")[2] for name in names} == {f"{scene.name}.png" for scene in scenes}


@pytest.mark.parametrize("kind", ["relative", "link"])
@pytest.mark.parametrize("name", [*MASK_FORMATS, "label_studio"])
def test_the_path_of_an_export_may_be_relative_or_a_link(tmp_path, monkeypatch, name, kind):
    scenes = [small(f"{folder}_{number}") for folder in ("left", "right") for number in "ab"]
    write = {**MASK_FORMATS, "label_studio": exports.write_label_studio}[name]
    write(tmp_path / "real/export", scenes, ("background", "car", "road"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "link")
    source = Path("export") if kind == "relative" else tmp_path / "link/export"
    import_export(source, tmp_path / "data", name)
    assert len(list((tmp_path / "data").glob("*/labels/**/*.png"))) == 4


def test_images_of_labelme_may_be_links_in_subfolders(tmp_path):
    scenes = [small(f"{folder}/{number}") for folder in ("left", "right") for number in "ab"]
    source = exports.write_labelme(tmp_path / "export", scenes, ("background", "car", "road"))
    for number, path in enumerate(sorted(source.rglob("*.png"))):
        path.rename(tmp_path / f"{number}.png")
        path.symlink_to(tmp_path / f"{number}.png")
    import_export(source, tmp_path / "data")
    names = {path.as_posix().partition("/labels/")[2] for path in (tmp_path / "data").glob("*/labels/*/*")}
    assert names == {f"{scene.name}.png" for scene in scenes}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("cvat", "JPEGImages"),
        ("coco", "images/default"),
        ("coco_panoptic", "default"),
        ("label_studio", "upload/1"),
        ("roboflow", "more"),
        ("supervisely", "ds0/img/more"),
        ("supervisely", "ds1/img"),
        ("yolo", "images/validation"),
    ],
)
def test_images_that_the_export_does_not_list_are_left_out_with_a_warning(tmp_path, capsys, name, place):
    polygons = dict.fromkeys("abcd", [(1, [[1, 1], [9, 1], [5, 9]]), (2, [[5, 9], [9, 9], [9, 1]])])
    write_yolo = partial(exports.write_yolo, polygons=polygons)
    write = {**MASK_FORMATS, "label_studio": exports.write_label_studio, "yolo": write_yolo}[name]
    source = write(tmp_path / "export", four(), ("background", "car", "road"))
    folder = source / place
    folder.mkdir(parents=True, exist_ok=True)
    for extra in ("y", "z"):
        Image.new("RGB", (16, 16)).save(folder / f"{extra}.png")
    import_export(source, tmp_path / "data", name)
    assert len(list((tmp_path / "data").glob("*/images/**/*.png"))) == 4
    sentence = f"warning: 2 images that the export does not list are left out: {folder}/y.png, {folder}/z.png."
    assert sentence in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("yolo", "runs/train/batch"),
        ("yolo", "images/more"),
        ("supervisely", "notes"),
        ("supervisely", "ds0/img/more"),
        ("roboflow", "notes/more"),
        ("roboflow", "notes"),
        ("roboflow", "train/more"),
    ],
)
@pytest.mark.parametrize("suffix", [b".txt", b".png"])
def test_names_of_files_that_the_export_does_not_list_do_not_end_the_import(tmp_path, name, place, suffix):
    polygons = dict.fromkeys("abcd", [(1, [[1, 1], [9, 1], [5, 9]])])
    write_yolo = partial(exports.write_yolo, polygons=polygons)
    write = {**MASK_FORMATS, "yolo": write_yolo}[name]
    split = "train" if name == "roboflow" else None
    source = write(tmp_path / "export", four(split=split), ("background", "car", "road"))
    (source / place).mkdir(parents=True)
    with open(os.fsencode(source / place) + b"/caf\xe9" + suffix, "wb"):  # Latin-1
        pass
    import_export(source, tmp_path / "data", name)
    assert len(list((tmp_path / "data").glob("*/images/**/*.png"))) == 4


@pytest.mark.parametrize("name", ["yolo", "supervisely", "roboflow"])
def test_images_of_other_things_in_the_folder_of_an_export_are_not_counted(tmp_path, capsys, name):
    """An export may be in a home folder, and ultralytics writes its runs beside data.yaml."""
    polygons = dict.fromkeys("abcd", [(1, [[1, 1], [9, 1], [5, 9]])])
    write_yolo = partial(exports.write_yolo, polygons=polygons)
    source = {**MASK_FORMATS, "yolo": write_yolo}[name](
        tmp_path / "images/home", four(split="train"), ("background", "car", "road")
    )
    for place in ("runs/segment/train/batch.png", "../photo.png"):
        exports.save_image(source / place, np.zeros((16, 16, 3), np.uint8))
    import_export(source, tmp_path / "data", name)
    assert "that the export does not list" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "folder"), [("cvat", "JPEGImages"), ("roboflow", "."), ("cvat", "SegmentationClass")]
)
def test_a_mask_that_fits_two_images_is_refused(tmp_path, name, folder):
    source = MASK_FORMATS[name](tmp_path / "export", four(), ("background", "car", "road"))
    Image.new("RGB", (16, 16)).save(source / folder / "a.bmp")
    with pytest.raises(UsageError, match=r"a\.bmp and .*a\.png have the same name but for the ending; remove one"):
        import_export(source, tmp_path / "data", name)


@pytest.mark.parametrize("listed", [False, True])
def test_images_of_ultralytics_keep_their_subfolders(tmp_path, listed):
    scenes = [small(f"{folder}/{number}", "train") for folder in ("left", "right") for number in "ab"]
    polygons = {scene.name: [(1, [[1, 1], [9, 1], [5, 9]])] for scene in scenes}
    source = exports.write_yolo(tmp_path / "export", scenes, ("background", "car"), polygons, listed=listed)
    import_export(source, tmp_path / "data", validation_share=0.5, group_pattern="^(left|right)/")
    names = [path.as_posix().partition("/labels/")[2] for path in (tmp_path / "data/val").glob("labels/*/*")]
    assert sorted(names) in (["left/a.png", "left/b.png"], ["right/a.png", "right/b.png"])


def test_an_image_that_two_files_list_is_refused_with_both(tmp_path):
    source = exports.write_coco(tmp_path / "export", four(), ("background", "car", "road"))
    (source / "annotations/again.json").write_bytes((source / "annotations/instances_default.json").read_bytes())
    sentence = r"a\.png is listed twice in the split .*: by .*again\.json, image 1 .* and by .*default\.json, image 1"
    with pytest.raises(UsageError, match=sentence):
        import_export(source, tmp_path / "data")


def test_two_images_with_the_same_name_but_for_the_ending_are_refused(tmp_path):
    source = exports.write_labelme(tmp_path / "export", four(), ("background", "car", "road"))
    Image.new("RGB", (16, 16)).save(source / "a.jpg")
    with pytest.raises(UsageError, match=r"a\.jpg and .*a\.png would have the same name in the split "):
        import_export(source, tmp_path / "data", unannotated_images="background", validation_share=0.3)


def test_files_of_images_stay_byte_equal(tmp_path):
    source = exports.write_labelme(tmp_path / "export", four(), ("background", "road", "car"))
    for name in "abcd":
        Image.open(source / f"{name}.png").convert("L").save(source / f"{name}.png", optimize=True, dpi=(72, 72))
    import_export(source, tmp_path / "data")
    copies = {path.name: path.read_bytes() for path in (tmp_path / "data").glob("*/images/*")}
    assert copies == {f"{name}.png": (source / f"{name}.png").read_bytes() for name in "abcd"}


@pytest.mark.parametrize("name", MASK_FORMATS)
def test_the_user_says_what_images_without_annotation_show(tmp_path, name):
    scenes = [*four(split="train"), small("e", "validation"), small("none", "train", labels=None)]
    source = MASK_FORMATS[name](tmp_path / "export", scenes, ("background", "road", "car"))
    with pytest.raises(
        UsageError, match=r"1 of 6 images have no annotation: .*none\.png; say in `unannotated_images`"
    ):
        import_export(source, tmp_path / "data", name)
    assert not (tmp_path / "data").exists()
    import_export(source, tmp_path / "background", name, unannotated_images="background")
    assert not labels_of(tmp_path / "background", "none").any()
    import_export(source, tmp_path / "ignored", name, unannotated_images="ignore")
    assert (labels_of(tmp_path / "ignored", "none") == IGNORED).all()


def test_test_images_without_annotation_have_no_labels(tmp_path):
    scenes = [*four(split="train"), small("e", "validation"), small("f", "test", labels=None)]
    import_export(exports.write_coco(tmp_path / "export", scenes, ("background", "road", "car")), tmp_path / "data")
    description = yaml.safe_load((tmp_path / "data/dataset.yaml").read_text())
    assert description["splits"]["test"] == {"images": "test/images"}
    assert "test/images/f.png" in contents(tmp_path / "data")


@pytest.mark.parametrize("unannotated", ["background", "ignore"])
def test_a_test_split_without_any_annotation_has_no_labels_whatever_the_user_says(tmp_path, capsys, unannotated):
    scenes = [*four(split="train"), small("e", "validation"), small("none", "train", labels=None)]
    scenes += [small(name, "test", labels=None) for name in "fg"]
    classes = ("background", "road", "car")
    import_export(
        exports.write_coco(tmp_path / "export", scenes, classes), tmp_path / "data", unannotated_images=unannotated
    )
    description = yaml.safe_load((tmp_path / "data/dataset.yaml").read_text())
    assert description["splits"]["test"] == {"images": "test/images"}
    assert np.unique(labels_of(tmp_path / "data", "none")).tolist() == [0 if unannotated == "background" else IGNORED]
    sentence = f"The 2 images of test have no labels: none of them is annotated, so that `{unannotated}` is for the "
    assert sum(line.startswith(sentence) for line in capsys.readouterr().out.splitlines()) == 1
    scenes[-1] = small("g", "test")  # annotated: then the other one has nothing of a class
    import_export(
        exports.write_coco(tmp_path / "half", scenes, classes), tmp_path / "some", unannotated_images=unannotated
    )
    assert len(np.unique(labels_of(tmp_path / "some", "f"))) == 1
    assert "images of test have no labels" not in capsys.readouterr().out


def test_ignored_classes_leave_the_list_and_their_pixels_become_255(tmp_path):
    source = exports.write_cvat(tmp_path / "export", four(), ("background", "road", "car"))
    import_export(source, tmp_path / "data", ignored_classes=["background"])
    assert yaml.safe_load((tmp_path / "data/dataset.yaml").read_text())["classes"] == ["road", "car"]
    assert np.array_equal(np.unique(labels_of(tmp_path / "data", "a")), [0, 1, 255])
    with pytest.raises(UsageError, match="`ignored_classes`: the export has no class 'raod'; its classes are backg"):
        import_export(source, tmp_path / "other", ignored_classes=["raod"])


def test_labels_of_a_rotated_photo_belong_to_it_as_a_viewer_shows_it(tmp_path):
    scenes = [Scene(scene.name, scene.image[:10], scene.labels[:10]) for scene in four()]
    source = exports.write_labelme(tmp_path / "export", scenes, ("background", "car", "road"))
    (source / "d.json").unlink()
    for scene in scenes:  # stored sideways: viewers turn it by 90 degrees
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(np.ascontiguousarray(np.rot90(scene.image))).save(source / f"{scene.name}.png", exif=exif)
    import_export(source, tmp_path / "data", unannotated_images="background")
    for split in ("train", "validation"):
        for sample in load_segmentation_dataset("folder", split, tmp_path / "data"):
            scene = next(each for each in scenes if each.name == sample["image_id"])
            assert np.array_equal(np.asarray(sample["image"]), scene.image)
            assert np.array_equal(np.asarray(sample["label"]), scene.labels * (scene.name != "d"))


def test_images_may_lie_in_another_folder(tmp_path):
    source = exports.write_cvat(tmp_path / "export", four(), ("background", "road", "car"))
    (source / "JPEGImages").rename(tmp_path / "photos")
    with pytest.raises(UsageError, match="has no folder JPEGImages, .* or name their folder in `image_dir`"):
        import_export(source, tmp_path / "data")
    import_export(source, tmp_path / "data", image_dir=tmp_path / "photos")
    assert len(list((tmp_path / "data").glob("*/images/*.png"))) == 4


def test_after_an_error_nothing_is_left_and_a_second_try_succeeds(tmp_path):
    source = exports.write_cvat(tmp_path / "export", four(), ("background", "road", "car"))
    good = (source / "SegmentationClass/d.png").read_bytes()
    exports.save_image(source / "SegmentationClass/d.png", np.full((16, 16, 3), 77, np.uint8))
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"d\.png: label colors \[\[77, 77, 77\]\] are not listed"):
        import_export(source, tmp_path / "data")
    assert contents(tmp_path) == before
    (source / "SegmentationClass/d.png").write_bytes(good)
    (tmp_path / ".data.partial/old").mkdir(parents=True)  # of a process that was killed
    (tmp_path / "data").mkdir()
    import_export(source, tmp_path / "data")
    assert not (tmp_path / ".data.partial").exists()
    assert not (tmp_path / "data/old").exists()
    with pytest.raises(UsageError, match="`output_dir`: .* is not empty"):
        import_export(source, tmp_path / "data")


@pytest.mark.parametrize("kind", ["working directory", "link", "link to a folder that is missing"])
def test_the_folder_to_write_may_be_the_working_directory_or_a_link(tmp_path, monkeypatch, kind):
    source = exports.write_cvat(tmp_path / "export", four(), ("background", "road", "car"))
    target = tmp_path / "elsewhere/data"
    target.parent.mkdir()
    if "missing" not in kind:
        target.mkdir()
        (target / ".partial/old").mkdir(parents=True)  # of a process that was killed
    if kind == "working directory":
        monkeypatch.chdir(target)
        output_dir = Path()
    else:
        output_dir = tmp_path / "link"
        output_dir.symlink_to(target)
    import_export(source, output_dir)
    assert sorted(path.name for path in target.iterdir()) == ["dataset.yaml", "train", "val"]
    assert [path.name for path in target.parent.iterdir()] == ["data"]
    assert len(load_segmentation_dataset("folder", "train", target)) == 3


def test_two_imports_do_not_write_the_same_folder(tmp_path):
    source = exports.write_cvat(tmp_path / "export", four(), ("background", "road", "car"))
    (tmp_path / ".data.partial").mkdir()  # of the other import
    with locked(tmp_path / "data"), pytest.raises(UsageError, match="data"):
        import_export(source, tmp_path / "data")
    assert (tmp_path / ".data.partial").is_dir()


def test_after_an_error_an_empty_folder_stays_empty(tmp_path):
    source = exports.write_cvat(tmp_path / "export", four(), ("background", "road", "car"))
    exports.save_image(source / "SegmentationClass/d.png", np.full((16, 16, 3), 77, np.uint8))
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match=r"d\.png: label colors"):
        import_export(source, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.slow
def test_a_killed_import_leaves_no_data_set_under_its_name(tmp_path):
    scenes = [small(f"{number:03d}", size=256) for number in range(60)]
    source = exports.write_cvat(tmp_path / "export", scenes, ("background", "road", "car"))
    command = [sys.executable, "-m", "msctr_hf", "import", str(source), str(tmp_path / "data")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not list((tmp_path / ".data.partial").glob("*/labels/*.png")):
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "data").exists()
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "data").glob("*/labels/*.png"))) == 60


def test_an_export_that_is_not_recognized_gets_the_list_of_formats(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export/notes.json").write_text("{}")
    with pytest.raises(UsageError, match="is not recognized as an export of ") as error:
        import_export(tmp_path / "export", tmp_path / "data")
    assert all(name in str(error.value) for name in FORMATS)
    with pytest.raises(UsageError, match="`format` must be one of cvat .*, got 'voc'"):
        import_export(tmp_path / "export", tmp_path / "data", "voc")
    exports.write_cvat(tmp_path / "export", four(), ("background", "road", "car"))
    exports.write_coco(tmp_path / "export", four(), ("background", "road", "car"))
    with pytest.raises(UsageError, match="may be cvat or coco; say which in `format`"):
        import_export(tmp_path / "export", tmp_path / "data")
    with pytest.raises(UsageError, match="is an archive; unpack it"):
        (tmp_path / "export.zip").touch()
        import_export(tmp_path / "export.zip", tmp_path / "data")


def test_the_command_takes_the_words_in_the_order_of_its_usage(tmp_path, capsys):
    import msctr_cli

    source = exports.write_cvat(tmp_path / "export", four(), ("background", "road", "car"))
    msctr_cli.main(["import", "cvat", str(source), str(tmp_path / "one"), "--seed", "3"])
    msctr_cli.main(["import", str(source), str(tmp_path / "two"), "--seed", "3"])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert "4 images (3 of train, 1 of validation, 0 of test) are in" in capsys.readouterr().out
    for words, sentence in (
        (["coco", str(source), str(tmp_path / "three")], "has no JSON file with"),
        ([str(source)], "Name the export and the folder to write: msctr import [FORMAT] SOURCE OUTPUT_DIR"),
        (["a", "b", "c", "d"], "unknown argument a."),
        ([str(source), str(tmp_path / "one")], "--output_dir: "),
    ):
        with pytest.raises(SystemExit) as stopped:
            msctr_cli.main(["import", *words])
        assert stopped.value.code == 2
        assert sentence in capsys.readouterr().err.splitlines()[-1]
