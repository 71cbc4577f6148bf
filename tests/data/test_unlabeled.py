"""Images without labels come from every source, without a look at labels, in two views of the same pixels."""

import dataclasses
import math
import shlex

import numpy as np
import pytest
import torch
from layouts import write_folder, write_image
from PIL import Image

from msctr_hf import load_segmentation_dataset
from msctr_hf.commands import prepare as prepare_command
from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.data.channels import Channels
from msctr_hf.data.loaders import training_loader
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.preparation import prepare
from msctr_hf.data.saved_source import SavedDataset
from msctr_hf.data.settings import DataSettings, PreparationSettings
from msctr_hf.data.strong_view import StrongView
from msctr_hf.data.tiles import cut_into_tiles
from msctr_hf.data.unlabeled import UnlabeledAugmentation, check_folder, draw_box, index_folder, unlabeled_seed
from msctr_hf.errors import UsageError

NUM_CLASSES = 3
TRAINING = TrainingAugmentation(
    crop_size=(32, 48), image_mean=[0.4] * 3, image_std=[0.3] * 3, color_jitter=False, max_class_share=math.inf,
    flip_vertical_probability=0.5, rotate90=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), num_train=6)


def views(dataset, strength=1.0, seed=0, training=TRAINING):
    augmentation = UnlabeledAugmentation(training, StrongView(strength), NUM_CLASSES)
    return augmentation.tensors(dataset[0], np.random.default_rng(seed))


def test_images_are_found_in_subfolders_and_named_by_their_paths(tmp_path):
    for name in ("b.png", "day/a.JPG", "day/night/c.tif"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    found = index_folder(tmp_path)
    assert found.with_format(None)["image_id"][:] == ["b.png", "day/a.JPG", "day/night/c.tif"]
    assert found[1]["image"].size == (32, 24)
    assert views(found)["is_valid"].any()


def test_arrays_are_found_for_images_of_other_channels(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((40, 50, 5), np.uint16))
    found = index_folder(tmp_path, Channels(5))
    assert found[0]["image"].shape == (40, 50, 5)
    with pytest.raises(UsageError, match="has no images"):
        index_folder(tmp_path)


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_images_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="`unlabeled_dir`: .*(does not exist|has no images)"):
        index_folder(tmp_path / name)


