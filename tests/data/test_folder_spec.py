import numpy as np
import pytest
from layouts import write_folder, write_image, write_labels
from PIL import Image

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.errors import UsageError


def ids(sample):
    return np.asarray(sample["label"])


def test_a_folder_of_the_user_gives_images_labels_and_ids(tmp_path):
    dataset = load_segmentation_dataset("folder", "train", write_folder(tmp_path))
    sample = dataset[1]
    assert len(dataset) == 4
    assert sample["image"].mode == "RGB"
    assert sample["image"].size == sample["label"].size == (56, 40)
    assert sorted(np.unique(ids(sample))) == [0, 1, 2]
    assert sample["image_id"] == "1"
    assert get_dataset_spec("folder", tmp_path).id2label == {0: "sky", 1: "road", 2: "car"}


def test_raw_values_and_colors_are_mapped_to_classes_and_listed_ones_are_ignored(tmp_path):
    raw = np.array([[10, 20], [30, 99]], dtype=np.uint8)
    by_value = {"label_values": {10: "sky", 20: "road", 30: "car"}, "ignored": [99]}
    root = write_folder(tmp_path / "values", 1, 1, (2, 2), by_value)
    write_labels(root / "train/labels/0.png", raw)
    assert ids(load_segmentation_dataset("folder", "train", root)[0]).tolist() == [[0, 1], [2, 255]]

    by_color = {
        "label_colors": {"128,0,0": "sky", "0,64,0": "road", "0,0,32": "car"},
        "ignored": ["1,1,1"],
        "palette": {"car": [9, 8, 7]},
    }
    root = write_folder(tmp_path / "colors", 1, 1, (2, 2), by_color)
    colors = np.array([[[128, 0, 0], [0, 64, 0]], [[0, 0, 32], [1, 1, 1]]], dtype=np.uint8)
    Image.fromarray(colors).save(root / "train/labels/0.png")
    assert ids(load_segmentation_dataset("folder", "train", root)[0]).tolist() == [[0, 1], [2, 255]]
    rgba = Image.fromarray(colors).convert("RGBA")
    rgba.putalpha(7)
    rgba.save(root / "train/labels/0.png")
    assert ids(load_segmentation_dataset("folder", "train", root)[0]).tolist() == [[0, 1], [2, 255]]
    assert get_dataset_spec("folder", root).palette[2] == (9, 8, 7)


def test_gray_labels_are_refused_where_colors_are_expected(tmp_path):
    description = {"label_colors": {"0,0,0": "sky", "1,1,1": "road", "2,2,2": "car"}}
    root = write_folder(tmp_path, 1, 1, (2, 2), description)
    with pytest.raises(ValueError, match="labels must be an RGB image, but the file has the mode L"):
        load_segmentation_dataset("folder", "train", root)[0]


def test_palette_indices_and_16_bit_values_are_decoded(tmp_path):
    root = write_folder(tmp_path, 2, 1, (2, 2), {"label_values": {0: "sky", 1: "road", 700: "car"}})
    write_labels(root / "train/labels/0.png", np.array([[0, 1], [1, 0]], dtype=np.uint8), palette=[200, 1, 1, 3, 4, 5])
    write_labels(root / "train/labels/1.png", np.array([[0, 700], [1, 700]], dtype=np.uint16))
    dataset = load_segmentation_dataset("folder", "train", root)
    assert ids(dataset[0]).tolist() == [[0, 1], [1, 0]]
    assert ids(dataset[1]).tolist() == [[0, 2], [1, 2]]


def test_an_image_that_is_stored_rotated_fits_labels_that_are_stored_upright(tmp_path):
    root = write_folder(tmp_path, 1, 1, (40, 56))
    turned = Image.open(root / "train/images/0.jpg").rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: viewers rotate the image right by 90 degrees
    turned.save(root / "train/images/0.jpg", exif=exif)
    assert load_segmentation_dataset("folder", "train", root)[0]["image"].size == (56, 40)


def break_yaml(root):
    (root / "dataset.yaml").write_text("classes: [sky, road")


def break_image(root):
    (root / "train/images/0.jpg").write_bytes(b"not an image")


def break_label_value(root):
    write_labels(root / "train/labels/0.png", np.full((40, 56), 77, dtype=np.uint8))


def break_size(root):
    write_labels(root / "train/labels/0.png", np.zeros((40, 50), dtype=np.uint8))


def break_mode(root):
    write_image(root / "train/labels/0.png", (40, 56))


def truncate_image(root):
    data = (root / "train/images/0.jpg").read_bytes()
    (root / "train/images/0.jpg").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_yaml, "not valid YAML"),
        (lambda root: (root / "dataset.yaml").unlink(), "dataset.yaml"),
        (lambda root: (root / "train/labels/0.png").unlink(), "no label"),
        (
            lambda root: (root / "train/labels/0.jpg").write_bytes(b"") or (root / "train/labels/0.png").unlink(),
            "0.jpg",
        ),
        (break_image, "0.jpg cannot be read"),
        (truncate_image, "0.jpg cannot be read"),
        (break_label_value, r"0.png: label values \[77\]"),
        (break_size, "same size"),
        (break_mode, "one value per pixel"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage, message):
    root = write_folder(tmp_path)
    damage(root)
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset("folder", "train", root)[0]


