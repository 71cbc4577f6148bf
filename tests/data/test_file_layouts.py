"""Files of a user's folder are found, paired and divided as its `dataset.yaml` says, in every command alike."""

import io
import json
import os
import re

import numpy as np
import pytest
import yaml
from datasets import Dataset, DatasetDict, Features, load_dataset
from datasets import Image as ImageFeature
from layouts import write_image, write_labels
from PIL import Image

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.preparation import prepare
from msctr_hf.data.saved_source import SavedDataset
from msctr_hf.errors import UsageError
from msctr_hf.training.data_record import describe_data

SIZE = (4, 6)


def write(root, files, **description):
    """Write files, of which those with mask, label or gt in their path are labels, and their description."""
    for number, file in enumerate(files):
        if re.search("mask|label|gt", file):
            write_labels(root / file, np.full(SIZE, number % 2, np.uint8))
        else:
            write_image(root / file, SIZE, seed=number)
    root.mkdir(exist_ok=True)
    (root / "dataset.yaml").write_text(yaml.safe_dump({"classes": ["sky", "road"], **description}))
    return root


def load(root, split="train"):
    return load_segmentation_dataset("folder", split, root)


def ids(root, split="train"):
    return load(root, split).with_format(None)["image_id"][:]


def check(root, capsys, **settings):
    """Check a folder, and return what was printed and the error."""
    try:
        prepare(get_dataset_spec("folder", root), None, root, SavedDataset(), **settings)
    except UsageError as error:
        return capsys.readouterr().out, str(error)
    return capsys.readouterr().out, ""


