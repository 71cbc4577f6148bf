"""Copies that the library `datasets` opens give the samples of the files that they were made from."""

import io
import json
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, Value
from datasets import Image as ImageFeature
from datasets.exceptions import DatasetNotFoundError
from datasets.table import embed_table_storage
from layouts import LAYOUTS
from PIL import Image

from msctr_hf import load_segmentation_dataset
from msctr_hf.data import saved_source
from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.data.loaders import evaluation_loader, image_ids, training_loader
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.saved_source import SavedDataset, index_copy, splits_of_copy
from msctr_hf.errors import UsageError

LAYOUT = LAYOUTS["cityscapes"]


@pytest.fixture
def official(tmp_path):
    return LAYOUT.write(tmp_path / "official")


def raw_rows(official, columns=("image", "label", "image_id")):
    spec = get_dataset_spec("cityscapes")
    rows = spec.index("train", official)
    embedded = rows.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
    return embedded.rename_columns(
        {old: new for old, new in zip(("image", "label", "image_id"), columns, strict=True) if old != new}
    )


def write_parquet(official, folder, name, num_shards=1, **options):
    rows = raw_rows(official, **options)
    for number in range(num_shards):
        path = folder / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.shard(num_shards, number).to_parquet(path)
    return folder


def assert_same_samples(copy, official):
    expected = load_segmentation_dataset("cityscapes", "train", official)
    count = 0
    for sample, other in zip(copy, expected, strict=True):
        assert np.array_equal(np.asarray(sample["image"]), np.asarray(other["image"]))
        assert np.array_equal(np.asarray(sample["label"]), np.asarray(other["label"]))
        count += 1
    assert count == 3