def folder_with_faults(folder):
    """Write two images that can be read, and a text and a link in their place; return the names of these."""
    for name in ("a.png", "day/b.png"):
        write_image(folder / name)
    (folder / "day/broken.png").write_text("not an image")
    (folder / "lost.png").symlink_to("nowhere.png")
    return ["day/broken.png", "lost.png"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_check_of_a_folder_lists_all_faults_and_passes_without_them(tmp_path, capsys, num_workers):
    faulty = folder_with_faults(tmp_path)
    with pytest.raises(UsageError, match=rf"`unlabeled_dir`: 2 images of {tmp_path} cannot be used"):
        check_folder(tmp_path, num_workers=num_workers)
    out = capsys.readouterr().out
    assert f"{tmp_path}: 2 images without labels, 32x24 (2)\n" in out
    assert out.count("broken: ") == 2
    assert all(f"broken: {tmp_path / name} " in out for name in faulty)
    for name in faulty:
        (tmp_path / name).unlink()
    check_folder(tmp_path, num_workers=num_workers)
    assert "broken" not in capsys.readouterr().out


def test_the_check_of_a_folder_reads_the_channels_of_the_run(tmp_path, capsys):
    for name, values in (("a", np.zeros((4, 6, 5), np.uint16)), ("b", np.ones((4, 6, 4), np.uint16))):
        np.save(tmp_path / f"{name}.npy", values)
    with pytest.raises(UsageError, match=f"1 images of {tmp_path} cannot be used"):
        check_folder(tmp_path, Channels(5))
    out = capsys.readouterr().out
    assert "b.npy has 4 channels, but `num_channels` is 5" in out
    assert "channels of uint16" in out


@pytest.mark.parametrize(("options", "channels"), [([], None), (["--num_channels", "3"], Channels(3))])
def test_a_faulty_file_of_a_folder_names_its_check_and_how_to_go_on(tmp_path, capsys, options, channels):
    write_image(tmp_path / "my images/a.png")
    (tmp_path / "my images/broken.png").write_text("not an image")
    found = index_folder(tmp_path / "my images", channels)
    with pytest.raises(
        UsageError, match=r"broken.png cannot be read as an image: .*under the same name and"
    ) as raised:
        found[1]
    words = shlex.split(str(raised.value).split("`")[1])
    assert words == ["msctr", "prepare", "--unlabeled_dir", str(tmp_path / "my images"), *options]
    with pytest.raises(SystemExit) as ended:
        prepare_command.main([*words[2:], "--num_workers", "0"])
    output = capsys.readouterr()
    assert (ended.value.code, output.out.count("broken: "), "prepare" in output.err) == (2, 1, False)


def test_a_folder_is_checked_without_a_data_set():
    assert PreparationSettings(unlabeled_dir="images", num_channels=4, num_workers=0).unlabeled_dir == "images"
    with pytest.raises(UsageError, match="leave `data_dir`, `dataset`, `predecode` out"):
        PreparationSettings(unlabeled_dir="images", dataset="folder", data_dir="data", predecode=True)


def sources(folder, tmp_path):
    """Load the training images from their folder, a parquet copy and a pre-decoded copy."""
    spec = get_dataset_spec("folder", folder)
    for name, predecode in (("parquet", False), ("predecoded", True)):
        prepare(spec, ["train"], folder, SavedDataset(), output_dir=tmp_path / name, predecode=predecode)
    return {name: tmp_path / name for name in ("parquet", "predecoded")} | {"folder": folder}


def test_all_sources_show_the_same_images_without_labels(folder, tmp_path):
    expected = [np.asarray(sample["image"]) for sample in load_segmentation_dataset("folder", "train", folder)]
    for name, place in sources(folder, tmp_path).items():
        found = load_segmentation_dataset("folder", "train", place, with_labels=False)
        samples = [found[number] for number in range(len(found))]
        assert all(np.array_equal(sample["image"], image) for sample, image in zip(samples, expected, strict=True)), (
            name
        )
        assert all(sample["label"].shape == (40, 56) for sample in samples)
        assert all(not sample["label"][0:40, 0:56].any() for sample in samples), name


def test_labels_may_be_missing_or_damaged(tmp_path):
    folder = write_folder(tmp_path / "data", num_train=3)
    (folder / "train/labels/1.png").write_bytes(b"no image")
    (folder / "train/labels/2.png").unlink()
    found = load_segmentation_dataset("folder", "train", folder, with_labels=False)
    assert [sample["image"].size for sample in found] == [(56, 40)] * 3


def test_a_copy_needs_no_column_of_labels(folder, tmp_path):
    copy = sources(folder, tmp_path)["parquet"]
    rows = load_segmentation_dataset("folder", "train", copy).with_format(None).remove_columns(["label", "image_id"])
    images = tmp_path / "images"
    images.mkdir()
    rows.to_parquet(images / "train-0.parquet")
    found = load_segmentation_dataset("folder", "train", folder, dataset_name=str(images), with_labels=False)
    assert [sample["image_id"] for sample in found] == [f"train_{number:06d}" for number in range(6)]
    stream = load_segmentation_dataset(
        "folder", "train", folder, dataset_name=str(images), with_labels=False, streaming=True
    )
    (batch,) = training_loader(
        stream, UnlabeledAugmentation(TRAINING, StrongView(), 3), batch_size=6, seed=0, num_workers=0
    )
    assert batch["weak_pixel_values"].shape == (6, 3, 32, 48)


def test_synthetic_scenes_have_no_labels():
    found = load_segmentation_dataset("synthetic_scenes", "test", with_labels=False)
    assert not found[3]["label"][0:192, 0:256].any()


def test_the_rest_is_what_the_draw_leaves_out(folder):
    settings = DataSettings(dataset="folder", data_dir=str(folder), train_images=2, unlabeled="rest")
    drawn, _ = settings.load_training(seed=4)
    rest = settings.load_unlabeled(seed=4)
    ids = [dataset.with_format(None)["image_id"][:] for dataset in (drawn, rest)]
    assert (len(ids[0]), sorted(ids[0] + ids[1])) == (2, [str(number) for number in range(6)])
    assert "label" not in rest.with_format(None).column_names


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"unlabeled": "rest"}, "`unlabeled='rest'` takes the images that `train_images` leaves out"),
        ({"unlabeled": "test", "unlabeled_dir": "x"}, "`unlabeled` and `unlabeled_dir` both name"),
        ({"unlabeled_strength": 1.5}, "`unlabeled_strength` must be in"),
        ({"unlabeled_mix": "cut"}, "`unlabeled_mix` must be one of"),
    ],
)
def test_a_wrong_setting_is_refused(changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        DataSettings(**changes)


def test_no_rest_is_refused(folder):
    settings = DataSettings(dataset="folder", data_dir=str(folder), train_images=6, unlabeled="rest")
    with pytest.raises(UsageError, match="leaves no image out"):
        settings.load_unlabeled(seed=0)


@pytest.mark.parametrize("seed", range(8))
def test_the_weak_view_has_the_geometry_of_labeled_images_and_the_strong_one_the_same(folder, seed):
    labeled = load_segmentation_dataset("folder", "train", folder)[0]
    found = views(load_segmentation_dataset("folder", "train", folder, with_labels=False), strength=0.0, seed=seed)
    pixel_values, labels = TRAINING(labeled["image"], labeled["label"], np.random.default_rng(seed))
    assert torch.equal(found["weak_pixel_values"], pixel_values)
    assert torch.equal(found["is_valid"], labels != 255)
    torch.testing.assert_close(found["strong_pixel_values"], pixel_values, rtol=0, atol=1e-4)


def test_images_without_values_of_a_known_white_are_not_changed_by_the_weak_view(tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 56, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    training = dataclasses.replace(TRAINING, white=1.0, scale_range=(1, 1), aspect_range=(1, 1), crop_size=(40, 56))
    training = dataclasses.replace(training, rotate90=False, flip_probability=0.0, flip_vertical_probability=0.0)
    sample = index_folder(tmp_path, Channels(3, "float32"))[0]
    augmentation = UnlabeledAugmentation(training, StrongView(are_colors=False, white=1.0), NUM_CLASSES)
    found = augmentation.tensors(sample, np.random.default_rng(0))
    expected = (torch.from_numpy(values).permute(2, 0, 1) - 0.4) / 0.3
    torch.testing.assert_close(found["weak_pixel_values"], expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(sample["image"], values)


def test_boxes_cover_half_of_an_image_and_are_inside():
    random = np.random.default_rng(0)
    places = []
    for _ in range(200):
        top, left, bottom, right = draw_box((64, 96), random)
        assert 0 <= top < bottom <= 64
        assert 0 <= left < right <= 96
        assert abs((bottom - top) * (right - left) / (64 * 96) - 0.5) < 0.02
        places.append((top, left, bottom - top))
    assert len(set(places)) > 100
    assert min(height for *_, height in places) < 36
    assert max(height for *_, height in places) > 60


def test_tiles_are_cut_from_images_without_labels(folder):
    labeled, unlabeled = (
        cut_into_tiles(load_segmentation_dataset("folder", "train", folder, with_labels=with_labels), (24, 32), 4)
        for with_labels in (True, False)
    )
    assert labeled.with_format(None)["image_id"][:] == unlabeled.with_format(None)["image_id"][:]
    assert np.array_equal(np.asarray(labeled[5]["image"]), np.asarray(unlabeled[5]["image"]))
    assert not np.asarray(unlabeled[5]["label"]).any()


def test_tiles_of_images_of_other_channels_are_cut_without_labels(tmp_path):
    values = np.random.default_rng(0).integers(0, 9, (40, 56, 5)).astype(np.uint16)
    np.save(tmp_path / "a.npy", values)
    tiles = cut_into_tiles(index_folder(tmp_path, Channels(5)), (24, 32), 0)
    assert np.array_equal(tiles[0]["image"], values[:24, :32])


def batches(num_workers, epoch):
    dataset = load_segmentation_dataset("synthetic_scenes", "test", with_labels=False)
    loader = training_loader(
        dataset, UnlabeledAugmentation(TRAINING, StrongView(), 9), batch_size=4, seed=1, num_workers=num_workers
    )
    loader.sampler.set_epoch(epoch)
    return [batch for batch, _ in zip(loader, range(2), strict=False)]


def test_views_do_not_depend_on_the_number_of_workers_but_on_the_epoch():
    for one, many, other in zip(batches(0, 2), batches(1, 2), batches(0, 3), strict=True):
        assert one.keys() == many.keys()
        assert all(torch.equal(one[name], many[name]) for name in one)
        assert not torch.equal(one["strong_pixel_values"], other["strong_pixel_values"])


def test_seeds_of_labeled_and_unlabeled_images_differ():
    seeds = [unlabeled_seed(seed) for seed in range(50)]
    assert len({*seeds, *range(50)}) == 100


def test_large_tiff_files_are_left_undecoded(tmp_path, monkeypatch):
    from msctr_hf.data import regions

    Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)).save(tmp_path / "a.tif")
    monkeypatch.setattr(regions, "LARGE_PIXELS", 100)
    dataset = index_folder(tmp_path)
    reader = dataset.format["format_kwargs"]["transform"].for_crops()
    (image,) = reader(dataset.with_format(None)[:])["image"]
    assert isinstance(image, regions.BlockPixels)
    assert np.array_equal(image[4:9, 10:20], np.asarray(dataset[0]["image"])[4:9, 10:20])


def test_a_stream_is_not_read_once_with_and_once_without_labels():
    settings = {"dataset": "folder", "dataset_name": "USER/NAME", "streaming": True, "train_split": "train"}
    with pytest.raises(UsageError, match="`unlabeled='test.train'` has images of `train_split='train'`"):
        DataSettings(**settings, unlabeled="test+train")
    DataSettings(**settings, unlabeled="test")