LAYOUTS = {
    "templates": (
        ["photos/a.jpg", "photos/b.jpg", "photos/b_depth.png", "masks/a_mask.png", "masks/b_mask.png"],
        {"images": "photos/*.jpg", "labels": "masks/*_mask.png"},
        ["a", "b"],
    ),
    "templates of folders, as CaDIS has them": (
        ["Video1/Images/f1.png", "Video2/Images/f1.png", "Video1/Labels/f1_gt.png", "Video2/Labels/f1_gt.png"],
        {"images": "Video*/Images/*.png", "labels": "Video*/Labels/*_gt.png"},
        ["1/f1", "2/f1"],
    ),
    "a folder for every sample": (
        ["scenes/x/image.png", "scenes/x/mask.png", "scenes/y/image.png", "scenes/y/mask.png", "scenes/y/d.png"],
        {"images": "scenes/*/image.png", "labels": "scenes/*/mask.png"},
        ["x", "y"],
    ),
    "endings of names, as Cityscapes has them": (
        ["left/ulm/1_leftImg8bit.png", "gt/ulm/1_labelIds.png", "gt/ulm/1_instanceIds.png"],
        {"images": "left/*/*_leftImg8bit.png", "labels": "gt/*/*_labelIds.png"},
        ["ulm/1"],
    ),
    "a suffix": (
        ["photos/a.jpg", "photos/s/b.png", "masks/a_mask.png", "masks/s/b_mask.tif"],
        {"images": "photos", "labels": "masks", "label_suffix": "_mask"},
        ["a", "s/b"],
    ),
    "a suffix with an ending": (
        ["photos/a.jpg", "masks/a_labelIds.png", "masks/a_mask_color.png"],
        {"images": "photos", "labels": "masks", "label_suffix": "_labelIds.png"},
        ["a"],
    ),
    "masks beside their images": (
        ["data/a.png", "data/a_mask.png", "data/b.jpg", "data/b_mask.png"],
        {"images": "data", "label_suffix": "_mask"},
        ["a", "b"],
    ),
    "masks beside their images, in a folder that is named twice": (
        ["data/a.png", "data/a_mask.png"],
        {"images": "data", "labels": "./data", "label_suffix": "_mask"},
        ["a"],
    ),
    "masks with another ending beside their images": (
        ["data/mask a.jpg", "data/mask b.jpg", "data/mask a.png", "data/mask b.png"],
        {"images": "data", "label_suffix": ".png"},
        ["mask a", "mask b"],
    ),
    "masks below their images": (
        ["data/a.png", "data/masks/a_mask.png"],
        {"images": "data", "labels": "data/masks", "label_suffix": "_mask"},
        ["a"],
    ),
    "images below their masks": (
        ["data/photos/a.jpg", "data/a_gt.png", "data/photos/b.png", "data/b_gt.png"],
        {"images": "data/photos/*", "labels": "data/*_gt.png"},
        ["a", "b"],
    ),
    "names that differ in case": (
        ["photos/IMG_1.JPG", "photos/img_2.png", "masks/img_1.png", "masks/img_2.PNG"],
        {"images": "photos", "labels": "masks"},
        ["IMG_1", "img_2"],
    ),
    "other formats of masks": (
        ["photos/a.jpg", "photos/b.jpg", "photos/c.jpg", "masks/a.bmp", "masks/b.tif", "masks/c.tiff"],
        {"images": "photos", "labels": "masks"},
        ["a", "b", "c"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("own", [True, False], ids=["of a split", "of all"])
def test_files_are_found_and_paired(tmp_path, layout, own):
    files, where, expected = LAYOUTS[layout]
    case = {"ignore_case": True} if "case" in layout else {}
    shared = {"splits": {"train": where}} if own else {"splits": {"train": expected}, **where}
    root = write(tmp_path, files, **shared, **case)
    assert ids(root) == expected
    for sample in load(root):
        assert sample["image"].size == sample["label"].size == SIZE[::-1]


def test_every_image_gets_the_labels_of_its_own_name(tmp_path):
    root = write(
        tmp_path, [f"data/{n}.png" for n in range(20)], splits={"train": {"images": "data", "label_suffix": "-mask"}}
    )
    for number in range(20):
        write_labels(root / f"data/{number}-mask.png", np.full(SIZE, number % 2, np.uint8))
    dataset = load(root)
    assert len(dataset) == 20
    for sample in dataset:
        assert np.unique(np.asarray(sample["label"])).tolist() == [int(sample["image_id"]) % 2]
        image = np.asarray(Image.open(root / f"data/{sample['image_id']}.png"))
        assert np.array_equal(np.asarray(sample["image"]), image)


def test_masks_under_gif_are_read_on_request_as_their_gray_values(tmp_path):
    """Pillow numbers the values of a GIF anew: 0, 7 and 30 are stored as 0, 1 and 2."""
    root = write(
        tmp_path,
        ["photos/a.jpg"],
        label_values={0: "sky", 7: "road", 30: "road"},
        splits={"train": {"images": "photos", "labels": "masks", "label_suffix": "_m.gif"}},
    )
    raw = np.resize(np.array([0, 7, 30, 30], np.uint8), SIZE)
    write_labels(root / "masks/a_m.gif", raw)
    assert np.array_equal(np.asarray(load(root)[0]["label"]), raw > 0)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)).save(root / "masks/a_m.gif")
    with pytest.raises(UsageError, match=r"a_m\.gif: the values of a GIF with colors .* `label_colors`"):
        load(root)[0]


NAMES = [f"{number:02d}" for number in range(20)]
POOL = [f"{folder}/{name}.{ending}" for folder, ending in (("photos", "jpg"), ("masks", "png")) for name in NAMES]


def test_a_share_is_the_same_in_check_copies_stream_record_and_training(tmp_path, capsys):
    root = write(tmp_path / "data", POOL, images="photos", labels="masks", splits={"validation": "20 %"}, seed=3)
    expected = {split: ids(root, split) for split in ("train", "validation")}
    assert len(expected["validation"]) == 4
    assert sorted(expected["train"] + expected["validation"]) == NAMES
    for copy, settings in (("parquet", {}), ("pixels", {"predecode": True})):
        check(root, capsys, output_dir=tmp_path / copy, **settings)
        for split, names in expected.items():
            report = json.loads((tmp_path / copy / f"report_{split}.json").read_text())
            assert sorted(report["digests"].values()) == names
            assert ids(tmp_path / copy, split) == names
    stream = load_segmentation_dataset("folder", "validation", tmp_path / "parquet", streaming=True)
    assert [sample["image_id"] for sample in stream] == expected["validation"]
    spec = get_dataset_spec("folder", root)
    assert describe_data(spec, load(root)) == describe_data(spec, load(tmp_path / "parquet"))
    write(root, [], images="photos", labels="masks", splits={"validation": "20 %"}, seed=4)
    assert describe_data(spec, load(root)) != describe_data(spec, load(tmp_path / "parquet"))


def test_a_share_does_not_depend_on_the_order_in_which_the_file_system_lists_files(tmp_path, monkeypatch):
    root = write(tmp_path, POOL, images="photos", labels="masks", splits={"validation": "20 %"})
    before = ids(root, "validation")
    scandir = os.scandir

    class Reversed:
        def __init__(self, place):
            self.entries = scandir(place)

        def __enter__(self):
            return reversed(list(self.entries))

        def __exit__(self, *error):
            self.entries.close()

    monkeypatch.setattr(os, "scandir", Reversed)
    assert ids(root, "validation") == before == ["02", "03", "05", "14"]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": "train.txt", "validation": "lists/val.txt"}, {"train": NAMES[:10], "validation": NAMES[10:12]}),
        ({"validation": "lists/val.txt"}, {"train": NAMES[:10] + NAMES[12:], "validation": NAMES[10:12]}),
        ({"validation": ["03", "photos/04.jpg"]}, {"train": NAMES[:3] + NAMES[5:], "validation": NAMES[3:5]}),
        ({"train": ["03.jpg"], "validation": ["./photos/04.jpg"]}, {"train": ["03"], "validation": ["04"]}),
        ({"validation": "25 %", "test": "train.txt"}, {"train": 7, "validation": 3, "test": NAMES[:10]}),
        ({"train": "80 %", "validation": "20%"}, {"train": 16, "validation": 4}),
        ({"train": "50 %", "validation": "10 %", "test": "10 %"}, {"train": 10, "validation": 2, "test": 2}),
        ({"train": {"images": "photos", "labels": "masks"}, "validation": "10 %"}, {"train": 18, "validation": 2}),
    ],
)
def test_lists_and_shares_divide_the_files(tmp_path, splits, expected):
    shared = {} if isinstance(splits.get("train"), dict) else {"images": "photos", "labels": "masks"}
    root = write(tmp_path, POOL, splits=splits, **shared)
    (root / "train.txt").write_text("".join(f"{name} 1\n" for name in NAMES[:10]))
    (root / "lists").mkdir()
    (root / "lists/val.txt").write_text("\ufeffphotos/10.jpg masks/10.png\n\n11\n", encoding="utf-8")
    found = {split: ids(root, split) for split in expected}
    for split, names in expected.items():
        assert (len(found[split]) if isinstance(names, int) else found[split]) == names
    together = [name for names in found.values() for name in names]
    assert len(set(together)) == len(together)
    if "train" not in splits:
        assert sorted(together) == NAMES


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"validation": "val.txt"}, r"The file .*val\.txt, which names the images of the split, is missing"),
        ({"validation": "photos"}, r"`splits:`: .*photos is a folder and not a text file .*images: FOLDER"),
        ({"validation": ["03", "4"]}, r"`splits:` names 4, which is not in .*photos"),
        ({"validation": ["03", "4_0"]}, r"`splits:` names 4_0, which is not in .*photos; the nearest is 4"),
        ({"validation": ["03 b"]}, r"`splits:` names 03 b, which is not in .*photos"),
        ({"validation": ["03 2.jpg"]}, r"`splits:` names 03 2.jpg, which is not in .*photos"),
        ({"validation": ["03.b c"]}, r"`splits:` names 03.b c, which is not in .*photos"),
    ],
)
def test_a_list_that_names_no_image_is_refused_with_the_nearest_name(tmp_path, splits, message):
    files = [*POOL, "photos/40.jpg", "masks/40.png"]
    root = write(tmp_path, files, images="photos", labels="masks", splits=splits)
    with pytest.raises(UsageError, match=message):
        load(root, "validation")


