"""Every data set is read in its official layout, and every kind of damage is refused with an error."""

import numpy as np
import pytest
from layouts import LAYOUTS, write_image, write_labels
from PIL import Image

from msctr_hf import load_segmentation_dataset

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def load(layout, root):
    return load_segmentation_dataset(layout.dataset, "train", root)


def ids(sample):
    return np.asarray(sample["label"])


@every_layout
def test_images_and_labels_are_paired_and_mapped(layout, tmp_path):
    dataset = load(layout, layout.write(tmp_path))
    assert len(dataset) == 3
    sample = dataset[2]
    expected = np.asarray(Image.open(layout.pair(tmp_path, 2)[0]).convert("RGB"))
    assert np.array_equal(np.asarray(sample["image"]), expected)
    assert ids(sample)[: len(layout.raw), 0].tolist() == list(layout.train_ids)
    assert len(set(dataset.with_format(None)["image_id"][:])) == 3


@every_layout
def test_an_image_without_a_label_is_refused_by_name(layout, tmp_path):
    layout.write(tmp_path)
    image, label = layout.pair(tmp_path, 1)
    label.unlink()
    with pytest.raises(ValueError, match="1 of 3 images of train have no label") as error:
        load(layout, tmp_path)
    assert str(image) in str(error.value)


@every_layout
def test_unrelated_files_are_ignored(layout, tmp_path):
    layout.write(tmp_path)
    image, label = layout.pair(tmp_path)
    for folder in (image.parent, label.parent):
        for name in (".DS_Store", "Thumbs.db", "README.txt"):
            (folder / name).write_bytes(b"x")
    _, without_image = layout.pair(tmp_path, 7)
    without_image.write_bytes(label.read_bytes())
    assert len(load(layout, tmp_path)) == 3


@every_layout
@pytest.mark.parametrize("part", [0, 1], ids=["image", "label"])
def test_a_truncated_file_is_refused_by_name(layout, part, tmp_path):
    layout.write(tmp_path, size=(60, 80))
    path = layout.pair(tmp_path)[part]
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match="cannot be read") as error:
        load(layout, tmp_path)[0]
    assert str(path) in str(error.value)


@every_layout
@pytest.mark.parametrize("kind", ["palette", "16 bits"])
def test_palette_indices_and_16_bit_values_are_raw_label_values(layout, kind, tmp_path):
    layout.write(tmp_path)
    before = ids(load(layout, tmp_path)[0])
    label = layout.pair(tmp_path)[1]
    raw = np.asarray(Image.open(label))
    if kind == "palette":
        write_labels(label, raw, palette=np.random.default_rng(0).integers(0, 256, 768).tolist())
    else:
        write_labels(label, raw.astype(np.uint16))
    assert np.array_equal(ids(load(layout, tmp_path)[0]), before)


@every_layout
def test_color_labels_are_refused_where_values_are_expected(layout, tmp_path):
    layout.write(tmp_path)
    label = layout.pair(tmp_path)[1]
    Image.open(label).convert("RGBA").save(label)
    with pytest.raises(ValueError, match="one value per pixel.*mode RGBA"):
        load(layout, tmp_path)[0]


@every_layout
def test_gray_images_are_converted_to_rgb(layout, tmp_path):
    layout.write(tmp_path)
    image = layout.pair(tmp_path)[0]
    Image.open(image).convert("L").save(image)
    pixels = np.asarray(load(layout, tmp_path)[0]["image"])
    assert pixels.shape == (12, 16, 3)
    assert np.ptp(pixels, axis=2).max() == 0


@every_layout
def test_rotated_images_are_read_upright(layout, tmp_path):
    layout.write(tmp_path)
    image = layout.pair(tmp_path)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: viewers rotate the image right by 90 degrees
    Image.open(image).rotate(90, expand=True).save(image, exif=exif)
    assert load(layout, tmp_path)[0]["image"].size == (16, 12)


@every_layout
def test_labels_of_another_size_than_their_image_are_refused_with_both_sizes(layout, tmp_path):
    layout.write(tmp_path)
    write_image(layout.pair(tmp_path)[0], (12, 15))
    with pytest.raises(ValueError, match="16x12.*15x12.*same size"):
        load(layout, tmp_path)[0]


@every_layout
def test_unlisted_label_values_are_ignored_or_refused(layout, tmp_path):
    layout.write(tmp_path)
    label = layout.pair(tmp_path)[1]
    write_labels(label, np.full((12, 16), layout.unmapped, dtype=np.uint8))
    if layout.ignores_unmapped:
        assert set(np.unique(ids(load(layout, tmp_path)[0]))) == {255}
        return
    with pytest.raises(ValueError, match=rf"label values \[{layout.unmapped}\] are not listed") as error:
        load(layout, tmp_path)[0]
    assert str(label) in str(error.value)


@every_layout
def test_a_split_without_images_is_refused(layout, tmp_path):
    layout.write(tmp_path)
    for number in range(3):
        layout.pair(tmp_path, number)[0].unlink()
    with pytest.raises(ValueError, match="No image in|which is not in"):
        load(layout, tmp_path)


def test_only_the_images_in_the_official_list_are_read(tmp_path):
    layout = LAYOUTS["pascal_context"]
    layout.write(tmp_path)
    (tmp_path / layout.names).write_text("2008_000002\n")
    assert load(layout, tmp_path).with_format(None)["image_id"][:] == ["2008_000002"]
    (tmp_path / layout.names).unlink()
    with pytest.raises(ValueError, match=r"train\.txt"):
        load(layout, tmp_path)


def test_all_videos_of_a_split_are_read_and_none_may_be_missing(tmp_path):
    layout = LAYOUTS["cadis_task1"]
    layout.write(tmp_path)
    for video in ("Video03", "Video05"):  # Video05 belongs to another split
        write_image(tmp_path / video / "Images/f.png", (4, 4))
        write_labels(tmp_path / video / "Labels/f.png", np.zeros((4, 4), np.uint8))
    dataset = load(layout, tmp_path)
    assert len(dataset) == 4
    assert dataset.with_format(None)["image_id"][3] == "Video03/f"
    (tmp_path / "Video04/Images").rmdir()
    with pytest.raises(ValueError, match="folder .*Video04/Images does not exist"):
        load(layout, tmp_path)
