"""Files are read as Pillow reads them, by fast decoders too, and damaged ones are refused by name."""

import struct
import tracemalloc
import zlib
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from stored_images import MAPPING, encode, pillow, sample, written

from msctr_hf.data import png_checksums
from msctr_hf.data.images import read_image, read_labels, read_raw_labels, read_sample
from msctr_hf.errors import UsageError


def verdict(read):
    """Return the pixels, or `None` for a file that is refused."""
    try:
        return np.asarray(read())
    except UsageError:
        return None


def chunks_of(png):
    position = 8
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        yield png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        position += 12 + length


def png_of(chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


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


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("cut", [40, 700, -60])
def test_a_damaged_image_is_refused_by_name(decoder, kind, cut):
    image, labels = sample()
    file = encode(image, kind)
    file["bytes"] = file["bytes"][:cut]
    for as_arrays in (True, False):
        with pytest.raises(UsageError, match=rf"name\.{kind.lower()} cannot be read as an image"):
            read_sample(file, encode(labels), MAPPING, as_arrays=as_arrays)


def gradients(size=(37, 53)):
    rows, columns = np.indices(size)
    return np.stack([3 * rows + columns, rows + 4 * columns, 2 * rows + 2 * columns], axis=-1).astype(np.uint8)


def flipped(file, random):
    """Flip a bit of the content or the checksum of the header, of the pixels or of the end."""
    data = bytearray(file["bytes"])
    places = [*range(16, 33), *range(41, len(data) - 12), *range(len(data) - 4, len(data))]
    data[random.choice(places)] ^= 1 << random.integers(8)
    return {**file, "bytes": bytes(data)}


@pytest.mark.parametrize("content", ["gradients", "noise"])
def test_a_png_with_a_flipped_bit_is_refused(decoder, content, tmp_path):
    image = gradients() if content == "gradients" else sample()[0]
    labels = (image[..., 0] // 9 % 5).astype(np.uint8)
    whole_image, whole_labels = encode(image), encode(labels)
    random = np.random.default_rng(1)
    accepted = Counter()
    for _ in range(60):
        damaged_image, damaged_labels = flipped(whole_image, random), flipped(whole_labels, random)
        for name, read in {
            "image": lambda file=damaged_image: read_sample(file, whole_labels, MAPPING)[0],
            "array": lambda file=damaged_image: read_sample(file, whole_labels, MAPPING, as_arrays=True)[0],
            "labels": lambda file=damaged_labels: read_labels(file, MAPPING),
            "alone": lambda file=damaged_image: read_image(written(file, tmp_path)),
        }.items():
            accepted[name] += verdict(read) is not None
    assert accepted == dict.fromkeys(accepted, 0)


def test_compressed_pixels_with_a_wrong_checksum_are_refused_even_if_those_of_the_chunks_are_right(decoder):
    image = gradients()
    labels = encode(np.zeros(image.shape[:2], np.uint8))
    random = np.random.default_rng(2)
    accepted = 0
    for _ in range(80):
        chunks = [(name, bytearray(data)) for name, data in chunks_of(encode(image)["bytes"])]
        pixels = next(data for name, data in chunks if name == b"IDAT")
        pixels[random.integers(2, len(pixels))] ^= 1 << random.integers(8)
        file = {"bytes": png_of((name, bytes(data)) for name, data in chunks), "path": "image.png"}
        for as_arrays in (True, False):
            found = verdict(lambda f=file, a=as_arrays: read_sample(f, labels, MAPPING, as_arrays=a)[0])
            # the bits between the last code and the checksum have no meaning
            accepted += found is not None and not np.array_equal(found, image)
    assert accepted == 0


def test_a_damaged_png_is_named_with_what_is_wrong(decoder):
    image, labels = sample()
    damaged = bytearray(encode(image)["bytes"])
    damaged[-14] ^= 4
    for as_arrays in (True, False):
        with pytest.raises(UsageError, match=r"street\.png cannot .* the checksum of its chunk 'IDAT' is wrong"):
            read_sample({"bytes": bytes(damaged), "path": "street.png"}, encode(labels), MAPPING, as_arrays=as_arrays)


_KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16),
          (6, 8), (6, 16)]  # fmt: skip


def random_png(color, bits, size, *, interlaced, transparent, random):
    """Write random filtered rows chunk by chunk, because Pillow writes neither interlaced nor narrow images."""
    width, height = size
    bits_per_pixel = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    grid = [(0, 0, 1, 1)]
    if interlaced:
        grid = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for left, top, across, down in grid:
        columns = len(range(left, width, across))
        for _ in range(top, height, down) if columns else ():
            length = (columns * bits_per_pixel + 7) // 8
            rows += bytes([random.integers(5)]) + random.integers(0, 256, length, dtype=np.uint8).tobytes()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, int(interlaced)))]
    if color == 3:
        chunks.append((b"PLTE", random.integers(0, 256, 3 << bits, dtype=np.uint8).tobytes()))
    if transparent and color in (0, 2, 3):
        chunks.append((b"tRNS", bytes(1 << bits) if color == 3 else bytes(2 if color == 0 else 6)))
    pixels = zlib.compress(rows)
    half = len(pixels) // 2
    return png_of([*chunks, (b"IDAT", pixels[:half]), (b"IDAT", b""), (b"IDAT", pixels[half:]), (b"IEND", b"")])


