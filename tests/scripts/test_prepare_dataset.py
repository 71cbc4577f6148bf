import io
import json
import re
import shutil

import numpy as np
import pytest
import yaml
from datasets import Dataset, DatasetDict
from datasets.table import embed_table_storage
from layouts import LAYOUTS, write_folder, write_image, write_labels
from PIL import Image
from small_run import flags

from msctr_hf import load_segmentation_dataset
from msctr_hf.data import parquet_copy, preparation
from msctr_hf.data.loading import get_dataset_spec

LAYOUT = LAYOUTS["camvid"]


@pytest.fixture
def official(tmp_path):
    return LAYOUT.write(tmp_path / "official", count=5)


@pytest.fixture
def prepare(run_script, official):
    def run(*options, dataset="camvid"):
        common = ["--dataset", dataset, "--data_dir", official, "--splits", "train", "--num_workers", "0"]
        return run_script("prepare_dataset.py", *common, *options)

    return run


def assert_same_samples(folder, official, numbers=range(5), dataset="camvid"):
    copy = load_segmentation_dataset(dataset, "train", folder)
    expected = load_segmentation_dataset(dataset, "train", official)
    assert len(copy) == len(numbers)
    for position, number in enumerate(numbers):
        for column in ("image", "label"):
            assert np.array_equal(np.asarray(copy[position][column]), np.asarray(expected[number][column]))


def test_checking_a_data_set_writes_nothing(prepare, official):
    before = sorted(official.rglob("*"))
    code, out, _ = prepare()
    assert (code, "train: 5 images, 16x12 (5)" in out) == (0, True)
    assert sorted(official.rglob("*")) == before


@pytest.mark.parametrize("options", [[], ["--predecode"]])
def test_a_copy_holds_the_same_samples(prepare, official, tmp_path, options):
    code, out, error = prepare("--output_dir", tmp_path / "copy", *options)
    assert (code, "5 images" in out) == (0, True), error
    assert_same_samples(tmp_path / "copy", official)


def test_the_data_card_lists_the_files_the_classes_and_the_terms_of_use(prepare, tmp_path):
    prepare("--output_dir", tmp_path / "copy")
    _, head, text = (tmp_path / "copy/README.md").read_text().split("---\n", 2)
    files = yaml.safe_load(head)["configs"][0]["data_files"]
    assert files == [{"split": "train", "path": "data/train-*.parquet"}]
    assert list((tmp_path / "copy").glob(files[0]["path"]))
    assert "research only" in text
    assert "| 10 | bicyclist |" in text


def test_the_data_card_also_lists_splits_that_were_converted_before(run_script, tmp_path):
    root = write_folder(tmp_path / "data", num_train=3, num_validation=2)
    options = ["--dataset", "folder", "--data_dir", root, "--num_workers", "0", "--output_dir", tmp_path / "copy"]
    for split in ("validation", "train"):
        assert run_script("prepare_dataset.py", *options, "--splits", split)[0] == 0
    card = (tmp_path / "copy/README.md").read_text()
    assert "- train: 3 images" in card
    assert "- validation: 2 images" in card


@pytest.mark.parametrize("options", [[], ["--predecode"], ["--skip_broken"]])
def test_all_broken_files_are_listed_and_nothing_is_written(prepare, official, tmp_path, options):
    LAYOUT.pair(official, 0)[1].unlink()
    write_labels(LAYOUT.pair(official, 2)[1], np.full((12, 16), 99, dtype=np.uint8))
    write_image(LAYOUT.pair(official, 3)[0], (2, 2))
    code, out, error = prepare("--output_dir", tmp_path / "copy", *options)
    assert out.count("broken: ") == 3
    for number in (0, 2, 3):
        assert f"669{number}" in out
    if options == ["--skip_broken"]:
        assert code == 0
        LAYOUT.pair(official, 0)[0].unlink()  # the image whose label is missing
        copy = load_segmentation_dataset("camvid", "train", tmp_path / "copy")
        assert copy.with_format(None)["image_id"][:] == ["0001TP_006691", "0001TP_006694"]
    else:
        assert code == 2
        assert "3 images of camvid cannot be used" in error
        assert not (tmp_path / "copy").exists()


