import json

import numpy as np
import pytest
from layouts import LAYOUTS, write_image, write_labels

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.data.decoding import rows_for_crops
from msctr_hf.data.loaders import training_loader
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.predecoded import write_predecoded

LAYOUT = LAYOUTS["camvid"]


@pytest.fixture
def official(tmp_path):
    LAYOUT.write(tmp_path / "official", count=5)
    image, label = LAYOUT.pair(tmp_path / "official", 4)
    write_image(image, (20, 9))  # another size than the other images
    write_labels(label, np.zeros((20, 9), np.uint8))
    return tmp_path / "official"


def write(official, folder, count=None):
    spec = get_dataset_spec("camvid")
    samples = load_segmentation_dataset("camvid", "train", official)
    for done in write_predecoded(samples, "train", folder, name=spec.name, classes=spec.classes):
        if done == count:
            break


def assert_same_samples(folder, official):
    copy = load_segmentation_dataset("camvid", "train", folder)
    expected = load_segmentation_dataset("camvid", "train", official)
    assert len(copy) == len(expected) == 5
    for sample, other in zip(copy, expected, strict=True):
        assert sample["image_id"] == other["image_id"]
        assert np.array_equal(np.asarray(sample["image"]), np.asarray(other["image"]))
        assert np.array_equal(np.asarray(sample["label"]), np.asarray(other["label"]))


def test_a_pre_decoded_copy_has_the_samples_of_the_files(official, tmp_path):
    write(official, tmp_path / "cache")
    assert_same_samples(tmp_path / "cache", official)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_writing_resumes_where_it_stopped(official, tmp_path, count):
    write(official, tmp_path / "cache", count)
    assert not (tmp_path / "cache/predecoded.json").exists()
    for name, tail in (("images", b"half an image"), ("labels", b"half"), ("index.jsonl", b'{"image_id": "ca')):
        with open(tmp_path / f"cache/train.{name}", "ab") as file:
            file.write(tail)
    write(official, tmp_path / "cache")
    assert_same_samples(tmp_path / "cache", official)


def test_training_gets_the_same_crops_from_files_and_from_a_pre_decoded_copy(official, tmp_path):
    write(official, tmp_path / "cache")
    augmentation = TrainingAugmentation(crop_size=(8, 12), image_mean=[0.5] * 3, image_std=[0.5] * 3)
    batches = []
    for folder in (official, tmp_path / "cache"):
        dataset = load_segmentation_dataset("camvid", "train", folder)
        (batch,) = training_loader(dataset, augmentation, batch_size=5, seed=0, num_workers=0)
        batches.append(batch)
    assert all((batches[0][name] == batches[1][name]).all() for name in ("pixel_values", "labels"))


def test_crops_are_cut_from_a_memory_mapped_file(official, tmp_path):
    write(official, tmp_path / "cache")
    sample = rows_for_crops(load_segmentation_dataset("camvid", "train", tmp_path / "cache"))[4]
    assert all(isinstance(sample[name], np.memmap) for name in ("image", "label"))
    assert [sample[name].shape for name in ("image", "label")] == [(20, 9, 3), (20, 9)]


def test_a_copy_with_other_classes_or_without_the_split_is_refused(official, tmp_path):
    write(official, tmp_path / "cache")
    with pytest.raises(ValueError, match="pre-decoded for camvid, not for ade20k"):
        load_segmentation_dataset("ade20k", "train", tmp_path / "cache")
    with pytest.raises(ValueError, match="msctr prepare"):
        load_segmentation_dataset("camvid", "validation", tmp_path / "cache")
    description = json.loads((tmp_path / "cache/predecoded.json").read_text())
    assert description["splits"] == ["train"]