@pytest.mark.parametrize("place", ["train.parquet", "meta/outlines.parquet", "train/0000.parquet"])
def test_a_folder_with_the_described_files_is_no_copy_whatever_parquet_files_lie_beside_them(tmp_path, capsys, place):
    root = write(tmp_path, POOL, images="photos", labels="masks", splits={"train": "80 %", "validation": "20 %"})
    (root / place).parent.mkdir(exist_ok=True)
    Dataset.from_dict({"outline": ["POINT(1 2)"]}).to_parquet(root / place)
    assert (len(load(root)), len(load(root, "validation"))) == (16, 4)
    prepare(get_dataset_spec("folder", root), None, root, SavedDataset())
    assert "train: 16 images" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [" 1", "\t-1", " 1 1 1", ".jpg masks/03.png", ".jpg 03.png 0.97", " photos/03"])
def test_columns_after_a_name_in_a_list_are_left_out(tmp_path, columns):
    splits = {"train": "80 %", "validation": "val.txt"}
    root = write(tmp_path, POOL, images="photos", labels="masks", splits=splits)
    (root / "val.txt").write_text(f"03{columns}\n")
    assert ids(root, "validation") == ["03"]


@pytest.mark.parametrize(
    "description",
    [
        {"images": "data", "labels": "masks", "splits": {"train": "80 %", "validation": "20 %"}},
        {"images": ".", "label_suffix": "_mask.png", "splits": {"train": "80 %", "validation": "20 %"}},
        {
            "splits": {
                split: {"images": "*/photos/*.jpg", "labels": "*/masks/*.png"} for split in ("train", "validation")
            }
        },
    ],
    ids=["folder of the copy", "suffix", "templates"],
)
def test_a_copy_is_read_as_a_copy_whatever_folders_its_description_names(tmp_path, description):
    columns = {"image": [encoded("RGB")] * 2, "label": [encoded("L")] * 2}
    kind = ImageFeature(decode=False)
    rows = Dataset.from_dict(columns, features=Features({"image": kind, "label": kind}))
    root = write(tmp_path, [], **description)
    (root / "data").mkdir()
    for split in ("train", "validation"):
        rows.to_parquet(root / f"data/{split}-00000-of-00001.parquet")
    assert len(load(root)) == len(load(root, "validation")) == 2


