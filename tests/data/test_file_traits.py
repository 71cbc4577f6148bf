import numpy as np
import pytest
from layouts import write_folder
from PIL import Image

from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.preparation import prepare
from msctr_hf.data.saved_source import SavedDataset
from msctr_hf.errors import UsageError


def check(folder, **options):
    prepare(get_dataset_spec("folder", folder), ["train", "validation"], folder, SavedDataset(), **options)


def save(path, array, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(path, **({"exif": exif} if orientation != 1 else {}))


def write_deep_images(folder, maximum):
    """Replace the training images by PNGs of 16 bits whose largest value, of one pixel of one image, is `maximum`."""
    for number in range(4):
        (folder / f"train/images/{number}.jpg").unlink()
        values = np.random.default_rng(number).integers(0, min(maximum, 4095), (40, 56), dtype=np.uint16)
        values[7, 9] = maximum if number == 2 else 0
        save(folder / f"train/images/{number}.png", values)


@pytest.mark.parametrize(("maximum", "is_dark"), [(255, True), (4095, True), (4096, False), (65535, False)])
def test_sixteen_bit_images_that_use_only_twelve_bits_are_reported(tmp_path, capsys, maximum, is_dark):
    folder = write_folder(tmp_path)
    write_deep_images(folder, maximum)
    check(folder)
    out = capsys.readouterr().out
    assert ("warning: the 4 images of train with 16 bits per channel have only values below 4,096." in out) == is_dark
    assert "images of validation with 16 bits" not in out


def test_eight_bit_images_that_are_dark_are_not_reported(tmp_path, capsys):
    folder = write_folder(tmp_path)
    for path in (folder / "train/images").iterdir():
        Image.new("RGB", (56, 40)).save(path)
    check(folder)
    assert "warning" not in capsys.readouterr().out


def tag(folder, split, number, image=1, label=1):
    """Store pixels of one pair turned, so that a viewer that follows their orientation shows them as before."""
    for kind, suffix, orientation in (("images", "jpg", image), ("labels", "png", label)):
        path = folder / split / kind / f"{number}.{suffix}"
        stored = np.asarray(Image.open(path))
        save(path, stored[::-1, ::-1] if orientation == 3 else stored, orientation)


def test_orientations_are_counted_by_kind(tmp_path, capsys):
    folder = write_folder(tmp_path)
    for number in range(3):
        tag(folder, "train", number, image=3, label=3)
    tag(folder, "val", 1, image=3, label=3)
    check(folder)
    train, validation = capsys.readouterr().out.split("validation:")
    assert "EXIF orientation: 3 images and their labels are turned alike" in train
    assert "EXIF orientation: 1 images and their labels are turned alike" in validation


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_of_which_some_are_tagged_like_their_images_and_some_are_not_are_refused(tmp_path, split):
    folder = write_folder(tmp_path)
    tag(folder, "train", 0, image=3, label=3)
    tag(folder, "train", 1, image=3, label=3)
    tag(folder, split, 0 if split == "val" else 2, image=3)
    with pytest.raises(UsageError) as refused:
        check(folder, output_dir=tmp_path / "copy")
    assert "2 images and their labels are turned alike; 1 images are turned, their labels have no" in str(
        refused.value
    )
    assert not (tmp_path / "copy").exists()


def test_labels_that_fit_only_stored_images_beside_labels_that_fit_as_shown_are_refused(tmp_path):
    folder = write_folder(tmp_path)
    tag(folder, "train", 0, image=6)  # 56x40 as stored, like its labels
    check(folder)
    tag(folder, "train", 1, image=3)
    with pytest.raises(UsageError, match="1 images are turned, .*; 1 images are not turned"):
        check(folder)


def test_counts_are_kept_with_the_report_of_a_copy(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder")
    write_deep_images(folder, 4095)
    for _ in range(2):
        check(folder, output_dir=tmp_path / "copy")
        assert "warning: the 4 images of train with 16 bits" in capsys.readouterr().out


def write_indexed_labels(folder, adaptive):
    """Replace labels by those with a palette of three colors, or only of the colors that occur, numbered anew."""
    colors = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 142]], dtype=np.uint8)
    for number, path in enumerate(sorted(folder.glob("*/labels/*.png"))):
        values = np.zeros((40, 56), dtype=np.uint8)
        values[:20] = 1 if number % 2 else 2
        image = Image.fromarray(np.unique(values, return_inverse=True)[1].reshape(40, 56).astype(np.uint8), mode="P")
        image.putpalette(colors[np.unique(values)].tobytes())
        if not adaptive:
            image = Image.fromarray(values, mode="P")
            image.putpalette(colors.tobytes())
        image.save(path)


def test_colors_of_ignored_values_may_differ(tmp_path, capsys):
    folder = write_folder(tmp_path, description={"ignored": [255]})
    for number, path in enumerate(sorted(folder.glob("*/labels/*.png"))):
        values = np.array(Image.open(path))
        values[0] = 255
        image = Image.fromarray(values, mode="P")
        image.putpalette([*range(255), *[0] * 510, number, number, number])
        image.save(path)
    check(folder)
    assert "palettes" not in capsys.readouterr().out


@pytest.mark.parametrize("adaptive", [True, False])
def test_palettes_that_number_the_colors_anew_in_every_file_are_reported(tmp_path, capsys, adaptive):
    folder = write_folder(tmp_path)
    write_indexed_labels(folder, adaptive)
    check(folder)
    out = capsys.readouterr().out
    assert ("the value 1 has the color (0,0,142) in 3 and (128,64,128) in 3 of them." in out) == adaptive
    assert ("list the colors in `label_colors`" in out) == adaptive