@pytest.mark.parametrize("interlaced", [False, True])
def test_pngs_of_every_kind_have_the_pixels_of_pillow(decoder, interlaced):
    random = np.random.default_rng(3)
    for color, bits in _KINDS:
        for size in [(1, 1), (3, 2), (5, 9), (8, 8), (21, 13)]:
            file = {"path": "image.png"}
            file["bytes"] = random_png(
                color, bits, size, interlaced=interlaced, transparent=bool(random.integers(2)), random=random
            )
            with Image.open(BytesIO(file["bytes"])) as stored:
                deep = stored.mode.startswith("I;16")
                expected = (
                    np.asarray(stored)[..., None].repeat(3, 2) >> 8 if deep else np.asarray(stored.convert("RGB"))
                )
                raw = np.asarray(stored)
            labels = encode(np.zeros(size[::-1], np.uint8))
            for as_arrays in (True, False):
                assert np.array_equal(read_sample(file, labels, MAPPING, as_arrays=as_arrays)[0], expected), (
                    color,
                    bits,
                )
            if color in (0, 3):
                step = {2: 85, 4: 17}.get(bits, 1) if color == 0 else 1
                assert np.array_equal(read_raw_labels(file, by_color=False), raw // step), (color, bits)


def test_a_png_whose_header_promises_other_pixels_than_it_holds_is_not_filled_up(decoder):
    image, _ = sample()
    chunks = dict(chunks_of(encode(image)["bytes"]))
    chunks[b"IHDR"] = chunks[b"IHDR"][:4] + struct.pack(">I", 40) + chunks[b"IHDR"][8:]
    with pytest.raises(UsageError, match=r"image\.png cannot be read"):
        read_sample(
            {"bytes": png_of(chunks.items()), "path": "image.png"}, encode(np.zeros((40, 53), np.uint8)), MAPPING
        )


def test_a_png_that_would_fill_the_memory_is_not_unpacked(decoder):
    bomb = zlib.compress(bytes(1 << 26))  # 64 MiB in a file of 64 KiB
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)), (b"IDAT", bomb), (b"IEND", b"")]
    tracemalloc.start()
    with pytest.raises(UsageError, match=r"bomb\.png cannot be read"):
        read_raw_labels({"bytes": png_of(chunks), "path": "bomb.png"}, by_color=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22


def test_a_large_png_is_verified_too_and_has_the_same_pixels(decoder, monkeypatch):
    monkeypatch.setattr(png_checksums, "_MOST_KEPT", 1000)  # bytes of larger ones are verified and not kept
    image, labels = sample()
    image_file, label_file = encode(image), encode(labels)
    read = read_sample(image_file, label_file, MAPPING, as_arrays=True)
    assert np.array_equal(read[0], image)
    assert np.array_equal(read[1], labels)
    chunks = dict(chunks_of(image_file["bytes"]))
    chunks[b"IDAT"] = chunks[b"IDAT"][:-1] + bytes([chunks[b"IDAT"][-1] ^ 1])  # of the checksum of the pixels
    with pytest.raises(UsageError, match=r"image\.png cannot be read"):
        read_sample({"bytes": png_of(chunks.items()), "path": "image.png"}, label_file, MAPPING)


def _before_marker(data, place, inserted):
    """Insert bytes before a marker of the header of a JPEG; `place` counts markers from the start."""
    position = 2
    for _ in range(place):
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data[:position] + inserted + data[position:]


def _restart(data, change):
    position = next(i for i in range(len(data) - 1, 0, -1) if data[i] == 0xFF and 0xD0 <= data[i + 1] <= 0xD7)
    return data[:position] + change + data[position + 2 :]


JPEG_DAMAGE = {
    "two stray bytes before the first table": lambda data: _before_marker(data, 1, b"\x12\x34"),
    "two stray bytes before the frame": lambda data: _before_marker(data, 3, b"\x12\x34"),
    "three stray bytes before the scan": lambda data: _before_marker(data, 7, b"\x00\x00\x07"),
    "cut in the pixels": lambda data: data[: len(data) * 2 // 3],
    "cut before the end": lambda data: data[:-2],
    "cut in the end": lambda data: data[:-1],
    "bytes after the end": lambda data: data + b"appendix",
    "bytes before the end": lambda data: data[:-2] + b"\x01\x02\x03" + data[-2:],
    "another image after the end": lambda data: data + data,
    "a damaged length": lambda data: data[:4] + b"\xff" + data[5:],
    "12 bits": lambda data: data.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "arithmetic coding": lambda data: data.replace(b"\xff\xc0", b"\xff\xc9"),
    "lossless coding": lambda data: data.replace(b"\xff\xc0", b"\xff\xc3"),
    "a missing restart": lambda data: _restart(data, b""),
    "a restart out of order": lambda data: _restart(data, b"\xff\xd5"),
    "damaged pixels": lambda data: data[:-200] + bytes(100) + data[-100:],
    "markers in the pixels": lambda data: data[:-200] + b"\xff\x01\xff\xe5" + data[-196:],
}


@pytest.mark.parametrize("name", JPEG_DAMAGE)
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"restart_marker_blocks": 4}, {"mode": "CMYK"},
     {"mode": "L"}, {"keep_rgb": True}],
    ids=lambda options: "-".join(map(str, *options.items())),
)  # fmt: skip
def test_check_and_training_judge_jpegs_as_pillow_does(decoder, name, options):
    image, labels = sample()
    mode = options.get("mode", "RGB")
    buffer = BytesIO()
    options = {"restart_marker_blocks": 4, **options}
    options.pop("mode", None)
    Image.fromarray(image).convert(mode).save(buffer, "JPEG", quality=90, **options)
    try:
        file = {"bytes": JPEG_DAMAGE[name](buffer.getvalue()), "path": "image.jpg"}
    except StopIteration:
        pytest.skip("a progressive image without restarts")
    expected = pillow(file["bytes"])
    for as_arrays in (True, False):
        found = verdict(lambda a=as_arrays: read_sample(file, encode(labels), MAPPING, as_arrays=a)[0])
        assert (found is None) == (expected is None), as_arrays
        assert expected is None or np.array_equal(found, expected)
