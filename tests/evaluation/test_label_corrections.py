"""Corrected label files: exactly the accepted pixels change, and lists that do not fit are refused."""

import csv
import shutil

import numpy as np
import pytest
import yaml
from color_network import BOX, CLASSES, COLORS, color_embedder, write_boxes
from PIL import Image

from msctr_hf.commands import check_labels as command
from msctr_hf.data.loading import get_dataset_spec, load_segmentation_dataset
from msctr_hf.data.predecoded import write_predecoded
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.label_checking import check_labels, save_suspects
from msctr_hf.evaluation.label_corrections import write_corrected_labels

TREE, CAR = (COLORS[1], 1), (COLORS[2], 2)
OBJECTS = {f"{video}_{number}": TREE if number % 2 else CAR for video in "abcd" for number in range(2)}
WRONG = {**OBJECTS, "c_0": (COLORS[2], 1), "b_1": (COLORS[1], 2)}


class Checked:
    """A data set with two planted errors and its check."""

    def __init__(self, data, out, split="train"):
        self.data, self.out = data, out
        self.dataset = load_segmentation_dataset("folder", split, data)
        self.suspects = check_labels(color_embedder(), self.dataset, CLASSES, out, neighbors=5, pixels_per_class=100)
        save_suspects(self.suspects, CLASSES, out)

    def accept(self, path, *image_ids, **changes):
        rows = [["report", "rank", "image", "label", "suggestion"]]
        for rank, each in enumerate(self.suspects.regions, start=1):
            if each.image_id in image_ids:
                row = {"report": self.suspects.key, "rank": rank, "image": each.image_id}
                row |= {"label": CLASSES[each.label], "suggestion": CLASSES[each.suggestion], **changes}
                rows.append(list(row.values()))
        with path.open("w", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
        return path

    def write(self, accepted, folder, **options):
        spec = get_dataset_spec("folder", self.data)
        return write_corrected_labels(accepted, self.out, folder, self.dataset, spec, self.data, **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = tmp_path_factory.mktemp("corrections")
    write_boxes(root / "data", WRONG)
    path = root / "data/train/labels/c_0.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[16:20, 24:32] = 255  # a corner of the wrong box is ignored
    Image.fromarray(labels).save(path)
    return Checked(root / "data", root / "out")


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_exactly_the_accepted_pixels_change_and_corrections_read_the_files(shared, tmp_path):
    before = {path: path.read_bytes() for path in shared.data.rglob("*") if path.is_file()}
    written = shared.write(shared.accept(tmp_path / "accepted.csv", "c_0"), tmp_path / "new/corrected")
    assert written == (1, 1, "")
    folder = tmp_path / "new/corrected"
    assert files_below(folder) == ["corrections.csv", "train/labels/c_0.png"]
    raw, expected = (np.asarray(Image.open(root / "train/labels/c_0.png")) for root in (folder, shared.data))
    assert np.array_equal(raw, np.where(expected == 10, 20, expected))
    again = load_segmentation_dataset("folder", "train", shared.data, corrections=folder / "corrections.csv")
    assert len(again) == len(shared.dataset)
    for one, other in zip(again, shared.dataset, strict=True):
        changed = np.asarray(one["label"]) != np.asarray(other["label"])
        assert changed.any() == (one["image_id"] == "c_0")
        assert changed.sum() in (0, 24 * 32 - 4 * 8)
    assert {path: path.read_bytes() for path in shared.data.rglob("*") if path.is_file()} == before


def test_earlier_corrections_are_taken_over(shared, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    shared.write(shared.accept(tmp_path / "accepted.csv", "c_0"), first)
    with (first / "corrections.csv").open("a") as file:
        file.write("a_0,\n")
    spec, corrections = get_dataset_spec("folder", shared.data), first / "corrections.csv"
    dataset = load_segmentation_dataset("folder", "train", shared.data, corrections=corrections)
    found = check_labels(color_embedder(), dataset, CLASSES, tmp_path / "out", neighbors=5, pixels_per_class=100)
    assert [region.image_id for region in found.regions] == ["b_1"]
    save_suspects(found, CLASSES, tmp_path / "out")
    lines = [["report", "rank", "image", "label", "suggestion"], [found.key, 1, "b_1", "car", "tree"]]
    with (tmp_path / "accepted.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    where = (tmp_path / "accepted.csv", tmp_path / "out", second)
    write_corrected_labels(*where, dataset, spec, shared.data, corrections)
    again = load_segmentation_dataset("folder", "train", shared.data, corrections=second / "corrections.csv")
    expected = {name: color for name, (color, _) in WRONG.items() if name != "a_0"}
    assert {sample["image_id"]: COLORS[np.asarray(sample["label"])[20, 30]] for sample in again} == expected


def test_colors_stay_colors(tmp_path):
    data = tmp_path / "data"
    write_boxes(data, WRONG)
    for path in (data / "train/labels").iterdir():
        values = np.asarray(Image.open(path))
        pixels = np.zeros((*values.shape, 3), dtype=np.uint8)
        pixels[values == 10], pixels[values == 20], pixels[values == 255] = (0, 10, 0), (0, 0, 20), (9, 9, 9)
        Image.fromarray(pixels).save(path)
    description = yaml.safe_load((data / "dataset.yaml").read_text())
    del description["label_values"]
    description["label_colors"] = {"0,0,0": "ground", "0,10,0": "tree", "0,0,20": "car"}
    (data / "dataset.yaml").write_text(yaml.safe_dump({**description, "ignored": ["9,9,9"]}))
    checked = Checked(data, tmp_path / "out")
    checked.write(checked.accept(tmp_path / "accepted.csv", "b_1"), tmp_path / "corrected")
    found, expected = (
        np.asarray(Image.open(root / "train/labels/b_1.png")).copy() for root in (tmp_path / "corrected", data)
    )
    expected[BOX] = (0, 10, 0)
    assert np.array_equal(found, expected)


def test_values_of_16_bits_are_written_with_16_bits(tmp_path):
    data = tmp_path / "data"
    write_boxes(data, WRONG, label_values={0: "ground", 10: "tree", 300: "car"})
    for path in (data / "train/labels").iterdir():
        values = np.asarray(Image.open(path)).astype(np.uint16)
        Image.fromarray(np.where(values == 20, 300, values).astype(np.uint16)).save(path)
    checked = Checked(data, tmp_path / "out")
    checked.write(checked.accept(tmp_path / "accepted.csv", "c_0"), tmp_path / "corrected")
    expected = np.asarray(Image.open(data / "train/labels/c_0.png")).copy()
    expected[BOX] = 300
    assert np.array_equal(np.asarray(Image.open(tmp_path / "corrected/train/labels/c_0.png")), expected)


def test_labels_that_are_not_files_become_train_ids(shared, tmp_path):
    list(write_predecoded(shared.dataset, "train", tmp_path / "copy", name="folder", classes=CLASSES))
    shutil.copy(shared.data / "dataset.yaml", tmp_path / "copy")
    checked = Checked(tmp_path / "copy", tmp_path / "out")
    written = checked.write(checked.accept(tmp_path / "accepted.csv", "c_0"), tmp_path / "corrected")
    assert "corrections.csv was not written, since the labels of this data set are not files" in written.note
    expected = np.zeros((64, 96), dtype=np.uint8)
    expected[BOX], expected[:4], expected[16:20, 24:32] = 2, 255, 255
    assert np.array_equal(np.asarray(Image.open(tmp_path / "corrected/c_0.png")), expected)
    # a folder whose images have these ids would read the train ids as values of its own
    assert files_below(tmp_path / "corrected") == ["c_0.png"]


def test_nothing_is_written_if_one_file_cannot_be_corrected(tmp_path):
    write_boxes(tmp_path / "data", WRONG)
    for kind in ("images", "labels"):  # c_0 is turned by both of its files
        path = tmp_path / f"data/train/{kind}/c_0.png"
        image = Image.open(path)
        orientation = image.getexif()
        orientation[274] = 3
        image.save(path, exif=orientation)
    checked = Checked(tmp_path / "data", tmp_path / "out")
    accepted = checked.accept(tmp_path / "accepted.csv", "c_0", "b_1")
    with pytest.raises(UsageError, match="c_0.png is turned by an EXIF orientation"):
        checked.write(accepted, tmp_path / "corrected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accepted.csv", "data", "out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"report": "0" * 16}, "line 2 of .*, is not of the report"),
        ({"rank": 9}, "region 9 of c_0, is not of the report"),
        ({"rank": "one"}, "region one of c_0, is not of the report"),
        ({"image": "a_0"}, "of a_0, is not of the report"),
        ({"suggestion": "ground"}, "is not of the report"),
    ],
)
def test_lists_of_another_report_are_refused(shared, tmp_path, changes, message):
    accepted = shared.accept(tmp_path / "accepted.csv", "c_0", **changes)
    with pytest.raises(UsageError, match=message):
        shared.write(accepted, tmp_path / "corrected")
    assert not (tmp_path / "corrected").exists()


def test_faulty_lists_and_folders_are_refused(shared, tmp_path):
    accepted = shared.accept(tmp_path / "accepted.csv")
    with pytest.raises(UsageError, match="lists no region; accept some in the report"):
        shared.write(accepted, tmp_path / "corrected")
    (tmp_path / "text").write_text("rank,image\n1,c_0\n")
    with pytest.raises(UsageError, match="must have the columns report, rank, image, label, suggestion"):
        shared.write(tmp_path / "text", tmp_path / "corrected")
    with pytest.raises(UsageError, match="`accepted`: .*none cannot be read"):
        shared.write(tmp_path / "none", tmp_path / "corrected")
    accepted = shared.accept(accepted, "c_0")
    for folder in (tmp_path, tmp_path / "text"):
        with pytest.raises(UsageError, match="is a file or is not empty, and nothing is replaced"):
            shared.write(accepted, folder)
    assert files_below(tmp_path) == ["accepted.csv", "text"]


def test_the_folder_for_corrected_labels_may_be_the_working_directory(shared, tmp_path, monkeypatch):
    accepted = shared.accept(tmp_path / "accepted.csv", "c_0")
    (tmp_path / "corrected").mkdir()
    monkeypatch.chdir(tmp_path / "corrected")
    shared.write(accepted, ".")
    assert files_below(tmp_path / "corrected") == ["corrections.csv", "train/labels/c_0.png"]


def test_labels_that_changed_since_the_check_are_refused(tmp_path):
    write_boxes(tmp_path / "data", WRONG)
    checked = Checked(tmp_path / "data", tmp_path / "out")
    accepted = checked.accept(tmp_path / "accepted.csv", "c_0")
    Image.new("L", (96, 64)).save(checked.data / "train/labels/a_0.png")
    with pytest.raises(UsageError, match="the images or labels are not those that .*out is about"):
        checked.write(accepted, tmp_path / "corrected")


def test_ids_that_several_images_have_are_not_corrected_by_id(tmp_path):
    folders = {"images": "train/images", "labels": "train/labels"}
    write_boxes(tmp_path / "data", WRONG, splits={"train": folders, "validation": folders})
    checked = Checked(tmp_path / "data", tmp_path / "out")
    written = checked.write(checked.accept(tmp_path / "accepted.csv", "c_0"), tmp_path / "corrected")
    assert "corrections.csv was not written, since several images have the id 'c_0'" in written.note
    assert files_below(tmp_path / "corrected") == ["train/labels/c_0.png"]


def test_images_of_one_id_do_not_replace_each_others_labels_in_a_copy(tmp_path):
    dataset = write_boxes(tmp_path / "data", WRONG)
    for split in ("train", "validation"):
        list(write_predecoded(dataset, split, tmp_path / "copy", name="folder", classes=CLASSES))
    shutil.copy(tmp_path / "data/dataset.yaml", tmp_path / "copy")
    checked = Checked(tmp_path / "copy", tmp_path / "out", "train+validation")
    accepted = checked.accept(tmp_path / "accepted.csv", "c_0")
    assert len(accepted.read_text().splitlines()) == 3
    with pytest.raises(UsageError, match="several images with accepted regions have the id 'c_0'"):
        checked.write(accepted, tmp_path / "corrected")
    assert not (tmp_path / "corrected").exists()


def test_the_command_needs_both_flags_and_reports_what_it_wrote(shared, tmp_path, capsys):
    accepted = shared.accept(tmp_path / "accepted.csv", "b_1", "c_0")
    flags = ["--model", "none", "--dataset", "folder", "--data_dir", shared.data, "--output_dir", shared.out]
    flags += ["--write_labels", tmp_path / "corrected"]
    command.main(list(map(str, [*flags, "--accepted", accepted])))
    assert f"2 regions are corrected in 2 label files in {tmp_path / 'corrected'}" in capsys.readouterr().out
    assert files_below(tmp_path / "corrected") == ["corrections.csv", "train/labels/b_1.png", "train/labels/c_0.png"]
    with pytest.raises(SystemExit):
        command.main(list(map(str, flags)))
    assert "--write_labels, a new folder, and --accepted, the list" in capsys.readouterr().err