ALL = {"images": "images", "labels": "labels"}


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"clases": []}, "unknown keys"),
        ({"classes": ["one"]}, "two classes"),
        ({"classes": ["a", "a"]}, "twice"),
        ({"label_values": {0: "sea"}}, "sea"),
        ({"label_values": {"x": "sky"}}, "integer or a color"),
        ({"label_values": {"1,2,3": "sky"}}, "integers"),
        ({"ignored": ["red"]}, "color"),
        ({"palette": {"sea": [1, 2, 3]}}, "sea"),
        ({"groups": ["sky"]}, "`groups:` must map names of groups to lists of classes"),
        ({"groups": {1: ["sky"]}}, r"the name of a group must be a string and its classes a list, got 1: \['sky'\]"),
        ({"groups": {"up": "sky"}}, "the name of a group must be a string and its classes a list, got 'up': 'sky'"),
        ({"groups": {"up": []}}, "the name of a group must be a string and its classes a list"),
        ({"groups": {"up": ["sea"]}}, r"the group 'up' names \['sea'\]"),
        ({"name": 2024}, "`name:` must be one line of text, got 2024"),
        ({"name": "two\nlines"}, "`name:` must be one line of text"),
        ({"splits": {"training": {}}}, "train, validation or test"),
        ({"splits": {"train": {"images": "../x", "labels": "y"}}}, "inside the folder"),
        ({"ignored": 255}, r"`ignored:` must be a list of raw values, such as \[255\], got 255"),
        ({"ignored": None}, "`ignored:` must be a list of raw values, .* got None"),
        ({"ignored": ["1,2,3"]}, "`ignored:`: these raw labels must be integers .*, got '1,2,3'"),
        ({"ignored": [-1]}, "`ignored:`: these raw labels must be integers from 0 to 65535, got -1"),
        ({"ignored": [70000]}, "`ignored:`: these raw labels must be integers from 0 to 65535, got 70000"),
        ({"ignored": [[255]]}, r"`ignored:`: a raw label must be .*, got \[255\]"),
        ({"label_values": {65536: "sky"}}, "`label_values:`: these raw labels must be integers from 0 to 65535"),
        ({"label_values": {"1,2,3": "sky", 4: "road"}}, "`label_values:`: these raw labels must be integers"),
        ({"label_values": {0: "sky", 1: "road"}, "ignored": [0]}, "`ignored:` lists 0, which `label_values:` maps"),
        ({"label_colors": {"1,2,3": "sky"}, "ignored": [255]}, "`ignored:`: these raw labels must be colors"),
        ({"label_colors": {"1,2,3": "sky", "1, 2, 3": "road"}}, r"`label_colors:` lists \(1, 2, 3\) twice"),
        ({"label_colors": {"\u00b2,0,0": "sky"}}, "`label_colors:`: a raw label must be"),
        ({"palette": [[1, 2, 3]]}, "`palette:` must map class names to colors"),
        ({"palette": {"sky": [300, 0, 0]}}, r"`palette:`: a color is .*, got \[300, 0, 0\] for 'sky'"),
        ({"groups": {"up": [["sky"]]}}, "`groups:`: the group 'up' names"),
        ({"groups": {"up": [1, "sea"]}}, "`groups:`: the group 'up' names"),
        ({"splits": {"train": {"images": None, "labels": "b"}}}, "`splits:`: `images:` of train must be the name"),
        ({"splits": {"train": {"images": "a", "labels": 5}}}, "`splits:`: `labels:` of train must be the name"),
        ({"splits": {"train": {"images": "a", "labels": "./a"}}}, "`splits:`: images and labels of train must be in"),
        ({"license": ["a"]}, "`license:` must be text"),
        ({"splits": None}, "`splits:` must give the folders .* such as {validation: 10 %}; got None"),
        ({"splits": {"train": 0.8}}, "`splits:`: train must be {images: FOLDER, .*, a share like 10 %, .* got 0.8"),
        ({"splits": {"validation": "10 %"}}, "`splits:`: validation is a part of the files under `images:`"),
        (
            {"splits": {"validation": "110 %"}, **ALL},
            "`splits:`: the share of validation must be like 10 %, .*'110 %'",
        ),
        ({"splits": {"validation": "ten %"}, **ALL}, "`splits:`: the share of validation must be like 10 %"),
        ({"splits": {"validation": "60 %", "test": "40 %"}, **ALL}, "sum to at most 100 % .* 60 % . 40 % is 100 %"),
        ({"splits": {"train": "80 %", "validation": "30 %"}, **ALL}, "sum to at most 100 % .* 30 % . 80 % is 110 %"),
        (
            {"splits": {"train": "a.txt", "validation": "10 %"}, **ALL},
            "validation is a share, so train must be one, too",
        ),
        (
            {"splits": {"validation": []}, **ALL},
            "validation must list names of images as text, such as .'0001'., got ",
        ),
        ({"splits": {"validation": ["0001", 2]}, **ALL}, "validation must list names of images as text"),
        ({"splits": {"validation": "../v.txt"}, **ALL}, "`splits:`: validation must be inside the folder"),
        (
            {"splits": {"train": {**ALL, "names": "a.txt"}}},
            "train has the unknown key 'names'; choose from images, la",
        ),
        ({"splits": {"train": {"images": "a"}}}, "train must have `images:` and `labels:`, got {'images': 'a'}"),
        (
            {"splits": {"train": {"images": "a", "labels": "a"}}},
            "in different folders, or labels need a `label_suffix:`",
        ),
        (ALL, "`images:` is for splits that are shares or lists of names, but all `splits:` have their own"),
        ({"images": "a"}, "the data set must have `images:` and `labels:`, got {'images': 'a'}"),
        (
            {"images": 7, "labels": "b"},
            "`images:` of the data set must be the name of a folder, or a path with ., got 7",
        ),
        ({"seed": 1}, "`seed:` is for a share, such as {validation: 10 %}"),
        ({"seed": -1}, "`seed:` must be a whole number from 0, got -1"),
        ({"ignore_case": "yes"}, "`ignore_case:` must be true or false, got 'yes'"),
        ({"label_suffix": "/m"}, "`label_suffix:` must be the end of the labels' names, like _mask, got '/m'"),
        ({"label_suffix": "_m.JPG"}, "`label_suffix:`: .JPG does not keep the values of labels; save .* as PNG"),
        (
            {"splits": {"train": {"images": "v*/i", "labels": "m"}}},
            "`images:` of train must end in the names of files",
        ),
        (
            {"splits": {"train": {"images": "*.png", "labels": "*.png"}}},
            "`images:` and `labels:` of train must differ",
        ),
        ({"splits": {"train": {"images": "*/*.png", "labels": "m/*.png"}}}, "must have the same number of ."),
        (
            {"splits": {"train": {"images": "i/*.png", "labels": "m/*.jpeg"}}},
            "`labels:` of train: .jpeg does not keep",
        ),
        (
            {"splits": {"train": {"images": "i/*.png", "label_suffix": "_m"}}},
            "`label_suffix:` is for folders; in a path",
        ),
        ({"splits": {"train": {"images": 300 * "a", "labels": "b"}}}, "does not exist"),
    ],
)
def test_a_faulty_dataset_yaml_is_refused_with_the_reason(tmp_path, description, message):
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset("folder", "train", write_folder(tmp_path, description=description))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("name: 2024-13-01", "not valid YAML: month must be in 1..12"),
        ("name: !!int x", "not valid YAML"),
        ("name: !!timestamp x", "not valid YAML"),
        ("classes: [sky, road, car]", "not valid YAML: the key 'classes' occurs twice"),
        ("label_values: {0: sky, 1: road, 1: car}", "not valid YAML: the key 1 occurs twice"),
        ("groups: &groups {up: *groups}", "`groups:`: the name of a group must be a string and its classes a list"),
        ("name: " + 500 * "[", "not valid YAML"),
        ("? [1, 2]\n: sky", "not valid YAML"),
    ],
)
def test_what_yaml_cannot_read_or_would_drop_is_refused(tmp_path, line, message):
    root = write_folder(tmp_path)
    with open(root / "dataset.yaml", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=message):
        get_dataset_spec("folder", root)


