"""Every data set is read in its official layout, and every kind of damage is refused with an error."""

import warnings

import numpy as np
import pytest
from layouts import LAYOUTS, write_image, write_labels
from PIL import Image

from msctr_hf import load_segmentation_dataset
from msctr_hf.errors import UsageError

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
def test_unrelated_files_are_left_out_without_a_warning(layout, tmp_path):
    layout.write(tmp_path)
    image, label = layout.pair(tmp_path)
    for folder in (image.parent, label.parent):
        for name in (".DS_Store", "Thumbs.db", "README.txt"):
            (folder / name).write_bytes(b"x")
    (image.parent / "annotation.json").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
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


def in_part(path):
    """Return the place of a file in a subfolder."""
    return path.parent / "part" / path.name


def add_name(layout, root, name):
    if layout.names is not None:
        with open(root / layout.names, "a") as file:
            file.write(f"{name}\n")


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


@every_layout
def test_linked_folders_are_read_like_others(layout, tmp_path):
    """The third of three images and its labels are in folders elsewhere, to which links lead."""
    root = layout.write(tmp_path / "data")
    files = layout.pair(root, 2)
    add_name(layout, root, f"part/{files[0].stem}")
    if layout.names is not None:
        names = (root / layout.names).read_text().split()
        (root / layout.names).write_text("\n".join(name for name in names if name != files[0].stem))
    for kind, file in zip(("images", "labels"), files, strict=True):
        (tmp_path / kind).mkdir()
        file.rename(tmp_path / kind / file.name)
        in_part(file).parent.symlink_to(tmp_path / kind, target_is_directory=True)
    dataset = load(layout, root)
    assert len(dataset) == 3
    samples = [np.asarray(sample["image"]) for sample in dataset]
    assert sum(np.array_equal(sample, pixels(tmp_path / "images" / files[0].name)) for sample in samples) == 1


@every_layout
def test_links_that_lead_back_do_not_repeat_images(layout, tmp_path):
    layout.write(tmp_path)
    for file in layout.pair(tmp_path):
        (file.parent / "here").symlink_to(".")
        (file.parent / "up").symlink_to("..")
        (file.parent / "all").symlink_to(tmp_path)
    assert len(load(layout, tmp_path)) == 3


@every_layout
def test_files_in_hidden_folders_and_hidden_files_are_left_out(layout, tmp_path):
    """Jupyter, macOS and version control leave them in folders of data."""
    layout.write(tmp_path)
    for file in layout.pair(tmp_path):
        for copy in (".ipynb_checkpoints/{}", ".git/annex/{}", "._{}"):
            target = file.parent / copy.format(file.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    assert len(load(layout, tmp_path)) == 3


@every_layout
def test_a_data_set_in_a_hidden_folder_is_read(layout, tmp_path):
    root = layout.write(tmp_path / ".cache/data")
    assert len(load(layout, root)) == 3
    (tmp_path / "linked").symlink_to(root)
    assert len(load(layout, tmp_path / "linked")) == 3


@every_layout
@pytest.mark.parametrize("part", [0, 1], ids=["image", "label"])
def test_a_link_that_leads_to_no_file_is_refused_by_name(layout, part, tmp_path):
    layout.write(tmp_path)
    file = layout.pair(tmp_path, 1)[part]
    file.unlink()
    file.symlink_to(tmp_path / "gone.png")
    with pytest.raises(UsageError, match=r"1 link\(s\) in train lead to no file") as error:
        load(layout, tmp_path)
    assert str(file) in str(error.value)
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(UsageError, match=r"1 link\(s\) in train lead to no file"):
        load(layout, tmp_path)


@every_layout
def test_a_link_that_leads_to_no_folder_is_refused_by_name(layout, tmp_path):
    layout.write(tmp_path)
    image = layout.pair(tmp_path)[0]
    add_name(layout, tmp_path, f"part/{image.stem}")
    in_part(image).parent.symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="lead to no file") as error:
        load(layout, tmp_path)
    assert str(in_part(image).parent) in str(error.value)


def save_as(file, suffix):
    """Save an image file in the format of another suffix instead."""
    content = Image.open(file)
    content.load()
    file.unlink()
    content.convert("P" if suffix == ".gif" else content.mode).save(file.with_suffix(suffix))
    return file.with_suffix(suffix)


@every_layout
def test_images_are_read_whatever_the_suffix_of_their_format(layout, tmp_path):
    suffixes = (".jfif", ".jpe", ".JPG", ".gif", ".ppm", ".webp", ".jp2", ".TIFF", ".jpeg")
    layout.write(tmp_path, count=9)
    files = [save_as(layout.pair(tmp_path, number)[0], suffix) for number, suffix in enumerate(suffixes)]
    dataset = load(layout, tmp_path)
    assert len(dataset) == 9
    for sample, file in zip(dataset, files, strict=True):
        assert np.array_equal(np.asarray(sample["image"]), pixels(file))


@every_layout
def test_labels_are_read_in_every_lossless_format(layout, tmp_path):
    layout.write(tmp_path, count=5)
    before = ids(load(layout, tmp_path)[0])
    for number, suffix in enumerate((".bmp", ".tif", ".pgm", ".PNG", ".apng")):
        save_as(layout.pair(tmp_path, number)[1], suffix)
    assert all(np.array_equal(ids(sample), before) for sample in load(layout, tmp_path))


