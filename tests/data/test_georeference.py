"""Georeference and no-data values of GeoTIFF files are kept in labels and predictions."""

import sys
import warnings

import numpy as np
import pytest
import rasterio
import tifffile
import torch
import yaml
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin
from stored_images import SHOWN

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor, load_segmentation_dataset
from msctr_hf.data import georeference, regions
from msctr_hf.data.decoding import rows_for_crops, rows_of_labels
from msctr_hf.data.images import read_image
from msctr_hf.data.labels import LabelMapping
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.data.preparation import prepare
from msctr_hf.data.saved_source import SavedDataset
from msctr_hf.data.specs import DatasetSpec, Submission
from msctr_hf.errors import InputWarning, UsageError
from msctr_hf.evaluation.prediction import predict_files
from msctr_hf.evaluation.predictor import Predictor

SIZE = (48, 80)
TRANSFORM = from_origin(500_000, 5_600_000, 0.2, 0.2)


def write_geotiff(path, pixels, nodata=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"crs": "EPSG:32633", "transform": TRANSFORM, **options}
    with rasterio.open(
        path, "w", driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=pixels.shape[2],
        dtype=pixels.dtype, nodata=nodata, **{"photometric": "rgb", **settings},
    ) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))


def image_with_a_black_corner(dtype=np.uint8):
    """Draw an image without data in a corner, and a pixel of which only two channels are 0."""
    pixels = np.random.default_rng(0).integers(1, 256, (*SIZE, 3)).astype(dtype)
    pixels[:20, :30] = 0
    pixels[30, 40, :2] = 0
    return pixels


def bands_with_an_empty_corner(count, dtype, no_data):
    """Draw bands without data in a corner."""
    pixels = np.random.default_rng(count).integers(1, 120, (*SIZE, count)).astype(dtype)
    pixels[:20, :30] = no_data
    return pixels


@pytest.fixture
def folder(tmp_path):
    blocks = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    write_geotiff(tmp_path / "data/images/a.tif", image_with_a_black_corner(), nodata=0, **blocks)
    labels = np.random.default_rng(1).integers(0, 3, SIZE, dtype=np.uint8)
    (tmp_path / "data/labels").mkdir()
    Image.fromarray(labels).save(tmp_path / "data/labels/a.tif", compression="tiff_lzw", tiffinfo={278: 8})
    description = {"classes": ["a", "b", "c"], "splits": {"train": {"images": "images", "labels": "labels"}}}
    (tmp_path / "data/dataset.yaml").write_text(yaml.safe_dump(description))
    expected = labels.copy()
    expected[:20, :30] = 255
    return tmp_path / "data", expected


def test_labels_are_ignored_where_all_channels_have_the_no_data_value(folder):
    root, expected = folder
    dataset = load_segmentation_dataset("folder", "train", root)
    for rows in (dataset, rows_for_crops(dataset), rows_of_labels(dataset)):
        assert np.array_equal(np.asarray(rows[0]["label"]), expected)


def test_regions_of_a_large_image_are_ignored_in_the_same_places(folder, monkeypatch):
    root, expected = folder
    monkeypatch.setattr(regions, "LARGE_PIXELS", 1000)
    labels = rows_for_crops(load_segmentation_dataset("folder", "train", root))[0]["label"]
    assert isinstance(labels, regions.ValidLabels)
    assert np.array_equal(labels[10:25, 20:50], expected[10:25, 20:50])
    assert np.array_equal(regions.whole(labels), expected)


def test_a_no_data_value_of_16_bits_is_compared_before_values_are_divided(folder):
    root, expected = folder
    pixels = image_with_a_black_corner(np.uint16)  # all are 0 after the division
    write_geotiff(root / "images/a.tif", pixels, nodata=0)
    label = load_segmentation_dataset("folder", "train", root)[0]["label"]
    assert np.array_equal(np.asarray(label), expected)


