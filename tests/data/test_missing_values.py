"""Values without data are no part of statistics, and neither crops nor predictions see them."""

import numpy as np
import pytest
import rasterio
import torch
import yaml
from PIL import Image, ImageOps

from msctr_hf import MsctrImageProcessor, load_segmentation_dataset
from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.data.channel_statistics import measure_channels
from msctr_hf.data.channels import Channels
from msctr_hf.data.decoding import rows_for_crops
from msctr_hf.data.images import read_channels, read_image, read_image_file, to_channels
from msctr_hf.data.loading import get_dataset_spec, replace_channels
from msctr_hf.data.preparation import channels_of_check, prepare
from msctr_hf.data.saved_source import SavedDataset
from msctr_hf.data.tiff_tags import no_data_value
from msctr_hf.data.tiles import cut_into_tiles
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.image_preparation import ImagePreparation

SIZE = (30, 44)
LOWEST = float(np.finfo(np.float32).min)  # of elevation models, -3.4e38
CASES = [
    ("int16", -9999, 3), ("float32", LOWEST, 5), ("float32", np.nan, 2), ("float32", -9999, 1), ("uint16", 65535, 4),
]  # fmt: skip


def draw(count, dtype, no_data, seed=0):
    """Draw values 300 +- 20, without data in a corner and, except for uint16, at one more pixel in a channel."""
    pixels = np.random.default_rng(seed).normal(300, 20, (*SIZE, count)).astype(dtype)
    pixels[:9, :13] = no_data
    if dtype != "uint16":  # whose values may all be measured, so that a single channel counts
        pixels[20, 30, 0] = no_data
    return pixels


def write(path, pixels, no_data, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=pixels.shape[2],
        dtype=pixels.dtype, nodata=no_data, crs="EPSG:32633", transform=rasterio.Affine(1, 0, 5, 0, -1, 9),
        **{"photometric": "minisblack", **options},
    ) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))


def read_masked(path):
    """Read values (H, W, N), and which of them rasterio masks."""
    with rasterio.open(path) as file:
        masked = file.read(masked=True).transpose(1, 2, 0)
    return masked.data, np.ma.getmaskarray(masked)


@pytest.fixture(params=CASES, ids=str)
def folder(request, tmp_path):
    dtype, no_data, count = request.param
    for number in range(3):
        pixels = draw(count, dtype, no_data, number)
        if number == 2:
            pixels[:] = no_data  # an image without any data
        write(tmp_path / f"images/{number}.tif", pixels, no_data)
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / f"labels/{number}.png")
    splits = {"train": {"images": "images", "labels": "labels"}}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({"classes": ["a", "b"], "splits": splits}))
    return tmp_path, dtype, no_data, count


def filled_by_hand(path):
    """Replace values without data by the mean of the others, value by value."""
    pixels, mask = read_masked(path)
    filled = pixels.copy()
    for channel in range(pixels.shape[2]):
        both = zip(pixels[..., channel].flat, mask[..., channel].flat, strict=True)
        valid = [float(value) for value, is_out in both if not is_out]
        mean = sum(valid) / len(valid) if valid else 0.0
        filled[..., channel][mask[..., channel]] = mean if pixels.dtype == np.float32 else round(mean)
    return filled


def test_values_without_data_become_the_mean_of_the_others(folder):
    root, dtype, no_data, count = folder
    for number in range(3):
        path = root / f"images/{number}.tif"
        expected = filled_by_hand(path)
        for file in ({"path": str(path)}, {"bytes": path.read_bytes()}):
            np.testing.assert_allclose(read_image_file(file, Channels(count)), expected, rtol=1e-6)


def test_statistics_leave_out_values_without_data(folder, tmp_path):
    root, dtype, no_data, count = folder
    measured = measure_channels(load_segmentation_dataset("folder", "train", root, num_channels=count), 0)
    values, masks = [], []
    for path in sorted((root / "images").iterdir()):
        for each, array in zip((values, masks), read_masked(path), strict=True):
            each.append(array.reshape(-1, count))
    values, masks = np.concatenate(values).astype(np.float64), np.concatenate(masks)
    expected = [values[~masks[:, channel], channel] for channel in range(count)]
    assert measured.pixels == tuple(map(len, expected))
    np.testing.assert_allclose(measured.means, [each.mean() for each in expected], rtol=1e-6)
    np.testing.assert_allclose(measured.variances, [each.var() for each in expected], rtol=1e-5)
    spec = get_dataset_spec("folder", root)
    prepare(replace_channels(spec, Channels(count)), ["train"], root, SavedDataset(), output_dir=tmp_path / "copy")
    assert channels_of_check(tmp_path / "copy", "train") == measured


