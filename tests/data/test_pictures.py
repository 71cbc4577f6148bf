import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from msctr_hf.data import pictures
from msctr_hf.data.labels import LabelMapping
from msctr_hf.data.pictures import TopOfPng, read_sample

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
        monkeypatch.setattr(pictures, "pyspng", None)
        monkeypatch.setattr(pictures, "simplejpeg", None)
    elif pictures.pyspng is None:
        pytest.skip("pyspng and simplejpeg are not installed")


@pytest.mark.parametrize("stop", [1, 2, 20, 36, 37, 99])
def test_top_of_a_png_equals_the_whole(decoder, stop):
    image, labels = sample()
    top, _ = read_sample(encode(image), encode(labels), MAPPING, partly=True)
    assert isinstance(top, TopOfPng)
    assert np.array_equal(top.region(slice(stop // 2, stop), slice(3, 40)), image[stop // 2 : stop, 3:40])


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
    ids=["png", "jpeg", "grey", "with alpha", "16 bits", "tiff"],
)
def test_read_in_parts_equals_read_whole(decoder, kind, change):
    image, labels = sample()
    files = encode(change(image), kind), encode(labels)
    whole, train_ids = read_sample(*files, MAPPING)
    partly, partly_ids = read_sample(*files, MAPPING, partly=True)
    everything = slice(0, 37), slice(0, 53)
    assert partly.size == partly_ids.size == (53, 37)
    assert np.array_equal(partly.region(*everything), np.asarray(whole))
    assert np.array_equal(partly_ids.region(*everything), np.asarray(train_ids))
    assert np.array_equal(np.asarray(train_ids), labels)


@pytest.mark.parametrize("chunk", [(b"gAMA", struct.pack(">I", 30_000)), (b"tRNS", struct.pack(">HHH", 1, 2, 3))])
def test_chunks_about_colours_change_no_pixel(decoder, chunk):
    image, labels = sample()
    image[:4] = (1, 2, 3)
    file = encode(image)
    name, data = chunk
    whole = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    file["bytes"] = file["bytes"][:33] + whole + file["bytes"][33:]
    top, _ = read_sample(file, encode(labels), MAPPING, partly=True)
    assert np.array_equal(top.region(slice(0, 37), slice(0, 53)), image)
    assert np.array_equal(np.asarray(read_sample(file, encode(labels), MAPPING)[0]), image)


def test_turned_pngs_are_read_whole(decoder):
    image, labels = sample()
    exif = Image.Exif()
    exif[0x0112] = 3
    turned, _ = read_sample(encode(image, exif=exif), encode(labels), MAPPING, partly=True)
    assert np.array_equal(turned.region(slice(0, 37), slice(0, 53)), image[::-1, ::-1])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("cut", [40, 700, -60])
def test_damaged_picture_is_named_when_its_rows_are_read(decoder, kind, cut):
    image, labels = sample()
    file = encode(image, kind)
    file["bytes"] = file["bytes"][:cut]
    with pytest.raises(ValueError, match=rf"name\.{kind.lower()} cannot be read"):
        top, _ = read_sample(file, encode(labels), MAPPING, partly=True)
        top.region(slice(0, 37), slice(0, 53))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_grey_labels_of_few_bits_are_values(decoder, bits):
    """Written chunk by chunk, as Pillow writes grey pictures with 8 bits only."""
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
    file = {"bytes": png, "path": "grey.png"}
    assert np.array_equal(np.asarray(read_sample(encode(image), file, MAPPING)[1]), labels)
