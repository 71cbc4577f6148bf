"""A region of a TIFF is decoded from its blocks to the pixels that the whole file has, and nothing else is read."""

import itertools
from io import BytesIO

import numpy as np
import pytest
import tifffile
from PIL import Image

from msctr_hf.data import tiff_blocks as module
from msctr_hf.data.tiff_blocks import tiff_blocks

HEIGHT, WIDTH = 61, 83
LARGEST = 1 << 24
ROWS_PER_STRIP = 278


def pixels(channels=3):
    """Draw smooth pixels, (H, W, channels) uint8, which survive compression with loss."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, channels), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((WIDTH, HEIGHT))) for each in noise.transpose(2, 0, 1)], 2
    )


def assert_regions_equal_the_whole(path):
    with Image.open(path) as image:
        image.load()
        whole, mode = np.asarray(image), image.mode
    blocks = tiff_blocks(path, LARGEST)
    assert blocks.size == (HEIGHT, WIDTH)
    random = np.random.default_rng(1)
    for _ in range(6):
        top, left = int(random.integers(HEIGHT)), int(random.integers(WIDTH))
        bottom, right = int(random.integers(top + 1, HEIGHT + 1)), int(random.integers(left + 1, WIDTH + 1))
        data, first_row, first_column = blocks.cut(slice(top, bottom), slice(left, right))
        with Image.open(BytesIO(data)) as image:
            image.load()
            part = np.asarray(image)
        assert image.mode == mode
        part = part[top - first_row : bottom - first_row, left - first_column : right - first_column]
        assert np.array_equal(part, whole[top:bottom, left:right])


@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        *itertools.product(["RGB", "RGBA", "L", "P", "I;16"], [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]),
        ("CMYK", None),
        ("1", None),
        ("1", "group4"),
        ("RGB", "jpeg"),
        ("L", "jpeg"),
    ],
)
def test_regions_of_strips_equal_the_whole_image(tmp_path, mode, compression):
    if mode == "I;16":
        image = Image.fromarray(pixels(1)[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels(4)).convert("RGB").convert(mode)
    image.save(tmp_path / "a.tif", compression=compression, tiffinfo={ROWS_PER_STRIP: 16})
    assert_regions_equal_the_whole(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("compression", "byteorder", "bigtiff", "planar", "dtype"),
    [
        *itertools.product([None, "deflate"], "<>", [False], ["contig"], ["uint8", "uint16"]),
        *itertools.product([None, "deflate"], "<>", [False], ["separate"], ["uint8"]),
        (None, "<", True, "contig", "uint16"),
        ("deflate", "<", True, "separate", "uint8"),
    ],
)
@pytest.mark.parametrize("tile", [(32, 16), None])
def test_regions_of_another_writers_tiles_and_strips_equal_the_whole_image(
    tmp_path, compression, byteorder, bigtiff, planar, dtype, tile
):
    image = pixels().astype(dtype) * (257 if dtype == "uint16" else 1)
    image = image.transpose(2, 0, 1) if planar == "separate" else image
    options = {"tile": tile} if tile else {"rowsperstrip": 13}
    tifffile.imwrite(
        tmp_path / "a.tif", image, photometric="rgb", planarconfig=planar, compression=compression,
        byteorder=byteorder, bigtiff=bigtiff, **options,
    )  # fmt: skip
    assert_regions_equal_the_whole(tmp_path / "a.tif")


def test_only_the_blocks_of_the_region_are_read(tmp_path, monkeypatch):
    Image.fromarray(pixels()).save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo={ROWS_PER_STRIP: 10})
    read = []
    monkeypatch.setattr(module, "_read", lambda file, offset, length: read.append(offset) or b"")
    blocks = tiff_blocks(tmp_path / "a.tif", LARGEST)
    blocks.cut(slice(19, 21), slice(0, 5))
    assert read == [offset for offset, _ in blocks.places[1:3]]
    read.clear()
    Image.fromarray(pixels()).save(tmp_path / "b.tif", tiffinfo={ROWS_PER_STRIP: 10})
    blocks = tiff_blocks(tmp_path / "b.tif", LARGEST)
    blocks.cut(slice(25, 26), slice(0, 5))
    assert read == [blocks.places[2][0] + 5 * WIDTH * 3]


def test_files_that_are_turned_or_have_too_large_blocks_or_are_no_tiff_are_not_cut(tmp_path):
    image = Image.fromarray(pixels())
    image.save(tmp_path / "one_strip.tif", compression="tiff_lzw", tiffinfo={ROWS_PER_STRIP: HEIGHT})
    assert tiff_blocks(tmp_path / "one_strip.tif", HEIGHT * WIDTH) is not None
    assert tiff_blocks(tmp_path / "one_strip.tif", HEIGHT * WIDTH - 1) is None
    image.save(tmp_path / "turned.tif", tiffinfo={274: 6})
    assert tiff_blocks(tmp_path / "turned.tif", LARGEST) is None
    image.save(tmp_path / "png.tif", format="PNG")
    assert tiff_blocks(tmp_path / "png.tif", LARGEST) is None


def test_a_file_that_was_written_again_is_not_taken_for_the_former(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.tif")
    assert tiff_blocks(tmp_path / "a.tif", LARGEST).size == (HEIGHT, WIDTH)
    Image.fromarray(pixels()[:20]).save(tmp_path / "a.tif")
    assert tiff_blocks(tmp_path / "a.tif", LARGEST).size == (20, WIDTH)