def test_crops_and_predictions_see_neither_the_value_nor_a_mixture_with_it(folder):
    root, dtype, no_data, count = folder
    rows = rows_for_crops(load_segmentation_dataset("folder", "train", root, num_channels=count))
    statistics = measure_channels(rows, 0)
    colors = {"image_mean": statistics.image_mean, "image_std": statistics.image_std}
    augmentation = TrainingAugmentation(
        (24, 24), **colors, scale_range=(0.4, 0.7), color_jitter=False, channel_order=range(count),
        white=statistics.white,
    )  # fmt: skip
    processor = MsctrImageProcessor(
        num_channels=count, value_type=statistics.value_type, rescale_factor=1 / statistics.white, **colors
    )
    for number in range(2):
        image = rows[number]["image"]
        for seed in range(5):
            cropped, _ = augmentation(image, rows[number]["label"], np.random.default_rng(seed))
            assert cropped.abs().max() < 6
        predicted = ImagePreparation(processor)([read_image(root / f"images/{number}.tif", Channels(count))])
        assert predicted.abs().max() < 6
        whole = (torch.from_numpy(image.astype(np.float64)) / statistics.white).permute(2, 0, 1)
        mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in colors.values())
        torch.testing.assert_close(predicted[0].double(), (whole - mean) / std, rtol=1e-3, atol=1e-3)


def test_tiles_show_the_values_of_the_whole_image(folder):
    root, dtype, no_data, count = folder
    rows = load_segmentation_dataset("folder", "train", root, num_channels=count)
    tiles = cut_into_tiles(rows, (15, 22), 0)
    for number in range(3):
        parts = [tiles[4 * number + place]["image"] for place in range(4)]
        assert np.array_equal(np.block([[[parts[0]], [parts[1]]], [[parts[2]], [parts[3]]]]), rows[number]["image"])


@pytest.mark.parametrize(("dtype", "no_data"), [("float32", 0), ("uint16", 65535)])
def test_a_value_that_may_be_measured_counts_only_in_all_channels(tmp_path, dtype, no_data):
    pixels = draw(3, dtype, no_data)
    pixels[20, 30, 0] = no_data
    write(tmp_path / "a.tif", pixels, no_data)
    read = read_image(tmp_path / "a.tif", Channels(3))
    assert read[20, 30, 0] == no_data
    with rasterio.open(tmp_path / "a.tif") as file:
        has_data = file.dataset_mask() != 0
    assert np.array_equal(read[has_data], pixels[has_data])
    expected = pixels[has_data].mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(read[0, 0], expected if dtype == "float32" else expected.round(), rtol=1e-6)


def test_a_palette_is_not_compared_with_the_index_without_data(tmp_path):
    indices = np.random.default_rng(0).integers(0, 4, SIZE, np.uint8)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=SIZE[0], width=SIZE[1], count=1, dtype="uint8", nodata=0,
        photometric="palette", crs="EPSG:32633", transform=rasterio.Affine(1, 0, 5, 0, -1, 9),
    ) as file:  # fmt: skip
        file.write(indices, 1)
        file.write_colormap(1, {0: (9, 9, 9), 1: (0, 0, 0), 2: (5, 6, 7), 3: (8, 8, 8)})
    colors = np.array([(9, 9, 9), (0, 0, 0), (5, 6, 7), (8, 8, 8)], np.uint8)
    assert np.array_equal(read_image(tmp_path / "a.tif", Channels(3)), colors[indices])


def test_nan_is_refused_unless_the_file_states_it(tmp_path):
    for no_data in (None, -9999):
        write(tmp_path / "a.tif", draw(2, "float32", np.nan), no_data)
        with pytest.raises(UsageError, match=r"a.tif has values that are NaN .*or by the no-data value of a GeoTIFF"):
            read_image(tmp_path / "a.tif", Channels(2))


def test_an_image_of_pillow_is_read_as_its_file(tmp_path):
    write(tmp_path / "a.tif", draw(1, "float32", -9999), -9999)
    with Image.open(tmp_path / "a.tif") as image:
        assert np.array_equal(to_channels(image, Channels(1)), read_image(tmp_path / "a.tif", Channels(1)))


def test_gray_values_that_become_three_channels_are_filled_in_all(tmp_path):
    write(tmp_path / "a.tif", draw(1, "int16", -9999), -9999)
    one, three = (read_image(tmp_path / "a.tif", Channels(count)) for count in (1, 3))
    assert np.array_equal(three, one.repeat(3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_values_without_data_are_turned_with_the_image(tmp_path, orientation):
    tifffile = pytest.importorskip("tifffile")
    pixels, path = draw(5, "float32", -9999), tmp_path / "a.tif"
    tags = [(274, 3, 1, orientation, True), (42113, 2, 0, "-9999", True)]
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig", extratags=tags)
    image = Image.fromarray(((pixels == -9999).all(axis=2) * 255).astype(np.uint8))
    image.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image)) == 255
    read, missing = read_channels({"path": str(path)}, Channels(5))
    assert np.array_equal(missing.all(axis=2), expected)
    assert np.array_equal((read == read[expected][0]).all(axis=2), expected)


def test_a_tag_of_another_type_or_text_states_no_value():
    assert [no_data_value({42113: value}) for value in (None, b"none", b"-9999")] == [None, None, -9999]
