"""Large images are read by regions: crops, tiles and copies show the pixels of the whole image."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from msctr_hf import load_segmentation_dataset
from msctr_hf.data import predecoded, regions, tiff_blocks
from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.data.class_balance import pixels_of_classes
from msctr_hf.data.decoding import rows_for_crops
from msctr_hf.data.images import read_image
from msctr_hf.data.loaders import training_loader
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.preparation import prepare
from msctr_hf.data.saved_source import SavedDataset
from msctr_hf.data.settings import DataSettings
from msctr_hf.data.tiles import cut_into_tiles, tile_starts
from msctr_hf.data.unlabeled import index_folder
from msctr_hf.errors import UsageError

HEIGHT, WIDTH = 150, 210
AUGMENTATION = TrainingAugmentation(crop_size=(32, 48), image_mean=[0.5] * 3, image_std=[0.5] * 3)


def write(root, suffix="tif", splits=("train", "validation"), count=2, **options):
    random = np.random.default_rng(0)
    for split in splits:
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
            image.save(root / f"{split}/images/{number}.{suffix}", **options)
            label = random.integers(0, 3, (HEIGHT // 10, WIDTH // 10), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
            labels = "png" if suffix == "jpg" else suffix
            Image.fromarray(label).save(root / f"{split}/labels/{number}.{labels}", **options)
    description = {
        "classes": ["sky", "road", "car"],
        "splits": {split: {kind: f"{split}/{kind}" for kind in ("images", "labels")} for split in splits},
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump(description))
    return root


@pytest.fixture
def large(monkeypatch):
    """Let the images of these tests count as large."""
    monkeypatch.setattr(regions, "LARGE_PIXELS", 5000)
    monkeypatch.setattr("msctr_hf.data.tiles.LARGE_PIXELS", 5000)
    monkeypatch.setattr(regions, "_DECODED_PIXELS", 4000)


@pytest.fixture
def tiff_folder(tmp_path):
    return write(tmp_path / "tiff", compression="tiff_lzw", tiffinfo={278: 8})


def load(root, split="train"):
    return load_segmentation_dataset("folder", split, root)


def crops(dataset, num_workers=0):
    batches = list(training_loader(dataset, AUGMENTATION, batch_size=2, seed=3, num_workers=num_workers))
    return [(batch["pixel_values"].numpy(), batch["labels"].numpy()) for batch in batches]


def assert_equal_batches(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert all(np.array_equal(one, two) for one, two in zip(batch, other, strict=True))


def test_crops_of_a_large_tiff_are_those_of_the_image_decoded_whole(tiff_folder, large, monkeypatch):
    assert isinstance(rows_for_crops(load(tiff_folder))[0]["image"], regions.BlockPixels)
    by_blocks = crops(load(tiff_folder))
    monkeypatch.setattr(regions, "LARGE_PIXELS", 1 << 24)
    assert isinstance(rows_for_crops(load(tiff_folder))[0]["image"], np.ndarray)
    assert_equal_batches(by_blocks, crops(load(tiff_folder)))


def test_a_crop_reads_a_small_part_of_a_large_tiff(tiff_folder, large, monkeypatch):
    read, cut = [], tiff_blocks.TiffBlocks.cut
    monkeypatch.setattr(
        tiff_blocks.TiffBlocks, "cut", lambda self, rows, columns: read.append(rows) or cut(self, rows, columns)
    )
    sample = rows_for_crops(load(tiff_folder))[0]
    AUGMENTATION(sample["image"], sample["label"], np.random.default_rng(0))
    assert read
    assert all(rows.stop - rows.start <= 2 * 32 + 16 for rows in read)


def test_a_prepared_copy_in_tiles_has_the_same_samples_and_crops(tmp_path, tiff_folder, large):
    copy = tmp_path / "copy"
    spec = get_dataset_spec("folder", tiff_folder)
    prepare(spec, None, tiff_folder, SavedDataset(), output_dir=copy, predecode=True, tile_size=[64, 40])
    index = [json.loads(line) for line in (copy / "train.index.jsonl").read_text().splitlines()]
    assert [row["tile"] for row in index] == [[64, 40]] * 2
    assert (copy / "train.images").stat().st_size == 2 * 3 * HEIGHT * WIDTH
    for sample, other in zip(load(copy), load(tiff_folder), strict=True):
        assert sample["image_id"] == other["image_id"]
        assert np.array_equal(np.asarray(sample["image"]), np.asarray(other["image"]))
        assert np.array_equal(np.asarray(sample["label"]), np.asarray(other["label"]))
    assert isinstance(rows_for_crops(load(copy))[0]["image"], predecoded.MappedTiles)
    assert_equal_batches(crops(load(copy)), crops(load(tiff_folder)))
    assert_equal_batches(
        crops(cut_into_tiles(load(copy), (70, 90), 10)), crops(cut_into_tiles(load(tiff_folder), (70, 90), 10))
    )


def test_the_first_tile_of_the_copy_is_stored_first(tmp_path, tiff_folder):
    copy = tmp_path / "copy"
    spec = get_dataset_spec("folder", tiff_folder)
    prepare(spec, ["train"], tiff_folder, SavedDataset(), output_dir=copy, predecode=True, tile_size=[64, 40])
    image = np.asarray(read_image(tiff_folder / "train/images/0.tif"))
    stored = np.fromfile(copy / "train.images", np.uint8)
    assert np.array_equal(stored[: 64 * 40 * 3], image[:64, :40].ravel())
    assert np.array_equal(stored[64 * WIDTH * 3 :][: 64 * 40 * 3], image[64:128, :40].ravel())


def test_images_that_are_not_larger_than_a_tile_are_copied_as_before(tmp_path, tiff_folder):
    spec = get_dataset_spec("folder", tiff_folder)
    for name, tile_size in (("plain", None), ("tiles", [HEIGHT, WIDTH])):
        prepare(
            spec, ["train"], tiff_folder, SavedDataset(), output_dir=tmp_path / name, predecode=True,
            tile_size=tile_size,
        )  # fmt: skip
    for file in ("train.images", "train.labels", "train.index.jsonl"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "tiles" / file).read_bytes()


@pytest.mark.parametrize(
    ("side", "tile", "overlap"), [(100, 30, 0), (100, 30, 12), (100, 100, 0), (7, 30, 5), (61, 30, 29)]
)
def test_tiles_cover_every_pixel_and_end_at_the_border(side, tile, overlap):
    starts = tile_starts(side, tile, overlap)
    covered = np.zeros(side, int)
    for start in starts:
        assert start >= 0 and (start + tile <= side or start == 0)
        covered[start : start + tile] += 1
    assert covered.min() >= 1
    assert all(second - first <= tile - overlap for first, second in zip(starts, starts[1:], strict=False))


def test_every_tile_is_a_sample_that_shows_its_place(tiff_folder, large):
    tiles = cut_into_tiles(load(tiff_folder), (64, 100), 20)
    places = [(top, left) for top in (0, 44, 86) for left in (0, 80, 110)]
    assert [tile["image_id"] for tile in tiles] == [f"{n}@{top},{left}" for n in (0, 1) for top, left in places]
    whole = np.asarray(read_image(tiff_folder / "train/images/1.tif"))
    for tile, (top, left) in zip(list(tiles)[9:], places, strict=True):
        assert np.array_equal(np.asarray(tile["image"]), whole[top : top + 64, left : left + 100])
        assert tile["label"].size == (100, 64)


def test_validation_tiles_show_every_pixel_once(tiff_folder, large):
    tiles = cut_into_tiles(load(tiff_folder, "validation"), (64, 100))
    counted = pixels_of_classes(tiles, 3, show_progress=False).sum(axis=0)
    whole = pixels_of_classes(load(tiff_folder, "validation"), 3, show_progress=False).sum(axis=0)
    assert counted.tolist() == whole.tolist()
    assert counted.sum() == 2 * HEIGHT * WIDTH


@pytest.mark.parametrize(("tile", "heights", "widths"), [((149, 209), [75], [105]), ((50, 100), [50], [70])])
def test_validation_tiles_have_nearly_the_same_size(tiff_folder, large, tile, heights, widths):
    tiles = cut_into_tiles(load(tiff_folder, "validation"), tile)  # the rest of one pixel would be too small
    sizes = [tile["image"].size for tile in tiles]
    assert sorted({height for _, height in sizes}) == heights
    assert sorted({width for width, _ in sizes}) == widths
    uneven = cut_into_tiles(load(tiff_folder, "validation"), (40, 100))
    assert {tile["image"].size for tile in uneven} == {(70, 37), (70, 38)}


def test_an_epoch_shows_every_tile_once_and_a_resumed_epoch_draws_the_same(tiff_folder, large):
    tiles = cut_into_tiles(load(tiff_folder), (64, 100), 20)
    batches = crops(tiles)
    assert sum(len(labels) for _, labels in batches) == len(tiles) == 18
    assert_equal_batches(batches, crops(tiles, num_workers=2))
    loader = training_loader(tiles, AUGMENTATION, batch_size=2, seed=3, num_workers=0)
    loader.sampler.start = 6
    rest = [(batch["pixel_values"].numpy(), batch["labels"].numpy()) for batch in loader]
    assert_equal_batches(rest, batches[3:])


def test_small_images_of_any_format_can_be_tiled(tmp_path):
    folder = write(tmp_path / "jpg", "jpg")
    tiles = cut_into_tiles(load(folder), (64, 100), 0)
    whole = np.asarray(read_image(folder / "train/images/0.jpg"))
    assert np.array_equal(np.asarray(tiles[4]["image"]), whole[64:128, 100:200])
    assert crops(tiles)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_large_images_without_labels_are_refused_with_a_remedy_that_needs_no_labels(
    tmp_path, tiff_folder, large, suffix
):
    folder = write(tmp_path / suffix, suffix)
    with pytest.raises(UsageError, match=rf"0.{suffix} has 210x150 pixels .*; save it as a TIFF in tiles") as refusal:
        cut_into_tiles(index_folder(folder / "train/images"), (64, 100), 0)
    assert "predecode" not in str(refusal.value)
    assert len(cut_into_tiles(index_folder(tiff_folder / "train/images"), (64, 100), 0)) == 18


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_large_files_that_every_tile_would_decode_whole_are_refused_with_the_command(tmp_path, large, suffix):
    folder = write(tmp_path / suffix, suffix)
    with pytest.raises(UsageError, match=rf"0.{suffix} has 210x150 pixels .*`msctr prepare --predecode --tile_size"):
        cut_into_tiles(load(folder), (64, 100), 0)
    spec = get_dataset_spec("folder", folder)
    prepare(spec, None, folder, SavedDataset(), output_dir=tmp_path / "copy", predecode=True, tile_size=[64, 64])
    assert_equal_batches(crops(load(tmp_path / "copy")), crops(load(folder)))
    assert crops(cut_into_tiles(load(tmp_path / "copy"), (64, 100), 0))


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (4, np.uint8), (7, np.uint16)])
def test_tiles_of_images_with_channels_keep_their_values(tmp_path, channels, dtype, monkeypatch):
    folder = write(tmp_path / "npy", "png", count=1)
    values = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, channels)).astype(dtype)
    for split in ("train", "validation"):
        (folder / split / "images/0.png").unlink()
        np.save(folder / split / "images/0.npy", values)
    dataset = load_segmentation_dataset("folder", "train", folder, num_channels=channels)
    tile = cut_into_tiles(dataset, (64, 100), 0)[4]
    assert np.array_equal(tile["image"], values[64:128, 100:200])
    assert tile["image"].dtype == dtype
    assert tile["label"].size == (100, 64)
    monkeypatch.setattr("msctr_hf.data.tiles.LARGE_PIXELS", 5000)
    with pytest.raises(UsageError, match=r"0.npy has 210x150 .*save it in parts, since with `num_channels` no image"):
        cut_into_tiles(dataset, (64, 100), 0)


def test_labels_of_another_size_and_unknown_values_are_refused_when_they_are_read(tiff_folder, large):
    label = tiff_folder / "train/labels/0.tif"
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[140, 200] = 9
    Image.fromarray(values).save(label, compression="tiff_lzw", tiffinfo={278: 8})
    sample = rows_for_crops(load(tiff_folder))[0]
    assert sample["label"][0:50, 0:50].max() == 0
    with pytest.raises(UsageError, match=r"0.tif: label values \[9\] are not listed"):
        sample["label"][130:150, 190:210]
    Image.fromarray(values[:100]).save(label, compression="tiff_lzw", tiffinfo={278: 8})
    with pytest.raises(UsageError, match="0.tif is 210x100 pixels but its image .*0.tif is 210x150"):
        rows_for_crops(load(tiff_folder))[0]


def test_scenes_that_are_drawn_on_demand_are_not_tiled():
    with pytest.raises(UsageError, match="`tile_size` needs image files"):
        cut_into_tiles(load_segmentation_dataset("synthetic_scenes", "train"), (64, 64), 0)


def test_settings_of_tiles_that_contradict_each_other_are_refused(tmp_path, tiff_folder):
    with pytest.raises(UsageError, match="`tile_overlap` needs `tile_size`"):
        DataSettings(tile_overlap=3)
    with pytest.raises(UsageError, match="`tile_overlap` must be smaller .*got 64"):
        DataSettings(tile_size=[64, 100], tile_overlap=64)
    with pytest.raises(UsageError, match="leave `streaming` out"):
        DataSettings(tile_size=[64, 64], streaming=True)
    with pytest.raises(UsageError, match="`resize_shorter_side=100` would resize every tile of `tile_size` alone"):
        DataSettings(tile_size=[64, 64], resize_shorter_side=100)
    spec = get_dataset_spec("folder", tiff_folder)
    with pytest.raises(UsageError, match="add `predecode`"):
        prepare(spec, None, tiff_folder, SavedDataset(), output_dir=tmp_path / "copy", tile_size=[64, 64])


def test_tiles_of_a_copy_do_not_repeat_its_files_and_are_those_of_the_folder(tmp_path):
    folder, copy = write(tmp_path / "png", "png"), tmp_path / "copy"
    prepare(get_dataset_spec("folder", folder), None, folder, SavedDataset(), output_dir=copy)
    tiles = cut_into_tiles(load(copy), (20, 20), 0)
    assert len(tiles) == 176
    assert tiles.data.nbytes < 100 * len(tiles)  # a file has 95,000 bytes
    assert_equal_batches(crops(tiles, num_workers=1), crops(cut_into_tiles(load(folder), (20, 20), 0)))


def test_a_copy_that_stores_other_tiles_is_refused_and_not_taken_for_complete(tmp_path):
    folder, copy = write(tmp_path / "png", "png"), tmp_path / "copy"
    spec = get_dataset_spec("folder", folder)
    prepare(spec, ["train"], folder, SavedDataset(), output_dir=copy, predecode=True)
    with pytest.raises(UsageError, match=r"`tile_size`: .*copy stores 0 whole and not in tiles of 64 x 40 pixels"):
        prepare(spec, ["train"], folder, SavedDataset(), output_dir=copy, predecode=True, tile_size=[64, 40])
    prepare(spec, ["train"], folder, SavedDataset(), output_dir=copy, predecode=True, tile_size=[HEIGHT, WIDTH])