@pytest.mark.parametrize(
    "name",
    ["train-{:05d}-of-00002.parquet", "data/train-{:05d}.parquet", "train/{:04d}.parquet", "data/training-{}.parquet"],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_give_the_same_samples(official, tmp_path, name, streaming):
    folder = write_parquet(official, tmp_path / "copy", name, num_shards=2)
    copy = load_segmentation_dataset("cityscapes", "train", folder, streaming=streaming)
    assert isinstance(copy, IterableDataset) == streaming
    assert_same_samples(copy, official)
    with pytest.raises(ValueError, match=r"has the splits \['train.*'\], not 'validation'"):
        load_segmentation_dataset("cityscapes", "validation", folder)


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_folders_of_save_to_disk_give_the_same_samples(official, tmp_path, as_dict, streaming):
    rows = raw_rows(official)
    (DatasetDict({"train": rows}) if as_dict else rows).save_to_disk(str(tmp_path / "copy"))
    assert_same_samples(
        load_segmentation_dataset("cityscapes", "train", tmp_path / "copy", streaming=streaming), official
    )


@pytest.mark.parametrize("extra", [[], ["photographer"]])
def test_streamed_jpegs_are_not_encoded_again(tmp_path, extra):
    layout = LAYOUTS["ade20k"]
    root = layout.write(tmp_path / "official", size=(40, 60))
    spec = get_dataset_spec("ade20k")
    rows = spec.index("train", root).cast_column("image", ImageFeature())
    rows = rows.cast_column("label", ImageFeature()).with_format("arrow").map(embed_table_storage, batched=True)
    for column in extra:
        rows = rows.with_format(None).add_column(column, ["x"] * len(rows))
    (tmp_path / "copy").mkdir()
    rows.with_format(None).to_parquet(tmp_path / "copy/train.parquet")
    expected = load_segmentation_dataset("ade20k", "train", root)
    copy = load_segmentation_dataset("ade20k", "train", tmp_path / "copy", streaming=True)
    for sample, other in zip(copy, expected, strict=True):
        assert np.array_equal(np.asarray(sample["image"]), np.asarray(other["image"]))


@pytest.mark.parametrize("column", ["image", "label"])
def test_streamed_jpegs_beside_a_column_of_structs_are_not_encoded_again(tmp_path, column):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    rows = {"image": [{"bytes": file.getvalue(), "path": None}], "label": [encoded(pixels[..., 0])]}
    struct = {"bytes": Value("binary"), "path": Value("string")}
    features = datasets.Features({"image": ImageFeature(), "label": ImageFeature()} | {column: struct})
    write_table(tmp_path / "copy", "parquet", rows, features)
    (row,) = index_copy(SavedDataset(streaming=True), "train", tmp_path / "copy")
    assert {name: row[name]["bytes"] for name in rows} == {name: rows[name][0]["bytes"] for name in rows}


def test_a_data_set_without_splits_is_not_used_for_validation(official, tmp_path):
    raw_rows(official).save_to_disk(str(tmp_path / "copy"))
    with pytest.raises(ValueError, match=r"has the splits \['train'\], not 'validation'"):
        load_segmentation_dataset("cityscapes", "validation", tmp_path / "copy")


def test_columns_with_other_names_are_read(official, tmp_path):
    folder = write_parquet(
        official, tmp_path / "copy", "train.parquet", columns=("photo", "semantic_segmentation", "file_name")
    )
    columns = {"image_column": "photo", "label_column": "semantic_segmentation"}
    for streaming in (False, True):
        copy = load_segmentation_dataset("cityscapes", "train", folder, streaming=streaming, **columns)
        assert_same_samples(copy, official)
        first = zlib.crc32(raw_rows(official)["image"][0]["bytes"])
        assert next(iter(copy))["image_id"] == (f"train_{first:08x}" if streaming else "train_000000")
    with pytest.raises(ValueError, match="`label_column`: the data set has no column 'label', only .*photo"):
        load_segmentation_dataset("cityscapes", "train", folder, image_column="photo")


def test_a_split_is_requested_by_its_name_in_the_repository_of_the_hub(official, monkeypatch):
    asked = {}

    def load(name, configuration, **options):
        asked.update(name=name, configuration=configuration, **options)
        return raw_rows(official)

    monkeypatch.setattr(saved_source, "get_dataset_split_names", lambda *name, revision: ["train", "val"])
    monkeypatch.setattr(saved_source, "load_dataset", load)
    options = {"dataset_name": "someone/cityscapes:fine", "revision": "refs/convert/parquet"}
    assert_same_samples(load_segmentation_dataset("cityscapes", "validation", **options), official)
    assert asked == {
        "name": "someone/cityscapes", "configuration": "fine",
        "split": "val", "revision": "refs/convert/parquet", "streaming": False,
    }  # fmt: skip


def test_one_of_several_configurations_of_a_data_set_is_read_by_its_name(official, tmp_path, monkeypatch):
    repository = tmp_path / "someone" / "scenes"
    write_parquet(official, repository / "fine", "train.parquet")
    write_parquet(official, repository / "coarse", "val.parquet")
    of_files = [("fine", "train"), ("coarse", "val")]
    configurations = [
        {"config_name": name, "data_files": [{"split": split, "path": f"{name}/{split}.parquet"}]}
        for name, split in of_files
    ]
    (repository / "README.md").write_text(f"---\nconfigs: {json.dumps(configurations)}\n---\n")
    # `datasets` opens a folder as it opens a repository, whose metadata name the configurations
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(saved_source, "_folder_of", lambda saved, data_dir: None)
    fine = load_segmentation_dataset("cityscapes", "train", dataset_name="someone/scenes:fine")
    assert_same_samples(fine, official)
    assert splits_of_copy(SavedDataset("someone/scenes:coarse"), None) == ["validation"]
    for name in ("someone/scenes", "someone/scenes:rough"):
        with pytest.raises(UsageError) as raised:
            load_segmentation_dataset("cityscapes", "train", dataset_name=name)
        assert str(raised.value) == (
            f"`dataset_name`: {name} must name one configuration of the data set: someone/scenes:fine, "
            "someone/scenes:coarse."
        )
    configurations[0]["default"] = True
    (repository / "README.md").write_text(f"---\nconfigs: {json.dumps(configurations)}\n---\n")
    assert splits_of_copy(SavedDataset("someone/scenes"), None) == ["train"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DatasetNotFoundError("'a/b' is a gated dataset on the Hub."), r"terms on https://\S+/a/b .*hf auth login"),
        (DatasetNotFoundError("'a/b' doesn't exist"), "a/b is neither a data set on the Hub nor a folder"),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "no longer supported"),
        (ConnectionError("offline"), "cannot be read from the Hub"),
    ],
)  # fmt: skip
def test_errors_of_the_hub_are_reported_in_one_sentence(monkeypatch, error, message):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(saved_source, "get_dataset_split_names", refuse)
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset("cityscapes", "train", dataset_name="a/b")