def encoded(mode):
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "PNG")
    return {"path": None, "bytes": file.getvalue()}


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_a_copy_needs_no_splits_and_its_own_are_taken(tmp_path, capsys, form):
    write(tmp_path / "files", POOL[:2] + POOL[20:22])
    columns = {
        "image": [{"path": None, "bytes": (tmp_path / "files" / file).read_bytes()} for file in POOL[:2]],
        "label": [{"path": None, "bytes": (tmp_path / "files" / file).read_bytes()} for file in POOL[20:22]],
    }
    kind = ImageFeature(decode=False)
    rows = Dataset.from_dict(columns, features=Features({"image": kind, "label": kind}))
    root = tmp_path / "copy"
    if form == "parquet":
        (root / "data").mkdir(parents=True)
        for split in ("train", "dev"):
            rows.to_parquet(root / f"data/{split}-00000-of-00001.parquet")
    else:
        DatasetDict({"train": rows, "dev": rows}).save_to_disk(root)
    write(root, [], name="Streets: of Ulm")
    assert len(load(root)) == len(load(root, "validation")) == 2
    if form == "parquet":
        stream = load_segmentation_dataset("folder", "train", root, streaming=True)
        assert [np.asarray(sample["label"]).max() for sample in stream] == [0, 1]
    with pytest.raises(UsageError, match="has the splits .*, not 'test'"):
        load(root, "test")
    classes = write(tmp_path / "classes", [])  # of a copy elsewhere, as on the Hub
    assert len(load_segmentation_dataset("folder", "validation", classes, dataset_name=str(root))) == 2
    said, error = check(root, capsys, output_dir=tmp_path / "second")
    assert not error
    assert "train: 2 images" in said
    assert "validation: 2 images" in said
    card = (tmp_path / "second/README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["pretty_name"] == "Streets: of Ulm"
    assert "--dataset folder" in card
    assert len(load_dataset("parquet", data_dir=str(tmp_path / "second/data"), split="train")) == 2


def test_a_copy_with_a_training_split_only_is_checked(tmp_path, capsys):
    rows = {
        "image": [Image.new("RGB", (6, 4))],
        "label": [Image.new("L", (6, 4))],
    }
    Dataset.from_dict(rows).save_to_disk(tmp_path)
    said, error = check(write(tmp_path, []), capsys)
    assert not error
    assert "train: 1 images" in said


def test_a_folder_without_splits_and_without_a_copy_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no `splits:` in its dataset.yaml, which only copies can do without"):
        load(write(tmp_path, POOL))


def test_the_same_files_as_training_and_validation_get_one_warning_and_their_faults_one_line(tmp_path, capsys):
    where = {"images": "photos", "labels": "masks"}
    root = write(tmp_path, POOL, splits={"train": where, "validation": where})
    said, error = check(root, capsys)
    assert not error
    assert said.count("warning:") == 1
    assert "warning: 20 of 20 images of validation are in train too" in said
    for name in ("05", "11"):
        write_labels(root / f"masks/{name}.png", np.zeros((4, 5), np.uint8))
    Image.open(root / "photos/03.jpg").save(root / "masks/03.png")
    said, error = check(root, capsys)
    assert said.count("broken:") == 2
    assert "broken: 2 images: " in said
    assert re.search(r"broken: .*03\.png: .*list the colors in `label_colors` of dataset\.yaml", said)
    assert "nearest neighbor" in said
    assert f"3 images of the folder {root} cannot be used" in error


LEFT_OVER = {
    "suffix": (
        "masks/{}_mask.png",
        r"Write `label_suffix: _mask` in dataset\.yaml if 00_mask\.png is the label of 00\.jpg",
    ),
    "gif": (
        "masks/{}.gif",
        r"Write `label_suffix: \.gif` in dataset\.yaml if .*masks/00\.gif is the label of 00\.jpg",
    ),
    "jpeg": ("masks/{}_gt.jpg", r"00_gt\.jpg may be the label of 00\.jpg, but JPEG .* save the labels again as PNG"),
    "case": (
        "masks/IMG{}.png",
        r"Write `ignore_case: true` in dataset\.yaml if IMG00\.png is the label of img00\.jpg",
    ),
}


@pytest.mark.parametrize("kind", LEFT_OVER)
def test_images_without_labels_are_refused_with_what_would_pair_them(tmp_path, capsys, kind):
    label, hint = LEFT_OVER[kind]
    image = "photos/img{}.jpg" if kind == "case" else "photos/{}.jpg"
    files = [form.format(name) for form in (image, label) for name in NAMES[:3]]
    root = write(tmp_path, files, splits={"train": {"images": "photos", "labels": "masks"}})
    with pytest.raises(UsageError, match=rf"3 of 3 images of train have no label: .*{hint}"):
        load(root)
    with pytest.raises(UsageError, match=f"3 images of the folder {re.escape(str(root))} cannot be used"):
        prepare(get_dataset_spec("folder", root), ["train"], root, SavedDataset())
    assert re.search(hint, capsys.readouterr().out)


def test_files_left_over_on_either_side_are_shown_with_the_nearest_name_on_the_other(tmp_path, capsys):
    root = write(tmp_path, POOL, splits={"train": {"images": "photos", "labels": "masks"}})
    (root / "photos/07.jpg").rename(root / "photos/frame_0007.jpg")
    (root / "masks/07.png").rename(root / "masks/frame_007.png")
    (root / "photos/12.jpg").unlink()
    with pytest.raises(UsageError, match=r"frame_0007\.jpg \(nearest label without an image: frame_007\.png\)"):
        load(root)
    with pytest.raises(UsageError):
        prepare(get_dataset_spec("folder", root), ["train"], root, SavedDataset())
    said = capsys.readouterr().out
    assert "frame_007.png (nearest image without a label: frame_0007.jpg)" in said
    assert "frame_0007.jpg (nearest label without an image: frame_007.png)" in said
    assert "masks/12.png" in said
    (root / "photos/frame_0007.jpg").unlink()
    with pytest.warns(UserWarning, match="2 labels of train have no image and are not used"):
        assert len(load(root)) == 18


def test_labels_without_an_image_are_reported_for_one_of_the_splits_that_share_files(tmp_path, capsys):
    root = write(tmp_path, [*POOL, "masks/x.png"], images="photos", labels="masks", splits={"validation": "10 %"})
    said, error = check(root, capsys)
    assert not error
    assert said.count("1 label of train has no image and is not used") == said.count("has no image") == 1


def test_files_that_match_a_template_but_for_their_ending_are_counted_in_a_warning(tmp_path):
    files = ["photos/a.jpg", "photos/b.jpeg", "masks/a.png", "masks/b.png"]
    root = write(tmp_path, files, splits={"train": {"images": "photos/*.jpg", "labels": "masks/*.png"}})
    with pytest.warns(UserWarning) as warned:
        assert ids(root) == ["a"]
    said = " ".join(str(warning.message) for warning in warned)
    assert re.search(r"1 file among the images of train is not used: .*b\.jpeg", said)
    (root / "photos/a.jpg").unlink()
    with pytest.raises(UsageError, match=r"No file matches .*photos/\*\.jpg"):
        load(root)


@pytest.mark.parametrize(
    ("labels", "hint"), [("1 0 10", ""), ("0L 1L", "label_suffix: L"), ("0-a 3", "label_suffix: -a")]
)
def test_a_suffix_is_suggested_if_it_is_set_apart_or_that_of_most_labels(tmp_path, labels, hint):
    files = ["photos/0.jpg", "photos/1.jpg", "photos/2.jpg", *(f"masks/{name}.png" for name in labels.split())]
    root = write(tmp_path, files, splits={"train": {"images": "photos", "labels": "masks"}})
    with pytest.raises(UsageError) as error:
        load(root)
    assert re.findall("Write `(.*)` in", str(error.value)) == ([hint] if hint else [])


def test_images_and_labels_of_one_name_in_two_cases_are_paired_exactly(tmp_path):
    files = ["photos/a.jpg", "photos/A.jpg", "masks/a.png", "masks/A.png"]
    where = {"images": "photos", "labels": "masks"}
    root = write(tmp_path, files, splits={"train": where}, ignore_case=True)
    labels = {sample["image_id"]: np.asarray(sample["label"]).max() for sample in load(root)}
    assert labels == {"a": 0, "A": 1}