def test_an_interrupted_conversion_resumes_where_it_stopped(prepare, official, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_copy, "SHARD_BYTES", 1500)
    whole = parquet_copy._write_shard
    written = []

    def stop_at_the_third(rows, path):
        if len(written) == 2:
            path.with_suffix(".partial").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(path.name)
        whole(rows, path)

    monkeypatch.setattr(parquet_copy, "_write_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare("--output_dir", tmp_path / "copy")
    assert not (tmp_path / "copy/README.md").exists()
    again = []
    monkeypatch.setattr(parquet_copy, "_write_shard", lambda rows, path: (again.append(path.name), whole(rows, path)))
    monkeypatch.setattr(
        preparation, "check_rows", lambda *args, **kwargs: pytest.fail("the files were checked before")
    )
    assert prepare("--output_dir", tmp_path / "copy")[0] == 0
    assert len(written) == 2
    assert not set(written) & set(again)
    assert_same_samples(tmp_path / "copy", official)


def test_a_report_of_an_older_version_is_read(prepare, official, tmp_path, monkeypatch):
    prepare("--output_dir", tmp_path / "copy")
    path = tmp_path / "copy/report_train.json"
    report = json.loads(path.read_text())
    card = (tmp_path / "copy/README.md").read_text()
    former = {"images": "pictures", "in_images": "in_pictures"}
    path.write_text(json.dumps({former.get(key, key): value for key, value in report.items()}))
    monkeypatch.setattr(
        preparation, "check_rows", lambda *args, **kwargs: pytest.fail("the files were checked before")
    )
    code, out, error = prepare("--output_dir", tmp_path / "copy")
    assert (code, "train: 5 images, 16x12 (5)" in out) == (0, True), error
    assert json.loads(path.read_text()) == report
    assert (tmp_path / "copy/README.md").read_text() == card


def test_folders_with_other_content_are_refused(prepare, official, tmp_path):
    prepare("--output_dir", tmp_path / "copy")
    write_image(LAYOUT.pair(official, 3)[0], (12, 16), seed=77)
    code, _, error = prepare("--output_dir", tmp_path / "copy")
    assert (code, "made from other files" in error) == (2, True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("")
    code, _, error = prepare("--output_dir", tmp_path / "full")
    assert (code, "not empty" in error) == (2, True)


def test_the_dataset_yaml_of_a_folder_is_copied(run_script, tmp_path):
    root = LAYOUTS["folder"].write(tmp_path / "mine")
    options = ["--dataset", "folder", "--data_dir", root, "--splits", "train", "--num_workers", "0"]
    assert run_script("prepare_dataset.py", *options, "--output_dir", tmp_path / "copy")[0] == 0
    assert_same_samples(tmp_path / "copy", root, range(3), dataset="folder")


def test_a_data_set_that_is_drawn_on_demand_has_nothing_to_prepare(run_script):
    code, _, error = run_script("prepare_dataset.py", "--dataset", "synthetic_scenes")
    assert (code, "nothing to prepare" in error) == (2, True)


def predecoded(run_script, folder, copy):
    options = ["--dataset", "folder", "--data_dir", folder, "--num_workers", "0", "--predecode", "--output_dir", copy]
    assert run_script("prepare_dataset.py", *options)[0] == 0
    return copy


UNREADABLE = {
    "description in another encoding": ("dataset.yaml", "classes: [stra\u00dfe, weg]".encode("latin-1")),
    "damaged description of a copy": ("predecoded.json", b"{"),
    "damaged index of a copy": ("validation.index.jsonl", b"none\n"),
    "damaged report of a copy": ("report_train.json", b"{"),
    "missing pixels of a copy": ("validation.images", None),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_copy_that_cannot_be_read_is_reported_in_one_sentence_that_names_the_file(run_script, tmp_path, case):
    name, data = UNREADABLE[case]
    source = write_folder(tmp_path / "folder", num_train=2, num_validation=2)
    copy = predecoded(run_script, source, tmp_path / "copy")
    (copy / name).unlink()
    if data is not None:
        (copy / name).write_bytes(data)
    if name.startswith("report"):
        options = ["--output_dir", copy, "--predecode", "--dataset", "folder", "--data_dir", source]
        code, _, error = run_script("prepare_dataset.py", *options, "--num_workers", "0")
    else:
        code, _, error = run_script("train.py", *flags(copy, tmp_path / "run"))
    assert code == 2, error
    assert name.split(".index")[0] in error.strip().splitlines()[-1]
    assert "Traceback" not in error


def test_a_saved_data_set_that_cannot_be_read_is_reported_in_one_sentence(run_script, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train"]}')
    options = ["--dataset", "camvid", "--data_dir", tmp_path / "saved", "--splits", "train"]
    code, _, error = run_script("prepare_dataset.py", *options)
    assert code == 2, error
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in error


def write_description(root, **changes):
    """Write a `dataset.yaml` of three classes, with keys replaced or added; `None` removes one."""
    description = {
        "classes": ["sky", "road", "car"],
        "label_values": {0: "sky", 1: "road", 2: "car"},
        "splits": {
            "train": {"images": "train/images", "labels": "train/labels"},
            "validation": {"images": "val/images", "labels": "val/labels"},
        },
        **changes,
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump({k: v for k, v in description.items() if v is not None}))


@pytest.fixture
def prepare_folder(run_script, tmp_path):
    """Run the script on a folder of four training and two validation images with the values 0, 1 and 2."""
    root = write_folder(tmp_path / "mine")
    write_description(root)

    def run(*options):
        common = ["--dataset", "folder", "--data_dir", root, "--num_workers", "0"]
        return run_script("prepare_dataset.py", *common, *options)

    return root, run


SWAPPED = {0: "sky", 2: "road", 1: "car"}
OTHER_LABELS = {
    "swapped label values": ({"label_values": SWAPPED}, [], "label_values"),
    "swapped classes": ({"classes": ["sky", "car", "road"]}, [], "classes"),
    "renamed class": (
        {"classes": ["sky", "street", "car"], "label_values": {0: "sky", 1: "street", 2: "car"}}, [], "classes",
    ),
    "another ignored value": ({"label_values": {0: "sky", 1: "road"}, "ignored": [2]}, [], "label_values"),
    "other ignored values only": (
        {"ignored": [7]}, [], r"`ignored` changed: no values were ignored, and now the values \[7\] are",
    ),
    "an id map": ({}, ["--id_map", "{0: 0, 1: 2, 2: 1}"], "--id_map"),
    "values from 1": ({"label_values": None, "ignored": [0]}, ["--reduce_zero_label", "true"], "--reduce_zero_label"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_LABELS)
@pytest.mark.parametrize("form", [[], ["--predecode"]])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_copy_that_was_made_with_other_labels_is_refused_with_the_setting_and_stays_as_it_is(
    prepare_folder, tmp_path, case, form, split
):
    root, run = prepare_folder
    changes, options, setting = OTHER_LABELS[case]
    copy = tmp_path / "copy"
    assert run("--output_dir", copy, "--splits", "train", *form)[0] == 0
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    write_description(root, **changes)
    code, _, error = run("--output_dir", copy, "--splits", split, *form, *options)
    assert code == 2, error
    assert re.search(setting, error.splitlines()[-1])
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("form", [[], ["--predecode"]])
def test_a_copy_with_another_id_map_is_refused_and_the_same_resumes(prepare_folder, tmp_path, form):
    _, run = prepare_folder
    options = ["--output_dir", tmp_path / "copy", *form]
    assert run(*options, "--id_map", "{0: 0, 1: 2, 2: 1}")[0] == 0
    assert run(*options, "--id_map", "{0: 0, 1: 2, 2: 1}")[0] == 0
    code, _, error = run(*options, "--id_map", "{0: 0, 1: 1, 2: 2}")
    assert (code, "--id_map changed: 1 was 'car' and is now 'road'" in error) == (2, True), error


def test_a_pre_decoded_copy_is_read_only_with_the_labels_that_it_was_made_with(prepare_folder, tmp_path):
    root, run = prepare_folder
    copy = tmp_path / "copy"
    swap = {0: 0, 1: 2, 2: 1}
    assert run("--output_dir", copy, "--predecode", "--id_map", str(swap))[0] == 0
    raw = np.asarray(Image.open(root / "train/labels/0.png"))
    expected = np.choose(raw, [swap[value] for value in range(3)])
    for id_map in (None, swap):
        dataset = load_segmentation_dataset("folder", "train", copy, id_map=id_map)
        assert np.array_equal(np.asarray(dataset[0]["label"]), expected)
    with pytest.raises(ValueError, match="pre-decoded with other label values .*1 was 'car' and is now not listed"):
        load_segmentation_dataset("folder", "train", copy, id_map={0: 0, 2: 1})
    write_description(copy, label_values=SWAPPED)
    with pytest.raises(ValueError, match="pre-decoded with other label values"):
        load_segmentation_dataset("folder", "train", copy)


def test_the_data_card_of_a_parquet_copy_names_the_id_map_with_which_it_must_be_read(prepare_folder, tmp_path):
    _, run = prepare_folder
    code, out, _ = run("--output_dir", tmp_path / "copy", "--id_map", "{0: 0, 1: 2, 2: 1}")
    assert (code, "with the same `id_map`" in out or "with the same --id_map" in out) == (0, True)
    assert "--data_dir THIS_FOLDER --id_map '{0: 0, 1: 2, 2: 1}'" in (tmp_path / "copy/README.md").read_text()


@pytest.mark.parametrize("form", [[], ["--predecode"]])
def test_a_report_that_does_not_state_its_labels_is_compared_with_a_new_check(prepare_folder, tmp_path, form):
    root, run = prepare_folder
    options = ["--output_dir", tmp_path / "copy", *form]
    assert run(*options)[0] == 0
    for path in (tmp_path / "copy").glob("report_*.json"):
        report = json.loads(path.read_text())
        for key in ("labels", "unlabeled", "broken_rows", "raw_values", "digests"):
            report.pop(key, None)
        path.write_text(json.dumps(report))
    write_description(root, label_values=SWAPPED)
    code, _, error = run(*options)
    assert (code, "other label values" in error) == (2, True), error
    write_description(root)
    assert run(*options)[0] == 0


def test_a_copy_of_embedded_files_with_other_contents_of_the_same_size_is_refused(run_script, tmp_path):
    root, size = tmp_path / "saved", (12, 16)
    for value in (0, 1):
        shutil.rmtree(root, ignore_errors=True)
        files = [io.BytesIO(), io.BytesIO()]
        Image.fromarray(np.full((*size, 3), value, np.uint8)).save(files[0], "BMP")
        Image.fromarray(np.full(size, value, np.uint8)).save(files[1], "BMP")
        cells = [[{"bytes": file.getvalue(), "path": None}] for file in files]
        Dataset.from_dict({"image": cells[0], "label": cells[1], "image_id": ["a"]}).save_to_disk(str(root))
        options = ["--dataset", "camvid", "--data_dir", root, "--splits", "train", "--num_workers", "0"]
        code, _, error = run_script("prepare_dataset.py", *options, "--output_dir", tmp_path / "copy")
        assert code == (2 if value else 0), error
    assert "made from other files" in error


def test_the_files_of_a_copy_without_a_report_are_written_again(prepare_folder, tmp_path):
    root, run = prepare_folder
    for form in (["--predecode"], []):
        copy = tmp_path / f"copy{len(form)}"
        assert run("--output_dir", copy, *form)[0] == 0
        (copy / "report_train.json").unlink()
        write_labels(root / "train/labels/0.png", np.full((40, 56), 2, np.uint8))
        assert run("--output_dir", copy, *form)[0] == 0
        dataset = load_segmentation_dataset("folder", "train", copy)
        assert np.unique(np.asarray(dataset[0]["label"])).tolist() == [2]
        write_labels(root / "train/labels/0.png", np.zeros((40, 56), np.uint8))


# --- splits


def test_the_test_split_is_checked_and_copied_too_and_its_images_may_lack_labels(prepare_folder, tmp_path):
    root, run = prepare_folder
    splits = {
        split: {"images": f"{folder}/images", "labels": f"{folder}/labels"}
        for split, folder in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    write_description(root, splits=splits)
    for number in range(3):
        write_image(root / f"test/images/{number}.png", (8, 9), seed=50 + number)
    for number in range(2):
        write_labels(root / f"test/labels/{number}.png", np.full((8, 9), number, np.uint8))
    code, out, error = run("--output_dir", tmp_path / "copy")
    assert code == 0, error
    assert "test: 2 images, 9x8 (3)" in out
    assert "1 more have no labels" in out
    assert "not copied: 1 images of test" in out
    assert len(load_segmentation_dataset("folder", "test", tmp_path / "copy")) == 2
    (root / "test/images/2.png").write_bytes(b"no image")
    code, out, _ = run()
    assert (code, "test/images/2.png cannot be read" in out) == (2, True)
    write_image(root / "test/images/2.png", (8, 9), seed=9)
    shutil.rmtree(root / "test/labels")
    code, out, error = run()
    assert (code, "test: 0 images" in out, "3 more have no labels" in out) == (0, True, True), error
    write_description(root, splits={**splits, "test": {"images": "test/images"}})
    code, out, error = run()
    assert (code, "3 more have no labels" in out) == (0, True), error
    with pytest.raises(ValueError, match="3 of 3 images of test have no label"):
        load_segmentation_dataset("folder", "test", root)
    (root / "train/labels/0.png").unlink()  # labels of other splits are not optional
    assert run()[0] == 2


def test_a_test_split_of_a_copy_is_checked_too(run_script, tmp_path):
    root = LAYOUTS["folder"].write(tmp_path / "mine")
    rows = get_dataset_spec("folder", root).index("train", root)
    embedded = rows.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
    saved = {"train": embedded, "validation": embedded.select([1]), "test": embedded.select([0])}
    DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
    shutil.copy(root / "dataset.yaml", tmp_path / "saved")
    options = ["--dataset", "folder", "--data_dir", tmp_path / "saved", "--num_workers", "0"]
    code, out, error = run_script("prepare_dataset.py", *options)
    assert (code, "\ntest: 1 images" in out) == (0, True), error
    assert "1 of 1 images of validation are in train too" in out
    assert "1 of 1 images of test are in train too" in out


@pytest.mark.parametrize("same", ["folder", "content under another name", "pixels in another format"])
def test_images_of_two_splits_are_reported(prepare_folder, same):
    root, run = prepare_folder
    for number in range(2):
        write_image(root / f"val/images/{number}.jpg", (40, 56), seed=10 + number)
    assert "are in train too" not in run()[1]
    if same == "folder":
        folders = {"images": "train/images", "labels": "train/labels"}
        write_description(root, splits={"train": folders, "validation": folders})
    elif same == "content under another name":
        shutil.copy(root / "train/images/3.jpg", root / "val/images/1.jpg")
    else:
        (root / "val/images/1.jpg").unlink()
        Image.open(root / "train/images/3.jpg").convert("RGB").save(root / "val/images/1.png")
    code, out, error = run()
    shared = "4 of 4" if same == "folder" else "1 of 2"
    assert (code, f"warning: {shared} images of validation are in train too" in out) == (0, True), out + error


@pytest.mark.parametrize("form", [[], ["--predecode"]])
def test_a_split_without_a_usable_image_is_refused(prepare_folder, tmp_path, form):
    root, run = prepare_folder
    for number in range(2):
        (root / f"val/images/{number}.jpg").write_bytes(b"no image")
    code, _, error = run("--output_dir", tmp_path / "copy", "--skip_broken", *form)
    assert (code, "No image of validation can be used: 2 are broken" in error) == (2, True), error
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("flag", ["--skip_broken", "--predecode"])
def test_flags_of_a_copy_are_refused_without_a_folder_for_it(prepare_folder, flag):
    code, _, error = prepare_folder[1](flag)
    assert (code, flag in error, "--output_dir" in error) == (2, True, True)


# --- labels


def test_a_value_that_is_ignored_is_no_class_although_its_position_names_one(prepare_folder):
    root, run = prepare_folder
    write_description(root, label_values=None, ignored=[0])
    raw = np.asarray(Image.open(root / "train/labels/0.png"))
    dataset = load_segmentation_dataset("folder", "train", root)
    assert np.array_equal(np.asarray(dataset[0]["label"]), np.where(raw == 0, 255, raw))
    code, out, _ = run()
    assert (code, "warning: no image of train and validation has a pixel of sky" in out) == (0, True)
    write_description(root, ignored=[0])
    code, _, error = run()
    assert (code, "`ignored:` lists 0" in error) == (2, True), error


def test_classes_without_pixels_and_ignored_pixels_are_reported(prepare_folder):
    root, run = prepare_folder
    write_description(root, classes=["background", "object"], label_values=None, ignored=[255])
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            labels = np.zeros((40, 56), np.uint8)
            labels[:, 42:] = 255
            write_labels(root / split / f"labels/{number}.png", labels)
    code, out, error = run()
    assert code == 0, error
    ignored = 4 * 40 * 14
    assert f"25.0 % of pixels ignored ({ignored:,} of {4 * ignored:,}, value 255)" in out
    assert "warning: no image of train and validation has a pixel of object." in out
    assert "255" in out.split("pixel of object.")[1].splitlines()[0]


def test_a_class_that_only_the_validation_split_holds_is_reported(prepare_folder):
    root, run = prepare_folder
    for number in range(4):
        write_labels(root / f"train/labels/{number}.png", np.zeros((40, 56), np.uint8) + number % 2)
    code, out, _ = run()
    assert (code, "warning: no image of train has a pixel of car, but validation has." in out) == (0, True)


def test_a_split_that_is_named_twice_is_checked_and_copied_once(prepare_folder, tmp_path):
    _, run = prepare_folder
    code, out, _ = run("--splits", "train", "train", "--output_dir", tmp_path / "copy")
    assert (code, out.count("train: 4 images"), out.count("4 images are in")) == (0, 1, 1), out


def test_a_split_of_ignored_pixels_only_is_refused(prepare_folder, tmp_path):
    root, run = prepare_folder
    write_description(root, ignored=[255])
    for number in range(4):
        write_labels(root / f"train/labels/{number}.png", np.full((40, 56), 255, np.uint8))
    code, _, error = run("--output_dir", tmp_path / "copy")
    assert (code, "no pixel of 4 images has a class" in error) == (2, True), error
    assert "train ids" not in error  # which 255 alone would not be
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("case", ["cityscapes", "ade20k", "pascal_context", "cadis_task2"])
def test_the_check_refuses_files_that_already_hold_train_ids(run_script, tmp_path, case):
    layout = LAYOUTS[case]
    root, classes = layout.write(tmp_path), len(get_dataset_spec(case).classes)
    for number in range(3):
        write_labels(layout.pair(root, number)[1], np.resize(np.array([*range(classes), 255], np.uint8), (12, 16)))
    options = ["--dataset", case, "--data_dir", root, "--splits", "train", "--num_workers", "0"]
    code, _, error = run_script("prepare_dataset.py", *options)
    assert (code, "hold train ids already" in error, "--id_map" in error) == (2, True, True), error
    code, _, error = run_script(
        "prepare_dataset.py", *options, "--id_map", str({label: label for label in range(classes)})
    )
    assert code == 0, error


# --- messages


def test_one_systematic_mistake_is_one_line_with_its_count_and_the_first_files(run_script, tmp_path):
    root = write_folder(tmp_path / "mine", num_train=14, num_validation=2)
    for number in range(14):
        labels = np.zeros((40, 56), np.uint8)
        labels[0, :2] = 254 + number % 2, 9
        write_labels(root / f"train/labels/{number}.png", labels)
    (root / "val/labels/0.png").unlink()
    (root / "val/labels/1.png").unlink()
    code, out, error = run_script(
        "prepare_dataset.py", "--dataset", "folder", "--data_dir", root, "--num_workers", "0"
    )
    lines = [line for line in out.splitlines() if line.startswith("broken: ")]
    assert (code, len(lines)) == (2, 2), out
    assert lines[0].startswith("broken: 2 images: ") or lines[1].startswith("broken: 2 images: ")
    unlisted = next(line for line in lines if "not listed" in line)
    assert unlisted.startswith("broken: 14 images: ")
    assert "and 9 more" in unlisted
    assert "[9, 254, 255]" in unlisted
    assert f"16 images of the folder {root} cannot be used" in error


def test_a_mask_saved_as_rgb_names_label_colors_as_the_way_out(prepare_folder):
    root, run = prepare_folder
    write_image(root / "train/labels/0.png", (40, 56))
    code, out, _ = run()
    line = next(line for line in out.splitlines() if line.startswith("broken: "))
    assert (code, "label_colors" in line, "train/labels/0.png" in line) == (2, True, True)
