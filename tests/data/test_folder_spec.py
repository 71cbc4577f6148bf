import numpy as np
import pytest
from layouts import write_folder, write_image, write_labels
from PIL import Image

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.loading import get_dataset_spec


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
    ],
)
def test_a_faulty_dataset_yaml_is_refused_with_the_reason(tmp_path, description, message):
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset("folder", "train", write_folder(tmp_path, description=description))


def test_the_name_of_a_data_set_is_read_and_may_be_left_out(tmp_path):
    assert get_dataset_spec("folder", write_folder(tmp_path / "unnamed")).title == ""
    named = write_folder(tmp_path / "named", description={"name": "Streets of Ulm"})
    assert get_dataset_spec("folder", named).title == "Streets of Ulm"


def test_groups_of_classes_are_read(tmp_path):
    root = write_folder(tmp_path, description={"groups": {"ground": ["road"], "rest": ["car", "sky"]}})
    assert get_dataset_spec("folder", root).groups == {"ground": [1], "rest": [2, 0]}