@every_layout
@pytest.mark.parametrize("suffix", [".jpg", ".gif"])
def test_labels_in_formats_that_change_values_are_refused(layout, suffix, tmp_path):
    layout.write(tmp_path)
    save_as(layout.pair(tmp_path, 1)[1], suffix)
    with pytest.raises(UsageError, match=r"1 of 3 images of train have no label: .* must end in \.png, \.bmp, "):
        load(layout, tmp_path)


@every_layout
def test_an_image_that_no_decoder_knows_is_refused_by_name(layout, tmp_path):
    layout.write(tmp_path)
    image, _ = layout.pair(tmp_path, 1)
    image.rename(image.with_suffix(".heic"))
    image.with_suffix(".heic").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"\.heic cannot be read as an image"):
        load(layout, tmp_path)[1]


@every_layout
def test_labels_without_an_image_are_counted_in_a_warning(layout, tmp_path):
    layout.write(tmp_path, count=4)
    for number in (1, 2):
        image, label = layout.pair(tmp_path, number)
        image.unlink()
    if layout.names is not None:
        with pytest.raises(UsageError, match="names 2008_000001, which is not in"):
            load(layout, tmp_path)
        return
    with pytest.warns(UserWarning, match="2 labels of train have no image and are not used") as warned:
        assert len(load(layout, tmp_path)) == 2
    assert str(label) in str(warned[0].message)
    assert warned[0].filename == __file__


@pytest.mark.parametrize("name", ["3.npy", "3.dng", "3.png.bak", "3"])
def test_files_that_may_be_images_are_counted_in_a_warning(tmp_path, name):
    root = LAYOUTS["folder"].write(tmp_path)
    for stranger in (name, "3.txt"):
        (root / "train/images/a" / stranger).write_bytes(b"x")
    with pytest.warns(UserWarning, match=rf"1 file among the images of train is not used: .*/{name}\."):
        assert len(load(LAYOUTS["folder"], root)) == 3


def test_two_images_of_one_name_are_refused_unless_only_one_has_the_official_suffix(tmp_path):
    layout = LAYOUTS["ade20k"]
    image, _ = layout.pair(layout.write(tmp_path))
    expected = pixels(image)
    write_image(image.with_suffix(".png"), (12, 16), seed=7)
    with pytest.warns(UserWarning, match="1 file among the images of train is not used"):
        assert np.array_equal(np.asarray(load(layout, tmp_path)[0]["image"]), expected)
    image.unlink()
    write_image(image.with_suffix(".bmp"), (12, 16))
    with pytest.raises(UsageError, match="have the same name"):
        load(layout, tmp_path)


@every_layout
def test_names_are_equal_whatever_their_unicode_form(layout, tmp_path):
    layout.write(tmp_path)
    image, label = layout.pair(tmp_path)
    composed, decomposed = "stra\u00dfe_\u00e9", "stra\u00dfe_e\u0301"
    stem = image.stem.removesuffix("_leftImg8bit")
    add_name(layout, tmp_path, composed)
    for file, form in ((image, decomposed), (label, composed)):
        file.with_name(file.name.replace(stem, form)).write_bytes(file.read_bytes())
    assert len(load(layout, tmp_path)) == 4


def test_a_name_that_is_not_text_is_refused(tmp_path):
    root = LAYOUTS["folder"].write(tmp_path)
    for file in LAYOUTS["folder"].pair(root):
        file.rename(file.with_name("\udcff" + file.suffix))
    with pytest.raises(UsageError, match=r"The name b'\\xff\.(jpg|png)' in .* is not UTF-8; rename it"):
        load(LAYOUTS["folder"], root)


def test_an_image_that_a_linked_folder_shows_twice_needs_labels_only_once(tmp_path):
    root = LAYOUTS["folder"].write(tmp_path)
    (root / "train/images/b").symlink_to("a")
    assert len(load(LAYOUTS["folder"], root)) == 3
    (root / "train/labels/b").symlink_to("a")
    assert load(LAYOUTS["folder"], root).with_format(None)["image_id"][:] == [
        "a/0", "a/1", "a/2", "b/0", "b/1", "b/2",
    ]  # fmt: skip


def test_an_empty_list_of_images_is_refused(tmp_path):
    layout = LAYOUTS["pascal_context"]
    (layout.write(tmp_path) / layout.names).write_text("\n")
    with pytest.raises(UsageError, match=r"train\.txt, which names the images of the split, is empty"):
        load(layout, tmp_path)


@pytest.mark.filterwarnings("ignore:.*not used")
def test_arrays_are_images_only_where_the_number_of_channels_is_given(tmp_path):
    layout = LAYOUTS["cityscapes"]
    layout.write(tmp_path, count=2)
    image, _ = layout.pair(tmp_path, 1)
    np.save(image.with_suffix(".npy"), np.zeros((12, 16, 5), np.uint8))
    assert load(layout, tmp_path)[1]["image"].size == (16, 12)
    with pytest.raises(UsageError, match="have the same name; remove one of them"):
        load_segmentation_dataset("cityscapes", "train", tmp_path, num_channels=5)
    image.unlink()
    write_image(image.with_name("other.png"))  # not a name of this data set, with arrays neither
    rows = load_segmentation_dataset("cityscapes", "train", tmp_path, num_channels=5)
    assert len(rows) == 2
    assert rows[1]["image"].shape == (12, 16, 5)
