import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from msctr_hf.data import images
from msctr_hf.data.images import read_sample
from msctr_hf.data.labels import LabelMapping
from msctr_hf.errors import UsageError

MAPPING = LabelMapping({value: value for value in range(5)})


def encode(array, kind="PNG", **options):
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": f"name.{kind.lower()}"}


def sample(size=(37, 53)):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (*size, 3), dtype=np.uint8), random.integers(0, 5, size, dtype=np.uint8)


@pytest.fixture(params=["fast decoders", "Pillow"])
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(images, "pyspng", None)
        monkeypatch.setattr(images, "simplejpeg", None)
    elif images.pyspng is None:
        pytest.skip("pyspng and simplejpeg are not installed")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("PNG", lambda image: image),
        ("JPEG", lambda image: image),
        ("PNG", lambda image: image[..., 0]),
        ("PNG", lambda image: np.dstack([image, image[..., :1]])),
        ("PNG", lambda image: image[..., 0].astype(np.uint16) * 257),
        ("TIFF", lambda image: image),
    ],
    ids=["png", "jpeg", "gray", "with alpha", "16 bits", "tiff"],
)
def test_arrays_for_crops_equal_the_images_that_pillow_decodes(decoder, kind, change):
    image, labels = sample()
    files = encode(change(image), kind), encode(labels)
    whole, train_ids = read_sample(*files, MAPPING)
    pixels, label_array = read_sample(*files, MAPPING, as_arrays=True)
    assert pixels.shape == (37, 53, 3)
    assert np.array_equal(pixels, np.asarray(whole))
    assert np.array_equal(label_array, np.asarray(train_ids))
    assert np.array_equal(np.asarray(train_ids), labels)


@pytest.mark.parametrize("chunk", [(b"gAMA", struct.pack(">I", 30_000)), (b"tRNS", struct.pack(">HHH", 1, 2, 3))])
def test_png_chunks_about_colors_do_not_change_pixels(decoder, chunk):
    image, labels = sample()
    image[:4] = (1, 2, 3)
    file = encode(image)
    name, data = chunk
    whole = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    file["bytes"] = file["bytes"][:33] + whole + file["bytes"][33:]
    assert np.array_equal(read_sample(file, encode(labels), MAPPING, as_arrays=True)[0], image)
    assert np.array_equal(np.asarray(read_sample(file, encode(labels), MAPPING)[0]), image)


def test_rotated_pngs_are_read_upright(decoder):
    image, labels = sample()
    exif = Image.Exif()
    exif[0x0112] = 3
    turned, _ = read_sample(encode(image, exif=exif), encode(labels), MAPPING, as_arrays=True)
    assert np.array_equal(turned, image[::-1, ::-1])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("cut", [40, 700, -60])
def test_a_damaged_image_is_refused_by_name(decoder, kind, cut):
    image, labels = sample()
    file = encode(image, kind)
    file["bytes"] = file["bytes"][:cut]
    for as_arrays in (True, False):
        with pytest.raises(UsageError, match=rf"name\.{kind.lower()} cannot be read as an image"):
            read_sample(file, encode(labels), MAPPING, as_arrays=as_arrays)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gray_labels_of_2_4_and_8_bits_are_read_as_values(decoder, bits):
    """This test writes the PNG chunk by chunk, because Pillow writes gray images with 8 bits only."""
    image, labels = sample((6, 8))
    labels = labels % 4
    packed = [b"\0" + bytes(int("".join(f"{v:0{bits}b}" for v in row[i : i + 8 // bits]), 2)
                            for i in range(0, 8, 8 // bits)) for row in labels]  # fmt: skip
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 8, 6, bits, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"".join(packed))),
        (b"IEND", b""),
    ]  # fmt: skip
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    file = {"bytes": png, "path": "gray.png"}
    assert np.array_equal(np.asarray(read_sample(encode(image), file, MAPPING)[1]), labels)
