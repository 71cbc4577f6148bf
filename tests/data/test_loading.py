import csv
import re
import shlex
import shutil
import warnings

import numpy as np
import pytest
import yaml
from datasets.table import embed_table_storage
from layouts import LAYOUTS, write_folder, write_image, write_labels

from msctr_hf import load_segmentation_dataset
from msctr_hf.commands import prepare
from msctr_hf.data.loaders import evaluation_loader
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.errors import UsageError


def test_splits_joined_by_plus_are_one_data_set(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / f"leftImg8bit/{split}/bonn/{split}_leftImg8bit.png", (2, 3))
        write_labels(tmp_path / f"gtFine/{split}/bonn/{split}_gtFine_labelIds.png", np.full((2, 3), 7, np.uint8))
    dataset = load_segmentation_dataset("cityscapes", "train+validation", tmp_path)
    assert [sample["image_id"] for sample in dataset] == ["bonn/train", "bonn/val"]
    assert np.asarray(dataset[1]["label"]).tolist() == [[0] * 3] * 2


def test_rows_that_were_stored_with_train_ids_are_not_mapped_a_second_time(tmp_path):
    layout = LAYOUTS["cadis_task3"]
    rows = load_segmentation_dataset("cadis_task3", "train", layout.write(tmp_path))
    assert rows.filter(lambda row: True).select([0])[0]["image_id"] == rows[0]["image_id"]
    stored = rows.map(lambda row: {"image": row["image"].resize((4, 4)), "label": row["label"].resize((4, 4), 0)})
    with pytest.raises(UsageError, match="labels of these rows were stored by `Dataset.map` and are train ids"):
        stored[0]
    brighter = rows.map(lambda row: {"image": row["image"].point(lambda value: value // 2)})  # labels are still files
    assert np.array_equal(brighter[0]["label"], rows[0]["label"])


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


def test_corrections_away_from_their_label_files_do_not_pass_for_those_of_the_data_set(tmp_path):
    root = write_folder(tmp_path / "data")
    corrected = tmp_path / "corrected"
    (corrected / "train/labels").mkdir(parents=True)
    shutil.copy(root / "train/labels/1.png", corrected / "train/labels/0.png")
    (corrected / "corrections.csv").write_text("image_id,label\n0,train/labels/0.png\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_segmentation_dataset("folder", "train", root, corrections=corrected / "corrections.csv")
    shutil.copy(corrected / "corrections.csv", tmp_path)
    with pytest.warns(UserWarning, match=r"names for 1 image\(s\) the label that is corrected, such as that of '0'"):
        load_segmentation_dataset("folder", "train", root, corrections=tmp_path / "corrections.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frame,label\n1,2\n", "columns image_id and label"),
        ("Video3/Video3_frame000000,\n", "columns image_id and label"),  # one image to leave out, without a header
        ("image_id;label\n", "columns image_id and label"),
        ("", "columns image_id and label"),
        ("label,image_id\n\nno.png\n", "1 of the ids .* are not those of images with labels: ''"),
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


def test_a_fault_that_the_check_would_not_see_does_not_name_it(tmp_path):
    root = write_folder(tmp_path / "data")
    dataset = load_segmentation_dataset("folder", "train", root, num_channels=3, value_type="uint16")
    with pytest.raises(UsageError, match="uint16") as raised:
        dataset[0]
    assert "msctr prepare" not in str(raised.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_faulty_file_names_the_command_that_checks_all_files(tmp_path, num_workers, capsys):
    root = write_folder(tmp_path / "my data")
    write_labels(root / "train/labels/0.png", np.full((3, 3), 1, np.uint8))
    write_labels(root / "train/labels/1.png", np.full((40, 56), 77, np.uint8))
    dataset = load_segmentation_dataset("folder", "train", root)
    with pytest.raises(UsageError) as raised:
        list(evaluation_loader(dataset, batch_size=1, num_workers=num_workers))
    sentence = str(raised.value)
    assert sentence.endswith(" checks all files.")
    words = shlex.split(sentence.split("`")[-2])
    assert words == ["msctr", "prepare", "--dataset", "folder", "--data_dir", str(root)]
    with pytest.raises(SystemExit):
        prepare.main([*words[2:], "--num_workers", "0"])
    output = capsys.readouterr()
    assert output.out.count("broken: ") == 2
    assert "checks all files" not in output.out + output.err


@pytest.mark.parametrize(("split", "is_read"), [("test", True), ("train", False), ("test+train", False)])
def test_a_faulty_image_without_labels_names_the_check_only_if_it_reads_such_images(tmp_path, split, is_read):
    splits = {name: {"images": f"{name}/images", "labels": f"{name}/labels"} for name in ("train", "test")}
    root = write_folder(tmp_path, description={"splits": splits})
    shutil.copytree(root / "train", root / "test")
    for name in splits:
        (root / f"{name}/images/0.jpg").write_bytes(b"no image")
        (root / f"{name}/labels/0.png").unlink()
    dataset = load_segmentation_dataset("folder", split, root, with_labels=False)
    with pytest.raises(UsageError, match="cannot be read as an image") as raised:
        list(dataset)
    assert ("msctr prepare" in str(raised.value)) == is_read


def test_the_command_that_checks_all_files_reads_label_values_as_the_data_set_did(tmp_path):
    root = write_folder(tmp_path)
    write_labels(root / "train/labels/0.png", np.full((3, 3), 1, np.uint8))
    dataset = load_segmentation_dataset("folder", "train", root, id_map={0: 0, 1: 1, 2: 1})
    with pytest.raises(UsageError, match=re.escape("--id_map '{0: 0, 1: 1, 2: 1}'` checks all files.")):
        dataset[0]


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


@pytest.mark.parametrize(
    ("name", "hint"), [("fodler", " Did you mean 'folder'?"), ("cityscape", " Did you mean 'cityscapes'?"), ("x", "")]
)
def test_a_misspelled_name_is_answered_with_the_most_similar_one(name, hint):
    with pytest.raises(UsageError, match=f"The data set '{name}' is unknown; choose from ") as raised:
        get_dataset_spec(name)
    assert str(raised.value).endswith(f"synthetic_scenes_nir.{hint}")


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


CITYSCAPES_VALUES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# data set: values that its files hold after someone mapped them to train ids
ALREADY_MAPPED = {
    "cityscapes": (*range(19), 255),
    "ade20k": (*range(150), 255),
    "ade20k without ignored pixels": tuple(range(150)),
    "pascal_context": (*range(59), 255),
    "pascal_context_voc_order": (*range(59), 255),
    "cadis_task2": (*range(17), 255),
    "cityscapes with few classes": (0, 1, 2, 8, 10, 13, 255),
}
# data set: raw values of the official files, complete or of a few images
OFFICIAL = {
    "cityscapes": tuple(range(34)),
    "ade20k": tuple(range(151)),
    "pascal_context": tuple(range(60)),
    "pascal_context_voc_order": (0, 1, 2, 20, 21, 59),
    "pascal_context_60_voc_order": tuple(range(60)),
    "cadis_task1": tuple(range(8)),
    "cadis_task2": tuple(range(36)),
    "cadis_task3": tuple(range(25)),
    "ade20k of a few images": (0, 1, 2, 3, 5, 13, 149),
    "pascal_context of a few images": (0, 1, 5, 9, 58, 255),
    "cityscapes of roads": (0, 7, 8),
    "cadis_task2 of one video": (0, 1, 2, 3, 4, 5, 6, 7, 10),
}


def write_values(root, case, values):
    name = case.split(" ")[0]
    layout = LAYOUTS.get(name, LAYOUTS["pascal_context_60"])
    layout.write(root)
    for number in range(3):
        labels = np.resize(np.asarray(values, np.uint8), (12, 16))
        write_labels(layout.pair(root, number)[1], labels)
    return name


@pytest.mark.parametrize("case", ALREADY_MAPPED)
@pytest.mark.parametrize("streaming", [None, False, True])
def test_files_that_already_hold_train_ids_are_refused_and_id_map_reads_them(tmp_path, case, streaming):
    root, values = tmp_path / "official", ALREADY_MAPPED[case]
    name = write_values(root, case, values)
    options = {}
    if streaming is not None:  # from parquet files
        rows = get_dataset_spec(name).index("train", root).with_format("arrow")
        (tmp_path / "copy").mkdir()
        rows.map(embed_table_storage, batched=True).with_format(None).to_parquet(tmp_path / "copy/train.parquet")
        root, options = tmp_path / "copy", {"streaming": streaming}
    with pytest.raises(ValueError, match="hold train ids already.*`id_map`") as error:
        load_segmentation_dataset(name, "train", root, **options)
    id_map = yaml.safe_load(re.search(r"\{.*\}", str(error.value))[0])
    dataset = load_segmentation_dataset(name, "train", root, id_map=id_map, **options)
    assert np.array_equal(np.asarray(next(iter(dataset))["label"]), np.resize(np.asarray(values, np.uint8), (12, 16)))


@pytest.mark.parametrize("case", OFFICIAL)
def test_official_label_values_are_not_taken_for_train_ids(tmp_path, case):
    name = write_values(tmp_path, case, OFFICIAL[case])
    dataset = load_segmentation_dataset(name, "train", tmp_path)
    values = get_dataset_spec(name).label_values
    expected = [[values.get(value, 255) for value in row] for row in np.resize(OFFICIAL[case], (12, 16)).tolist()]
    assert np.asarray(dataset[0]["label"]).tolist() == expected


def test_an_id_map_that_the_user_gives_is_believed(tmp_path):
    write_values(tmp_path, "cityscapes", ALREADY_MAPPED["cityscapes"])
    official = dict(zip(CITYSCAPES_VALUES, range(19), strict=True))
    dataset = load_segmentation_dataset("cityscapes", "train", tmp_path, id_map=official)
    assert set(np.unique(np.asarray(dataset[0]["label"]))) == {0, 1, 2, 3, 4, 5, 255}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frame9,\nVideo3/Video3_frame000000.png,\n", r"2 of the ids .*frame9.*0000\.png.*Video3/Video3_frame000000'"),
        ("Video3/Video3_frame000000,\nVideo3/Video3_frame000000,x.png\n", "frame000000' twice"),
    ],
)
def test_corrections_of_images_that_no_split_has_are_refused_with_the_ids(tmp_path, text, message):
    LAYOUTS["cadis_task3"].write(tmp_path)
    (tmp_path / "corrections.csv").write_text(f"image_id,label\n{text}")
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset("cadis_task3", "train", tmp_path, corrections=tmp_path / "corrections.csv")


def test_corrections_may_name_images_of_other_splits(tmp_path):
    root = write_folder(tmp_path / "data")
    for number in (0, 1):  # write_folder gives the images of both splits the same names
        for kind, suffix in (("images", "jpg"), ("labels", "png")):
            (root / f"val/{kind}/{number}.{suffix}").rename(root / f"val/{kind}/v{number}.{suffix}")
    (tmp_path / "corrections.csv").write_text("\ufeffimage_id,label\n0,\nv1,\n", encoding="utf-8")
    for split, ids in (("train", ["1", "2", "3"]), ("validation", ["v0"])):
        dataset = load_segmentation_dataset("folder", split, root, corrections=tmp_path / "corrections.csv")
        assert dataset.with_format(None)["image_id"][:] == ids
