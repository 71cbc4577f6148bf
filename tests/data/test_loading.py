import csv

import numpy as np
import pytest
from layouts import LAYOUTS, write_image, write_labels

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.errors import UsageError


def test_splits_joined_by_plus_are_one_data_set(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / f"leftImg8bit/{split}/bonn/{split}_leftImg8bit.png", (2, 3))
        write_labels(tmp_path / f"gtFine/{split}/bonn/{split}_gtFine_labelIds.png", np.full((2, 3), 7, np.uint8))
    dataset = load_segmentation_dataset("cityscapes", "train+validation", tmp_path)
    assert [sample["image_id"] for sample in dataset] == ["bonn/train", "bonn/val"]
    assert np.asarray(dataset[1]["label"]).tolist() == [[0] * 3] * 2


def test_corrections_leave_images_out_and_replace_labels(tmp_path):
    layout = LAYOUTS["cadis_task3"]
    layout.write(tmp_path)
    write_labels(tmp_path / "relabeled/frame2.png", np.full((12, 16), 4, dtype=np.uint8))
    first = "Video3/Video3_frame00000"
    with open(tmp_path / "corrections.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image_id", "label"], [f"{first}0", ""], [f"{first}2", "relabeled/frame2.png"]])
    dataset = load_segmentation_dataset("cadis_task3", "train", tmp_path, corrections=tmp_path / "corrections.csv")
    assert dataset.with_format(None)["image_id"][:] == [f"{first}1", f"{first}2"]
    assert np.unique(np.asarray(dataset[1]["label"])).tolist() == [4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frame,label\n1,2\n", "columns image_id and label"),
        ("image_id,label\nVideo3/Video3_frame000000,no.png\n", "no.png"),
    ],
)
def test_faulty_corrections_are_refused_with_the_reason(tmp_path, text, message):
    LAYOUTS["cadis_task3"].write(tmp_path)
    (tmp_path / "corrections.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset("cadis_task3", "train", tmp_path, corrections=tmp_path / "corrections.csv")


def test_corrections_of_a_copy_are_refused_rather_than_ignored(tmp_path):
    spec = get_dataset_spec("camvid")
    rows = spec.index("train", LAYOUTS["camvid"].write(tmp_path / "official"))
    rows.save_to_disk(str(tmp_path / "copy"))
    (tmp_path / "corrections.csv").write_text("image_id,label\n0001TP_006690,\n")
    with pytest.raises(ValueError, match="`corrections` apply to the official files"):
        load_segmentation_dataset("camvid", "train", tmp_path / "copy", corrections=tmp_path / "corrections.csv")


def test_id_map_and_reduce_zero_label_map_other_raw_values_to_the_classes(tmp_path):
    LAYOUTS["camvid"].write(tmp_path)
    mapped = load_segmentation_dataset("camvid", "train", tmp_path, id_map={10: 3, 11: 0})
    assert set(np.unique(np.asarray(mapped[0]["label"]))) == {255, 3, 0}
    write_labels(LAYOUTS["camvid"].pair(tmp_path)[1], np.resize(np.arange(12, dtype=np.uint8), (12, 16)))
    reduced = load_segmentation_dataset("camvid", "train", tmp_path, reduce_zero_label=True)
    assert set(np.unique(np.asarray(reduced[0]["label"]))) == {255, *range(11)}
    with pytest.raises(ValueError, match="not train ids"):
        load_segmentation_dataset("camvid", "train", tmp_path, id_map={1: 11})
    for raw in (-1, 70000):
        with pytest.raises(UsageError, match=f"`id_map`: raw label values must be from 0 to 65535, got {raw}"):
            load_segmentation_dataset("camvid", "train", tmp_path, id_map={raw: 0})


def test_errors_about_unknown_names_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"choose from .*cityscapes"):
        load_segmentation_dataset("cityscape", "train")
    with pytest.raises(ValueError, match="splits"):
        load_segmentation_dataset("ade20k", "test", tmp_path)
    with pytest.raises(ValueError, match="`streaming` reads parquet"):
        load_segmentation_dataset("camvid", "train", LAYOUTS["camvid"].write(tmp_path), streaming=True)


@pytest.mark.parametrize("name", sorted({layout.dataset for layout in LAYOUTS.values()} - {"folder"}))
def test_errors_about_missing_files_say_where_to_get_them(tmp_path, name):
    homepage = get_dataset_spec(name).homepage.split()[0]
    for data_dir in (None, tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match=r"`data_dir`|The folder .* does not exist") as error:
            load_segmentation_dataset(name, "train", data_dir)
        assert homepage in str(error.value)