def test_a_stream_can_be_trained_on_and_is_divided_among_processes(official, tmp_path):
    folder = write_parquet(official, tmp_path / "copy", "train-{:05d}.parquet", num_shards=2)
    stream = load_segmentation_dataset("cityscapes", "train", folder, streaming=True)
    augmentation = TrainingAugmentation(crop_size=(8, 8), image_mean=[0.5] * 3, image_std=[0.5] * 3)
    epochs = []
    for epoch in (0, 0, 1):
        loader = training_loader(stream, augmentation, batch_size=1, seed=0, num_workers=2)
        loader.dataset.set_epoch(epoch)
        epochs.append([batch["pixel_values"] for batch in loader])
    assert [len(epoch) for epoch in epochs] == [3, 3, 3]
    assert all((first == again).all() for first, again in zip(*epochs[:2], strict=True))
    assert not any((first == other).all() for first in epochs[0] for other in epochs[2])
    shares = [
        [sample["image_id"] for samples in evaluation_loader(
            stream, batch_size=2, num_workers=0, process_index=process, num_processes=2) for sample in samples]
        for process in range(2)
    ]  # fmt: skip
    assert (
        sorted(sum(shares, []))
        == load_segmentation_dataset("cityscapes", "train", official).with_format(None)["image_id"][:]
    )


def test_labels_that_datasets_encoded_itself_are_read(tmp_path):
    random = np.random.default_rng(0)
    labels = [random.choice([0, 10, 11], (5, 6)).astype(np.uint8) for _ in range(2)]
    rows = Dataset.from_dict(
        {"image": [random.integers(0, 256, (5, 6, 3), dtype=np.uint8) for _ in range(2)], "label": labels},
        features=datasets.Features({"image": ImageFeature(), "label": ImageFeature()}),
    )
    rows.save_to_disk(str(tmp_path / "copy"))
    copy = load_segmentation_dataset("camvid", "train", tmp_path / "copy")
    expected = np.where(labels[1] == 11, 255, labels[1])
    assert np.array_equal(np.asarray(copy[1]["label"]), expected)
    assert SavedDataset().image_column == "image"


def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def rows_of_camvid(count=3, **columns):
    """Rows whose labels have the value of their number everywhere; `columns` replaces columns."""
    images = [encoded(np.full((4, 5, 3), number, np.uint8)) for number in range(count)]
    labels = [encoded(np.full((4, 5), number, np.uint8)) for number in range(count)]
    return {"image": images, "label": labels, **columns}


def write_table(folder, form, columns, features=None):
    rows = Dataset.from_dict(columns, features=features)
    if form == "save_to_disk":
        DatasetDict({"train": rows}).save_to_disk(str(folder))
    else:
        folder.mkdir()
        rows.to_parquet(folder / "train.parquet")


FORMS = ["save_to_disk", "parquet", "stream"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7, 8, 9], ["7", "8", "9"]),
        ([7, None, 9], ["7", None, "9"]),
        (["a", None, "c"], ["a", None, "c"]),
        ([None, None, None], [None, None, None]),
        ([1.5, 2.0, 3.25], ["1.5", "2.0", "3.25"]),
        (["a", "a", "b"], ["a", "a", "b"]),
    ],
)
def test_image_ids_of_a_copy_are_text(tmp_path, form, ids, expected):
    columns = rows_of_camvid(image_id=ids)
    write_table(tmp_path / "copy", form, columns)
    copy = load_segmentation_dataset("camvid", "train", tmp_path / "copy", streaming=form == "stream")
    made = [zlib.crc32(image["bytes"]) for image in columns["image"]]
    made = [f"train_{made[row]:08x}" if form == "stream" else f"train_{row:06d}" for row in range(3)]
    assert [sample["image_id"] for sample in copy] == [own or other for own, other in zip(expected, made, strict=True)]
    assert [int(np.asarray(sample["label"])[0, 0]) for sample in copy] == [0, 1, 2]
    augmentation = TrainingAugmentation(crop_size=(4, 4), image_mean=[0.5] * 3, image_std=[0.5] * 3)
    (batch,) = training_loader(copy, augmentation, batch_size=3, seed=0, num_workers=0)
    assert batch["pixel_values"].shape == (3, 3, 4, 4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("column", ["image", "label"])
@pytest.mark.parametrize("empty", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}])
def test_an_empty_cell_of_a_copy_is_refused_with_its_id_and_the_row_unless_it_is_a_stream(
    tmp_path, form, column, empty
):
    columns = rows_of_camvid(image_id=["a", "b", "c"])
    columns[column][1] = empty
    struct = {"bytes": Value("binary"), "path": Value("string")}
    features = datasets.Features({"image": struct, "label": struct, "image_id": Value("string")})
    write_table(tmp_path / "copy", form, columns, features)
    where = r" \(image id b\); without `streaming`" if form == "stream" else r": row 1 \(image id b\)"
    with pytest.raises(UsageError, match=rf"of train ha\w+ no {column}{where}"):
        list(load_segmentation_dataset("camvid", "train", tmp_path / "copy", streaming=form == "stream"))


