"""Files of any number of channels come back with the values that were written."""

import builtins
import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from msctr_hf.data.channels import Channels, pillow_keeps_values
from msctr_hf.data.images import read_image, read_image_file, read_pair, to_channels
from msctr_hf.data.labels import LabelMapping
from msctr_hf.data.orientation import turned
from msctr_hf.errors import UsageError

MAPPING = LabelMapping({0: 0, 1: 1}, frozenset())


def noise(count, dtype=np.uint8, size=(9, 13)):
    random = np.random.default_rng(count)
    if np.dtype(dtype).kind == "f":
        return random.normal(0, 1e4, (*size, count)).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, (*size, count), dtype=dtype, endpoint=True)


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile")


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "<u2", "int32", "float32"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16])
def test_arrays_of_numpy_keep_values_and_types(tmp_path, count, dtype):
    pixels = noise(count, np.dtype(dtype).newbyteorder("="))
    np.save(tmp_path / "image.npy", pixels.astype(dtype))
    read = read_image(tmp_path / "image.npy", Channels(count, pixels.dtype.name))
    assert read.dtype == pixels.dtype
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize(
    ("stored", "dtype"), [("int64", "int32"), ("int16", "int32"), ("uint32", "int32"), ("float64", "float32")]
)
def test_other_types_become_int32_or_float32(tmp_path, stored, dtype):
    pixels = (noise(2, np.uint16) // 2).astype(stored)
    np.save(tmp_path / "image.npy", pixels)
    read = read_image(tmp_path / "image.npy", Channels(2))
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("count", [1, 3, 4, 7])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
def test_tiffs_of_samples_planes_and_pages_keep_values(tmp_path, tifffile, count, dtype, layout):
    pixels, path = noise(count, dtype), tmp_path / "image.tif"
    if layout == "pages":
        with tifffile.TiffWriter(path) as file:
            for channel in range(count):
                file.write(np.ascontiguousarray(pixels[..., channel]), photometric="minisblack")
    else:
        stored = np.ascontiguousarray(pixels if layout == "contig" else pixels.transpose(2, 0, 1))
        planes = {"planarconfig": layout} if count > 1 else {}
        tifffile.imwrite(path, stored.squeeze(), photometric="minisblack", compression="zlib", **planes)
    read = read_image(path, Channels(count))
    np.testing.assert_array_equal(read, pixels)
    assert read.dtype == (np.int32 if dtype == np.int16 else dtype)


def test_a_tiff_of_one_band_and_16_bits_needs_no_tifffile(tmp_path, monkeypatch):
    hide(monkeypatch, "tifffile")
    pixels = noise(1, np.uint16)[..., 0]
    Image.fromarray(pixels).save(tmp_path / "image.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "image.tif", Channels(1))[..., 0], pixels)


def hide(monkeypatch, package):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == package:
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)


def test_a_tiff_of_many_bands_names_the_package_that_is_missing(tmp_path, tifffile, monkeypatch):
    tifffile.imwrite(tmp_path / "bands.tif", noise(7), photometric="minisblack", planarconfig="contig")
    hide(monkeypatch, "tifffile")
    with pytest.raises(UsageError, match=r"bands.tif: this TIFF needs .* pip install 'msctr_hf\[tiff\]'"):
        read_image(tmp_path / "bands.tif", Channels(7))


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pngs_keep_all_bits(tmp_path, count, dtype):
    pixels = noise(count, dtype)
    stored = pixels if count == 1 else pixels[..., [2, 1, 0, 3][:count]]  # OpenCV writes blue first
    assert cv2.imwrite(str(tmp_path / "image.png"), stored)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", Channels(count)), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_alpha_is_left_out_unless_there_are_four_channels(tmp_path, tifffile, dtype, ending):
    pixels, path = noise(4, dtype), tmp_path / f"image.{ending}"
    if ending == "tif":
        tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unassalpha"])
    else:
        assert cv2.imwrite(str(path), pixels[..., [2, 1, 0, 3]])
    np.testing.assert_array_equal(read_image(path, Channels(4)), pixels)
    np.testing.assert_array_equal(read_image(path, Channels(3)), pixels[..., :3])
    assert read_image(path).mode == "RGB"


def test_gray_of_a_pgm_with_fewer_than_16_bits_is_not_stretched(tmp_path):
    pixels = noise(1, np.uint16)[..., 0] // 16
    header = f"P5 {pixels.shape[1]} {pixels.shape[0]} 4095\n".encode()
    (tmp_path / "image.pgm").write_bytes(header + pixels.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "image.pgm", Channels(1))[..., 0], pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_arrays_are_turned_as_pillow_turns_images(orientation):
    from PIL import ImageOps

    pixels = noise(3)
    image = Image.fromarray(pixels)
    image.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(turned(pixels, orientation), expected)
    np.testing.assert_array_equal(to_channels(image, Channels(3)), expected)


def test_the_orientation_of_a_file_turns_images_of_channels_and_their_labels_fit(tmp_path):
    pixels = noise(3)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    Image.fromarray(np.zeros((13, 9), np.uint8)).save(tmp_path / "label.png")
    files = ({"path": str(tmp_path / f"{name}.png")} for name in ("image", "label"))
    pair = read_pair(*files, MAPPING, as_arrays=True, channels=Channels(3))
    np.testing.assert_array_equal(pair.image, np.rot90(pixels, 3))
    assert pair.tagged == "image"


@pytest.mark.parametrize(
    ("pixels", "channels", "reason"),
    [
        (np.zeros((4, 5, 3), np.uint8), Channels(4), "has 3 channels, but `num_channels` is 4"),
        (np.zeros((4, 6, 5), np.uint8), Channels(4), r"has 5 channels, .* is 4\. An array must be \(H, W, N\)"),
        (np.zeros((4, 5), np.uint8), Channels(2), "has 1 channel, but"),
        (np.zeros((4,), np.uint8), Channels(1), r"got the shape \(4,\)"),
        (np.zeros((4, 5, 1), bool), Channels(1), "got bool"),
        (np.full((4, 5), 2**40), Channels(1), "integers of more than 32 bits"),
        (np.array([[1.0, np.nan]]), Channels(1), "NaN or infinite"),
        (
            np.zeros((4, 5), np.uint16),
            Channels(1, "uint8"),
            "type uint16, but the network is for images of type uint8",
        ),
        (np.array([[{}]]), Channels(1), "cannot be read as an image: Object arrays cannot be loaded"),
    ],
)
def test_other_arrays_are_refused_by_name(tmp_path, pixels, channels, reason):
    np.save(tmp_path / "scene.npy", pixels, allow_pickle=True)
    with pytest.raises(UsageError, match=f"scene.npy.*{reason}"):
        read_image(tmp_path / "scene.npy", channels)


def test_a_damaged_array_or_tiff_is_refused_by_name(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, noise(4))
    for name, data in (("cut.npy", buffer.getvalue()[:200]), ("cut.tif", b"II*\0" + struct.pack("<I", 8))):
        with pytest.raises(UsageError, match=name):
            read_image_file({"path": name, "bytes": data}, Channels(4))


def test_the_limit_of_pixels_holds_for_tiffs_that_pillow_does_not_read(tmp_path, tifffile, monkeypatch):
    tifffile.imwrite(tmp_path / "bands.tif", noise(7), photometric="minisblack", planarconfig="contig")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(UsageError, match=r"exceeds limit of 100 pixels.*raise `max_image_pixels`"):
        read_image(tmp_path / "bands.tif", Channels(7))


def test_pillow_is_asked_only_for_tiffs_of_which_it_keeps_the_values(tmp_path, tifffile):
    for dtype, kept in ((np.uint8, True), (np.uint16, False)):
        tifffile.imwrite(tmp_path / "image.tif", noise(3, dtype), photometric="rgb")
        with Image.open(tmp_path / "image.tif") as header:
            assert pillow_keeps_values(header) is kept
    tifffile.imwrite(tmp_path / "image.tif", noise(1, np.uint32)[..., 0])
    with Image.open(tmp_path / "image.tif") as header:
        assert not pillow_keeps_values(header)


@pytest.mark.parametrize("count", [0, 17])
def test_the_number_of_channels_is_1_to_16(count):
    with pytest.raises(UsageError, match=rf"must be in \[1, 16\], got {count}"):
        Channels(count)
