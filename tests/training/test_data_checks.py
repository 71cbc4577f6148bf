import numpy as np
import pytest
from layouts import write_folder, write_image, write_labels
from PIL import Image
from small_run import flags

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.overlap import shared_images
from msctr_hf.data.settings import DataSettings
from msctr_hf.training import data_checks
from msctr_hf.training.data_checks import missing_classes, without_copies

FORMS = ["folder", "parquet", "pre-decoded"]


@pytest.fixture
def folder(tmp_path):
    root = write_folder(tmp_path / "mine")
    (root / "dataset.yaml").write_text((root / "dataset.yaml").read_text() + "ignored: [255]\n")
    for number in range(2):  # `write_folder` draws the images of both splits alike
        write_image(root / f"val/images/{number}.jpg", (40, 56), seed=10 + number)
    return root


@pytest.fixture
def copied(run_script, tmp_path):
    """Copy a folder to one of `FORMS`."""

    def copy(root, form):
        if form == "folder":
            return root
        options = ["--dataset", "folder", "--data_dir", root, "--num_workers", "0", "--output_dir", tmp_path / form]
        predecode = ["--predecode"] if form == "pre-decoded" else []
        code, _, error = run_script("prepare_dataset.py", *options, *predecode)
        assert code == 0, error
        return tmp_path / form

    return copy


def write_all_labels(root, value):
    for number in range(4):
        write_labels(root / f"train/labels/{number}.png", np.full((40, 56), value, np.uint8))


@pytest.mark.parametrize("form", FORMS)
def test_classes_that_no_training_image_has_are_named(folder, copied, form):
    spec = get_dataset_spec("folder", folder)
    assert missing_classes(load_segmentation_dataset("folder", "train", copied(folder, form)), spec) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_class_that_no_training_image_has_is_named(folder, copied, form):
    write_all_labels(folder, 1)
    dataset = load_segmentation_dataset("folder", "train", copied(folder, form))
    notes = missing_classes(dataset, get_dataset_spec("folder", folder))
    assert notes == ["warning: no training image has a pixel of sky, car"]


def test_a_large_training_set_is_not_read_to_the_end_and_not_judged_by_a_part(folder, monkeypatch):
    write_all_labels(folder, 1)
    monkeypatch.setattr(data_checks, "MAX_PIXELS", 40 * 56)
    dataset = load_segmentation_dataset("folder", "train", folder)
    assert missing_classes(dataset, get_dataset_spec("folder", folder)) == []


def test_a_run_on_ignored_pixels_only_is_refused_before_training(folder, run_script, tmp_path):
    write_all_labels(folder, 255)
    code, _, error = run_script("train.py", *flags(folder, tmp_path / "run"))
    assert (code, "no pixel of 4 images has a class" in error) == (2, True), error
    assert not (tmp_path / "run").exists()


def test_a_run_names_absent_classes_and_shared_images(folder, run_script, tmp_path):
    write_all_labels(folder, 1)
    (folder / "val/images/0.jpg").write_bytes((folder / "train/images/2.jpg").read_bytes())
    code, out, error = run_script("train.py", *flags(folder, tmp_path / "run", max_steps=2))
    assert code == 0, error
    assert "warning: no training image has a pixel of sky, car" in out
    assert "warning: 1 of 2 validation images are training images too, such as 0 (2 in training)" in out
    options = flags(folder, tmp_path / "joined", max_steps=2, train_split="train+validation")
    code, out, error = run_script("train.py", *options)
    assert (code, "training images too" in out) == (0, False), error


@pytest.mark.parametrize("form", FORMS)
def test_images_with_the_same_content_are_found_under_other_names(folder, copied, form):
    Image.open(folder / "train/images/3.jpg").save(folder / "train/images/3.bmp")
    (folder / "train/images/3.jpg").unlink()
    for number, source in ((0, None), (1, folder / "train/images/3.bmp")):
        (folder / f"val/images/{number}.jpg").unlink()
        target = folder / f"val/images/{number}.bmp"
        if source is None:  # of the same size, with other pixels
            write_image(target, (40, 56), seed=30)
        else:
            target.write_bytes(source.read_bytes())
    root = copied(folder, form)
    train, validation = (load_segmentation_dataset("folder", split, root) for split in ("train", "validation"))
    assert shared_images(train, validation) == [("3", "1")]


@pytest.mark.parametrize("form", FORMS)
def test_images_that_differ_only_between_the_sampled_bytes_are_not_the_same(folder, copied, form):
    blank = np.full((300, 400, 3), 255, dtype=np.uint8)  # as scanned pages are white at the margins and in the middle
    for split, numbers in (("train", (0, 1)), ("val", (2, 3))):
        for number, path in zip(numbers, sorted((folder / split / "images").glob("*")), strict=False):
            page = blank.copy()
            page[50 + 10 * number] = 0
            Image.fromarray(page).save(path.with_suffix(".bmp"))
            path.unlink()
            Image.new("L", (400, 300)).save(folder / f"{split}/labels/{path.stem}.png")
    root = copied(folder, form)
    train, validation = (load_segmentation_dataset("folder", split, root) for split in ("train", "validation"))
    assert shared_images(train, validation) == []
    assert shared_images(train, train) == [(name, name) for name in train.with_format(None)["image_id"][:]]


def test_files_that_cannot_be_opened_are_not_compared(folder):
    train = load_segmentation_dataset("folder", "train", folder)
    (folder / "train/images/0.jpg").unlink()
    (folder / "train/images/0.jpg").mkdir()  # which has a size, and is opened by nobody
    assert [image_id for image_id, _ in shared_images(train, train)] == ["1", "2", "3"]


def test_copies_of_labeled_images_are_left_out_of_the_rest_whatever_the_seed(folder, tmp_path):
    write_image(tmp_path / "twin.jpg", (40, 56), seed=99)
    for number in (0, 2):
        (folder / f"train/images/{number}.jpg").write_bytes((tmp_path / "twin.jpg").read_bytes())
    numbers = set()
    for seed in range(8):
        settings = DataSettings(dataset="folder", data_dir=str(folder), train_images=2, unlabeled="rest")
        train, _ = settings.load_training(seed)
        rest = settings.load_unlabeled(seed)
        others, notes = without_copies(rest, train)
        labeled, unlabeled, kept = (each.with_format(None)["image_id"][:] for each in (train, rest, others))
        is_split = len({"0", "2"} & {*labeled}) == 1  # one copy has labels, the other has not
        assert kept == [name for name in unlabeled if not (is_split and name in "02")]
        assert len(notes) == is_split
        assert all("1 of 2 images without labels are left out: they are copies of training" in note for note in notes)
        assert "label" not in others.with_format(None).column_names
        assert np.asarray(others[0]["image"]).shape == (40, 56, 3)
        numbers.add(len(kept))
    assert numbers == {1, 2}