class Draws:
    """Augmentation that returns the value of the pixels and a random number."""

    def tensors(self, sample, random):
        pixel = int(np.asarray(sample["image"])[0, 0, 0])
        return {"value": torch.tensor(pixel), "random": torch.tensor(random.random(), dtype=torch.float64)}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("with_labels", [True, False])
def test_every_image_of_a_shuffled_stream_without_ids_has_an_id_and_random_numbers_of_its_own(
    tmp_path, num_workers, with_labels
):
    columns, count = rows_of_camvid(12), 12
    rows = Dataset.from_dict(columns if with_labels else {"image": columns["image"]})
    (tmp_path / "copy").mkdir()
    for shard in range(3):
        rows.shard(3, shard).to_parquet(tmp_path / f"copy/train-{shard}.parquet")
    stream = load_segmentation_dataset("camvid", "train", tmp_path / "copy", streaming=True, with_labels=with_labels)
    ids = [f"train_{zlib.crc32(image['bytes']):08x}" for image in columns["image"]]
    loader = training_loader(stream, Draws(), batch_size=1, seed=5, num_workers=num_workers)
    for epoch in range(2):
        loader.dataset.set_epoch(epoch)
        batches = list(loader)
        assert sorted(int(batch["value"]) for batch in batches) == list(range(count))
        for batch in batches:
            (image_id,) = image_ids(batch["image_id"])
            assert image_id == ids[int(batch["value"])]
            expected = np.random.default_rng((5, epoch, zlib.crc32(image_id.encode()), 1)).random()
            assert float(batch["random"]) == expected
        assert len({float(batch["random"]) for batch in batches}) == count


@pytest.mark.parametrize("num_workers", [0, 2])
def test_scores_of_a_stream_without_ids_name_every_image_by_one_id(tmp_path, num_workers):
    columns = rows_of_camvid(6)
    (tmp_path / "copy").mkdir()
    for shard in range(2):
        Dataset.from_dict(columns).shard(2, shard).to_parquet(tmp_path / f"copy/validation-{shard}.parquet")
    stream = load_segmentation_dataset("camvid", "validation", tmp_path / "copy", streaming=True)
    loader = evaluation_loader(stream, batch_size=1, num_workers=num_workers)
    found = {int(np.asarray(sample["image"])[0, 0, 0]): sample["image_id"] for (sample,) in loader}
    assert found == {
        number: f"validation_{zlib.crc32(image['bytes']):08x}" for number, image in enumerate(columns["image"])
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["classes", "classes by name", "numbers", "lists of images", "text in lists"])
def test_a_column_of_something_else_than_images_is_refused_with_its_name_and_type(tmp_path, form, kind):
    images = rows_of_camvid()["image"]
    values, feature = {
        "classes": ([0, 1, 0], ClassLabel(names=["cat", "dog"])),
        "classes by name": ([[0], [1], [0]], datasets.List(ClassLabel(names=["cat", "dog"]))),
        "numbers": ([0.5, 1.5, 2.5], Value("float32")),
        "lists of images": ([[image] for image in images], datasets.List(ImageFeature())),
        "text in lists": ([["a"]] * 3, datasets.List(Value("string"))),
    }[kind]
    features = datasets.Features({"image": ImageFeature(), "label": feature})
    write_table(tmp_path / "copy", form, {"image": images, "label": values}, features)
    with pytest.raises(UsageError, match="`label_column`: the column 'label' must contain an image in every row"):
        load_segmentation_dataset("camvid", "train", tmp_path / "copy", streaming=form == "stream")


def test_the_long_type_of_a_column_is_not_cut_inside_a_word(tmp_path):
    names = [f"class_{number}" for number in range(40)]
    features = datasets.Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    write_table(tmp_path / "copy", FORMS[0], {"image": rows_of_camvid()["image"], "label": [0, 1, 2]}, features)
    with pytest.raises(UsageError, match=r"its type is ClassLabel\(.*'class_\d', \.\.\.\.$"):
        load_segmentation_dataset("camvid", "train", tmp_path / "copy", streaming=FORMS[0] == "stream")


