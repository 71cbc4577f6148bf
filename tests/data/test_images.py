import struct
import tracemalloc
import zlib
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from msctr_hf.data import images, png_checksums
from msctr_hf.data.images import read_image, read_labels, read_pair, read_raw_labels, read_sample, to_rgb
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
        monkeypatch.setattr(png_checksums, "inflater", zlib)
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


def verdict(read):
    """Return the pixels, or `None` for a file that is refused."""
    try:
        return np.asarray(read())
    except UsageError:
        return None


def pillow(data):
    try:
        with Image.open(BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def gradients(size=(37, 53)):
    rows, columns = np.indices(size)
    return np.stack([3 * rows + columns, rows + 4 * columns, 2 * rows + 2 * columns], axis=-1).astype(np.uint8)


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


def written(file, folder):
    path = folder / file["path"]
    path.write_bytes(file["bytes"])
    return path


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


SHOWN = {  # EXIF orientation -> pixels as a screen shows them, from the specification: where row 0 and column 0 are
    1: lambda stored: stored, 2: lambda stored: stored[:, ::-1], 3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1], 5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1), 7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}  # fmt: skip


def tagged(array, orientation, kind="PNG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(array, kind, **({"exif": exif} if orientation != 1 else {}))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("loaded", [False, True])
def test_images_of_pillow_are_turned_once(kind, loaded):
    """Pillow itself turns a TIFF when it is loaded, and no other format."""
    stored = sample()[0]
    for orientation, shown in SHOWN.items():
        with Image.open(BytesIO(tagged(stored, orientation, kind)["bytes"])) as image:
            if loaded:
                image.load()
            assert np.array_equal(np.asarray(to_rgb(image)), shown(stored)), orientation


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("size", [(37, 53), (40, 40)])
def test_image_and_labels_that_are_tagged_alike_are_both_turned(decoder, orientation, kind, size):
    image, labels = sample(size)
    files = tagged(image, orientation, kind), tagged(labels, orientation, kind)
    for as_arrays in (True, False):
        found = read_sample(*files, MAPPING, as_arrays=as_arrays)
        for one, stored in zip(found, (image, labels), strict=True):
            assert np.array_equal(np.asarray(one), SHOWN[orientation](stored))
    assert np.array_equal(read_labels(files[1], MAPPING), SHOWN[orientation](labels))


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("which", ["image", "labels"])
def test_a_tag_on_one_of_two_files_turns_it_unless_it_fits_only_as_stored(decoder, orientation, kind, which):
    def read(image, labels, as_arrays):
        turn = {which: orientation}
        files = tagged(image, turn.get("image", 1), kind), tagged(labels, turn.get("labels", 1), kind)
        return map(np.asarray, read_sample(*files, MAPPING, as_arrays=as_arrays))

    for as_arrays in (True, False):
        image, labels = sample((40, 40))
        expected = [SHOWN[orientation if which == name else 1](stored)
                    for name, stored in (("image", image), ("labels", labels))]  # fmt: skip
        for found, wanted in zip(read(image, labels, as_arrays), expected, strict=True):
            assert np.array_equal(found, wanted)
        image, labels = sample((37, 53))
        if orientation >= 5:
            for found, wanted in zip(read(image, labels, as_arrays), (image, labels), strict=True):
                assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b"Exif\0\0II*\0\xff\xff\xff\x7f"]
)
def test_unreadable_exif_data_turn_nothing(decoder, exif, tmp_path):
    image, labels = sample()
    file = encode(image, "JPEG", exif=exif)
    for as_arrays in (True, False):
        assert np.array_equal(
            read_sample(file, encode(labels), MAPPING, as_arrays=as_arrays)[0], pillow(file["bytes"])
        )
    assert np.array_equal(read_image(written({**file, "path": "a.jpg"}, tmp_path)), pillow(file["bytes"]))


def test_an_orientation_in_xmp_turns_a_png_with_every_decoder(decoder):
    image, labels = sample((40, 40))
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="3"/>')
    for as_arrays in (True, False):
        found, _ = read_sample(encode(image, pnginfo=info), encode(labels), MAPPING, as_arrays=as_arrays)
        assert np.array_equal(np.asarray(found), image[::-1, ::-1])
