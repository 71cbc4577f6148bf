import json

import numpy as np
import pytest
import yaml
from layouts import LAYOUTS, write_folder, write_image, write_labels

from msctr_hf import load_segmentation_dataset
from msctr_hf.data import parquet_copy, preparation

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
        options = ["prepare_dataset.py", "--output_dir", copy, "--predecode", "--data_dir", source]
    else:
        options = ["evaluate.py", "--model", tmp_path, "--data_dir", copy]
    code, _, error = run_script(*options, "--dataset", "folder", "--num_workers", "0")
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
