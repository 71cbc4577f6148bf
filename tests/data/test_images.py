"""Images, and labels of every lossless kind, are read as the values that their files store."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from stored_images import MAPPING, encode, sample, written

from msctr_hf.data.images import read_image, read_pair, read_raw_labels, read_sample, to_rgb
from msctr_hf.data.labels import LabelMapping
from msctr_hf.errors import UsageError


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


@pytest.mark.parametrize("kind", ["floats", "large floats", "integers", "negative integers"])
def test_images_of_more_than_16_bits_are_refused_by_name(decoder, kind, tmp_path):
    image, labels = sample()
    values = image[..., 0]
    stored = {
        "floats": values / np.float32(255), "large floats": values * np.float32(257),
        "integers": values.astype(np.int32) * 257, "negative integers": values.astype(np.int32) - 100,
    }[kind]  # fmt: skip
    file = {**encode(stored, "TIFF"), "path": "scan.tif"}
    reads = [
        lambda: read_sample(file, encode(labels), MAPPING), lambda: read_image(written(file, tmp_path)),
        lambda: read_sample(file, encode(labels), MAPPING, as_arrays=True),
    ]  # fmt: skip
    for read in reads:
        with pytest.raises(
            UsageError, match=r"scan\.tif: images must have 8 or 16 bits per channel, but the file has "
        ):
            read()


def with_path(file, path):
    return {**file, "path": path}


def lossy_labels():
    labels = np.kron(sample((8, 8))[1], np.ones((6, 6), np.uint8)).astype(np.uint8)
    colors = 40 * np.stack([labels, labels, 5 - labels], axis=-1).astype(np.uint8)
    animation = BytesIO()
    frames = [Image.fromarray(colors), Image.fromarray(255 - colors)]
    frames[0].save(animation, "WEBP", save_all=True, append_images=frames[1:], lossless=False)
    return {
        "JPEG": encode(labels, "JPEG"), "JPEG in color": encode(colors, "JPEG"),
        "TIFF": encode(labels, "TIFF", compression="jpeg"), "lossy WebP": encode(colors, "WEBP", quality=90),
        "lossy WebP with alpha": encode(np.dstack([colors, colors[..., :1]]), "WEBP", quality=90),
        "animated WebP": {"bytes": animation.getvalue()}, "JPEG2000": encode(labels, "JPEG2000", irreversible=True),
    }  # fmt: skip


@pytest.mark.parametrize("kind", lossy_labels())
@pytest.mark.parametrize("path", ["mask.png", "mask.jpg", None])
def test_labels_that_were_compressed_with_loss_are_refused_whatever_their_name_is(decoder, kind, path):
    file = with_path(lossy_labels()[kind], path)
    for by_color in (False, True):
        with pytest.raises(UsageError, match="labels must be stored without loss, but the file is a "):
            read_raw_labels(file, by_color=by_color)
    everything = LabelMapping({0: 0}, ignored=None)
    with pytest.raises(UsageError, match="labels must be stored without loss"):
        read_sample(encode(sample((48, 48))[0]), file, everything)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}), ("GIF", {})]
)
def test_lossless_labels_are_read_whatever_their_name_is(decoder, kind, options):
    labels = sample()[1]
    file = with_path(encode(labels, kind, **options), "mask.jpg")
    assert np.array_equal(read_sample(encode(sample()[0]), file, MAPPING)[1], labels)


def test_colors_of_lossless_webp_labels_are_read(decoder):
    colors = sample()[0]
    assert np.array_equal(read_raw_labels(encode(colors, "WEBP", lossless=True), by_color=True), colors)


@pytest.mark.parametrize("bits", [2, 4])
def test_tiff_labels_of_2_and_4_bits_are_read_as_values(decoder, bits):
    """This test writes the TIFF by hand, because Pillow writes gray images with 8 bits only."""
    labels = sample((6, 8))[1] % 4
    packed = bytes(int("".join(f"{v:0{bits}b}" for v in row[i : i + 8 // bits]), 2)
                   for row in labels for i in range(0, 8, 8 // bits))  # fmt: skip
    tags = {256: 8, 257: 6, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 6, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert np.array_equal(read_raw_labels({"bytes": data, "path": "mask.tif"}, by_color=False), labels)


@pytest.mark.parametrize("largest", [1, 2, 5, 15, 100, 200, 255, 256, 300, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_pgm_labels_are_read_as_values_whatever_their_largest_value_is(decoder, largest, plain):
    """Pillow stretches the values, so that the largest becomes 255 or 65,535."""
    labels = np.arange(min(largest + 1, 4096)).repeat(3).reshape(3, -1)
    labels[-1, -1] = largest
    header = f"P{2 if plain else 5}\n# scribbled by hand\n{labels.shape[1]} 3\n{largest}\n".encode()
    pixels = labels.astype(">u2" if largest > 255 else np.uint8).tobytes()
    data = header + (" ".join(map(str, labels.flat)).encode() if plain else pixels)
    assert np.array_equal(read_raw_labels({"bytes": data, "path": "mask.pgm"}, by_color=False), labels)


def test_pgm_images_of_16_bits_are_divided_by_256(tmp_path):
    values = np.arange(0, 65536, 16).reshape(64, 64)
    path = tmp_path / "scan.pgm"
    path.write_bytes(b"P5 64 64 65535\n" + values.astype(">u2").tobytes())
    pair = read_pair({"path": str(path)}, encode(np.zeros((64, 64), np.uint8)), MAPPING)
    with Image.open(path) as image:
        shown = [pair.image, read_image(path), to_rgb(image)]
    assert all(np.array_equal(np.asarray(each)[..., 0], values >> 8) for each in shown)
    assert pair.bits == 16