KINDS = {
    "pixels": {"interleave": "pixel"},
    "bands": {"interleave": "band"},
    "big": {"bigtiff": "yes"},
    "big_endian": {"endianness": "big"},
    "big_and_big_endian": {"bigtiff": "yes", "endianness": "big"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("count", "dtype"),
    [(1, "int16"), (2, "uint8"), (2, "float32"), (3, "uint16"), (4, "int32"), (5, "uint8"), (13, "uint16")],
)
def test_tags_of_any_bands_types_and_layouts_are_found(tmp_path, count, dtype, kind):
    path, no_data = tmp_path / "a.tif", 0 if dtype.startswith("u") else -99
    pixels = bands_with_an_empty_corner(count, dtype, no_data)
    write_geotiff(path, pixels, nodata=no_data, photometric="minisblack", **KINDS[kind])
    assert georeference.is_georeferenced(path)
    for file in ({"path": str(path)}, {"path": None, "bytes": path.read_bytes()}):
        mask = georeference.no_data_of(file).mask(slice(5, 30), slice(10, 50))
        assert np.array_equal(mask, (pixels == no_data).all(axis=2)[5:30, 10:50])


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_state_nothing_have_no_tags(tmp_path, kind):
    pixels = bands_with_an_empty_corner(5, "uint16", 0)
    write_geotiff(tmp_path / "a.tif", pixels, photometric="minisblack", crs=None, transform=None, **KINDS[kind])
    assert not georeference.is_georeferenced(tmp_path / "a.tif")
    assert georeference.no_data_of({"path": str(tmp_path / "a.tif")}) is None


@pytest.mark.parametrize("length", [0, 3, 6, 12, 40])
def test_a_file_that_ends_early_has_no_tags(tmp_path, length):
    write_geotiff(tmp_path / "a.tif", image_with_a_black_corner(), nodata=0, bigtiff="yes")
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:length])
    assert not georeference.is_georeferenced(tmp_path / "b.tif")
    assert georeference.no_data_of({"bytes": (tmp_path / "b.tif").read_bytes()}) is None


def test_labels_and_predictions_of_many_bands_keep_no_data_and_place(folder, tmp_path, tiny_config):
    root, expected = folder
    pixels = bands_with_an_empty_corner(5, "uint16", 0)
    write_geotiff(root / "images/a.tif", pixels, nodata=0, photometric="minisblack")
    dataset = load_segmentation_dataset("folder", "train", root, num_channels=5)
    for rows in (dataset, rows_for_crops(dataset), rows_of_labels(dataset)):
        assert np.array_equal(np.asarray(rows[0]["label"]), expected)
    config = tiny_config()
    config.backbone_config.num_channels = 5
    model = MsctrForSemanticSegmentation(config).eval()
    bands = {"num_channels": 5, "value_type": "uint16", "image_mean": [0.5] * 5, "image_std": [0.2] * 5}
    predict_files(Predictor(model, MsctrImageProcessor(**bands)), root / "images", tmp_path / "maps")
    with rasterio.open(tmp_path / "maps/a.tif") as file:
        assert (file.crs.to_epsg(), file.transform) == (32633, TRANSFORM)
        assert np.array_equal(file.read(1) == 255, expected == 255)


def test_a_copy_that_holds_the_files_ignores_the_same_pixels(folder, tmp_path):
    root, expected = folder
    spec = get_dataset_spec("folder", root)
    prepare(spec, ["train"], root, SavedDataset(), output_dir=tmp_path / "copy")
    dataset = load_segmentation_dataset("folder", "train", tmp_path / "copy")
    for rows in (dataset, rows_for_crops(dataset), rows_of_labels(dataset)):
        assert np.array_equal(np.asarray(rows[0]["label"]), expected)