def test_an_ignored_value_is_not_trained_where_the_values_are_the_train_ids(tmp_path):
    root = write_folder(tmp_path, 1, 1, (1, 3), {"ignored": [0]})
    write_labels(root / "train/labels/0.png", np.array([[0, 1, 2]], np.uint8))
    assert ids(load_segmentation_dataset("folder", "train", root)[0]).tolist() == [[255, 1, 2]]


def test_a_description_may_start_with_a_byte_order_mark_and_hold_any_text(tmp_path):
    root = write_folder(tmp_path, description={"name": "Straßen é"})
    (root / "dataset.yaml").write_bytes(b"\xef\xbb\xbf" + (root / "dataset.yaml").read_bytes())
    assert get_dataset_spec("folder", root).title == "Straßen é"


def test_the_name_of_a_data_set_is_read_and_may_be_left_out(tmp_path):
    assert get_dataset_spec("folder", write_folder(tmp_path / "unnamed")).title == ""
    named = write_folder(tmp_path / "named", description={"name": "Streets of Ulm"})
    assert get_dataset_spec("folder", named).title == "Streets of Ulm"


def test_groups_of_classes_are_read(tmp_path):
    root = write_folder(tmp_path, description={"groups": {"ground": ["road"], "rest": ["car", "sky"]}})
    assert get_dataset_spec("folder", root).groups == {"ground": [1], "rest": [2, 0]}


def test_files_without_splits_are_refused_by_their_key(tmp_path):
    root = write_folder(tmp_path)
    (root / "dataset.yaml").write_text("classes: [a, b]\nimages: a\nlabels: b\n")
    with pytest.raises(UsageError, match="`images:` needs `splits:`, .* such as {validation: 10 %}"):
        get_dataset_spec("folder", root)
