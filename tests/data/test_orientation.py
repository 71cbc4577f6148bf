"""Images and labels are turned as viewers show them, whichever decoder reads them."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from stored_images import MAPPING, SHOWN, encode, pillow, sample, written

from msctr_hf.data.images import read_image, read_labels, read_sample, to_rgb


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


def test_rotated_pngs_are_read_upright(decoder):
    image, labels = sample()
    exif = Image.Exif()
    exif[0x0112] = 3
    turned, _ = read_sample(encode(image, exif=exif), encode(labels), MAPPING, as_arrays=True)
    assert np.array_equal(turned, image[::-1, ::-1])