def test_a_pre_decoded_copy_warns_that_images_without_labels_are_valid_everywhere(folder, tmp_path):
    root, expected = folder
    prepare(
        get_dataset_spec("folder", root), ["train"], root, SavedDataset(), output_dir=tmp_path / "a", predecode=True
    )
    with pytest.warns(InputWarning, match="does not store where images have no data, so all .* count as valid"):
        unlabeled = load_segmentation_dataset("folder", "train", tmp_path / "a", with_labels=False)
    assert not unlabeled[0]["label"][0 : SIZE[0], 0 : SIZE[1]].any()
    write_geotiff(root / "images/a.tif", image_with_a_black_corner())
    prepare(
        get_dataset_spec("folder", root), ["train"], root, SavedDataset(), output_dir=tmp_path / "b", predecode=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        load_segmentation_dataset("folder", "train", tmp_path / "b", with_labels=False)
        labeled = load_segmentation_dataset("folder", "train", tmp_path / "a")
    assert np.array_equal(np.asarray(labeled[0]["label"]), expected)


def test_a_damaged_image_is_refused_by_name_where_only_labels_are_read(folder):
    root, _ = folder
    path = root / "images/a.tif"
    write_geotiff(
        path, image_with_a_black_corner(), nodata=0, compress="deflate", tiled=True, blockxsize=16, blockysize=16
    )
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UsageError, match=r"no-data value of .*a.tif cannot be read"):
        rows_of_labels(load_segmentation_dataset("folder", "train", root))[0]


def test_without_rasterio_all_pixels_count_and_a_warning_says_so(folder, monkeypatch):
    root, expected = folder
    monkeypatch.setitem(sys.modules, "rasterio", None)
    dataset = load_segmentation_dataset("folder", "train", root)
    with pytest.warns(InputWarning, match=r'no-data value of a GeoTIFF is not read.*pip install "msctr_hf\[geo\]"'):
        label = np.asarray(dataset[0]["label"])
    assert (label != 255).all()
    with pytest.warns(InputWarning, match="georeference of a GeoTIFF is not kept"):
        assert not georeference.is_georeferenced(root / "images/a.tif")


def test_the_prediction_of_a_geotiff_is_a_geotiff_in_the_same_place(folder, tmp_path, tiny_config):
    root, expected = folder
    read_image(root / "images/a.tif").save(root / "images/b.png")
    torch.manual_seed(0)
    model = MsctrForSemanticSegmentation(tiny_config()).eval()
    predictor = Predictor(model, MsctrImageProcessor())
    assert predict_files(predictor, root / "images", tmp_path / "maps") == 2
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        "a.tif", "a_overlay.png", "b.png", "b_overlay.png"
    ]  # fmt: skip
    plain = np.asarray(Image.open(tmp_path / "maps/b.png"))
    with rasterio.open(tmp_path / "maps/a.tif") as file:
        assert file.crs.to_epsg() == 32633
        assert file.transform == TRANSFORM
        assert file.nodata == 255
        labels, colors = file.read(1), file.colormap(1)
    assert np.array_equal(labels, np.where(expected == 255, 255, plain))
    assert [colors[label][:3] for label in range(3)] == [tuple(color) for color in predictor.palette[:3]]


def turn(path, orientation):
    """Give a GeoTIFF an orientation, which rasterio neither writes nor reads."""
    with tifffile.TiffFile(path) as file:
        pixels = file.asarray()
        kept = [tag for tag in file.pages[0].tags.values() if tag.code > 33000]  # of GeoTIFF and GDAL
        tags = [(tag.code, tag.dtype, 0 if tag.dtype == 2 else tag.count, tag.value, True) for tag in kept]
    orientation_tag = (274, tifffile.DATATYPE.SHORT, 1, orientation, True)
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=[*tags, orientation_tag])