@pytest.mark.parametrize("form", FORMS)
def test_the_columns_of_images_and_labels_must_differ_and_may_be_exchanged(tmp_path, form):
    write_table(tmp_path / "copy", form, rows_of_camvid())
    options = {"streaming": form == "stream"}
    with pytest.raises(UsageError, match="`image_column` and `label_column` both name 'image'"):
        load_segmentation_dataset("camvid", "train", tmp_path / "copy", label_column="image", **options)
    exchanged = {"image": rows_of_camvid()["label"], "label": rows_of_camvid()["image"]}
    write_table(tmp_path / "exchanged", form, exchanged)
    copy = load_segmentation_dataset(
        "camvid", "train", tmp_path / "exchanged", image_column="label", label_column="image", **options
    )
    assert [int(np.asarray(sample["label"])[0, 0]) for sample in copy] == [0, 1, 2]


@pytest.mark.parametrize("place", [0, 1])
def test_a_parquet_file_with_two_columns_of_the_same_name_is_refused_in_one_sentence(tmp_path, place):
    columns = rows_of_camvid()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = [pa.array(columns[name], type=kind) for name in ("image", "label", "label")]
    (tmp_path / "copy").mkdir()
    repeated = pa.Table.from_arrays(arrays, names=["image", "label", "label"])
    pq.write_table(repeated, tmp_path / f"copy/train-{place}.parquet")
    pq.write_table(repeated.select([0, 1]), tmp_path / f"copy/train-{1 - place}.parquet")
    for streaming in (False, True):
        with pytest.raises(UsageError, match=f"train-{place}.parquet has several columns with the name 'label'"):
            list(load_segmentation_dataset("camvid", "train", tmp_path / "copy", streaming=streaming))


@pytest.mark.parametrize(
    "name", ["data/train/{:04d}.parquet", "default/train/{:04d}.parquet", "default/training/{}.parquet"]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_files_as_the_converter_of_the_hub_names_them_are_found(official, tmp_path, name, streaming):
    folder = write_parquet(official, tmp_path / "copy", name, num_shards=2)
    assert_same_samples(load_segmentation_dataset("cityscapes", "train", folder, streaming=streaming), official)
    with pytest.raises(UsageError, match=r"has the splits \['train.*'\], not 'validation'"):
        load_segmentation_dataset("cityscapes", "validation", folder)


def test_configurations_of_the_hub_are_not_mixed(official, tmp_path):
    for name in ("small/train/0000.parquet", "large/train/0000.parquet"):
        folder = write_parquet(official, tmp_path / "copy", name)
    with pytest.raises(UsageError, match=r"several folders of train: .*large/train, .*small/train"):
        load_segmentation_dataset("cityscapes", "train", folder)
    assert_same_samples(load_segmentation_dataset("cityscapes", "train", folder / "small"), official)


@pytest.mark.parametrize("streaming", [False, True])
def test_hidden_parquet_files_are_left_out(official, tmp_path, streaming):
    """macOS writes ._NAME beside every file, and caches and editors have hidden folders."""
    folder = write_parquet(official, tmp_path / "copy", "default/train/{:04d}.parquet", num_shards=2)
    (folder / "default/train/._0000.parquet").write_bytes(b"attributes")
    for name in (".train.parquet", ".cache/train.parquet", ".ipynb_checkpoints/train/0000.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"hidden")
    assert_same_samples(load_segmentation_dataset("cityscapes", "train", folder, streaming=streaming), official)


def test_a_folder_with_hidden_parquet_files_only_is_not_a_copy(tmp_path):
    root = LAYOUTS["camvid"].write(tmp_path / "official")
    (root / ".cache").mkdir()
    (root / ".cache/train.parquet").write_bytes(b"hidden")
    assert len(load_segmentation_dataset("camvid", "train", root)) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_file_without_rows_is_refused_with_its_name(official, tmp_path, streaming):
    folder = write_parquet(official, tmp_path / "copy", "train.parquet")
    pq.write_table(pq.read_table(folder / "train.parquet").slice(0, 0), folder / "train.parquet")
    with pytest.raises(UsageError, match=r"The parquet files of train have no rows: .*train\.parquet"):
        list(load_segmentation_dataset("cityscapes", "train", folder, streaming=streaming))


def test_parquet_files_with_columns_of_other_types_are_refused_with_the_cause(tmp_path):
    (tmp_path / "copy").mkdir()
    for number, ids in enumerate(([1, 2, 3], ["a", "b", "c"])):
        rows = Dataset.from_dict(rows_of_camvid(image_id=ids))
        rows.to_parquet(tmp_path / f"copy/train-{number}.parquet")
    with pytest.raises(UsageError, match=r"copy cannot be read: Failed to parse string: 'c'"):
        load_segmentation_dataset("camvid", "train", tmp_path / "copy")