@pytest.mark.parametrize("orientation", SHOWN)
def test_labels_of_a_turned_geotiff_are_at_their_place_on_the_map(folder, tmp_path, tiny_config, orientation):
    root, expected = folder
    turn(root / "images/a.tif", orientation)
    read_image(root / "images/a.tif").save(root / "images/b.png")
    torch.manual_seed(0)
    predictor = Predictor(MsctrForSemanticSegmentation(tiny_config()).eval(), MsctrImageProcessor())
    predict_files(predictor, root / "images", tmp_path / "maps")
    upright = np.asarray(Image.open(tmp_path / "maps/b.png"))
    with rasterio.open(tmp_path / "maps/a.tif") as file:
        assert (file.transform, file.crs.to_epsg(), file.shape) == (TRANSFORM, 32633, SIZE)
        stored = file.read(1)
    assert np.array_equal(stored == 255, expected == 255)
    shown = SHOWN[orientation](stored)
    assert np.array_equal(shown, np.where(shown == 255, 255, upright))


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("drawn_as_stored", [False, True])
def test_labels_of_a_turned_image_are_ignored_where_it_has_no_data(folder, orientation, drawn_as_stored, monkeypatch):
    root, expected = folder
    turn(root / "images/a.tif", orientation)
    # labels of this size could not belong to the image as viewers show it
    if not (drawn_as_stored and orientation >= 5):
        expected = SHOWN[orientation](expected)
    drawn = np.where(expected == 255, 1, expected).astype(np.uint8)
    Image.fromarray(drawn).save(root / "labels/a.tif", compression="tiff_lzw", tiffinfo={278: 8})
    dataset = load_segmentation_dataset("folder", "train", root)
    for rows in (dataset, rows_for_crops(dataset), rows_of_labels(dataset)):
        assert np.array_equal(np.asarray(rows[0]["label"]), expected)
    monkeypatch.setattr(regions, "LARGE_PIXELS", 1000)
    files = ({"path": str(root / name / "a.tif")} for name in ("labels", "images"))
    labels = regions.read_large_labels(next(files), LabelMapping({0: 0, 1: 1, 2: 2}), next(files))
    assert isinstance(labels, regions.ValidLabels)
    assert np.array_equal(regions.whole(labels), expected)
    assert np.array_equal(labels[5:30, 10:40], expected[5:30, 10:40])


def test_pixels_without_data_are_marked_without_a_georeference_too_but_not_for_a_test_server(
    folder, tmp_path, tiny_config
):
    root, expected = folder
    write_geotiff(root / "images/a.tif", image_with_a_black_corner(), nodata=0, crs=None, transform=None)
    predictor = Predictor(MsctrForSemanticSegmentation(tiny_config()).eval(), MsctrImageProcessor())
    predict_files(predictor, root / "images", tmp_path / "maps")
    labels = np.asarray(Image.open(tmp_path / "maps/a.png"))
    assert np.array_equal(labels == 255, expected == 255)
    drawn = np.asarray(Image.open(tmp_path / "maps/a_overlay.png"))[: SIZE[0]]
    assert not drawn[:20, :30].any()  # black, of a black image: not the color of a class
    names, values = predictor.class_names, {value: value for value in range(len(predictor.class_names))}
    spec = DatasetSpec("own", names, predictor.palette, None, values, submission=Submission())
    predict_files(predictor, root / "images", tmp_path / "submission", submission_for=spec)
    sent = np.asarray(Image.open(tmp_path / "submission/a.png"))
    assert (sent < len(names)).all()
    assert np.array_equal(sent[expected != 255], labels[expected != 255])


def test_a_geotiff_is_not_overwritten_by_its_prediction(folder, tiny_config):
    root, _ = folder
    predictor = Predictor(MsctrForSemanticSegmentation(tiny_config()).eval(), MsctrImageProcessor())
    with pytest.raises(ValueError, match="would overwrite a.tif"):
        predict_files(predictor, root / "images/a.tif", root / "images")


def test_ground_control_points_are_kept(tmp_path):
    corners = ((0, 0), (0, 79), (47, 0))
    points = [GroundControlPoint(row, column, 10.0 + column, 50.0 - row) for row, column in corners]
    write_geotiff(tmp_path / "a.tif", image_with_a_black_corner(), transform=None, gcps=points, crs="EPSG:4326")
    georeference.save_like(tmp_path / "a.tif", np.zeros(SIZE, np.uint8), tmp_path / "b.tif")
    with rasterio.open(tmp_path / "b.tif") as file:
        kept, crs = file.gcps
        assert crs.to_epsg() == 4326
        assert [(point.row, point.x) for point in kept] == [(point.row, point.x) for point in points]
        assert file.nodata is None
