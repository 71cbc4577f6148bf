import tracemalloc

import numpy as np
import pytest
from PIL import Image

from msctr_hf.evaluation import visualization
from msctr_hf.evaluation.visualization import colorize, contact_sheet, legend, overlay, viewable

PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_colors_follow_the_palette_and_ignored_pixels_are_black():
    pixels = np.asarray(colorize(np.array([[0, 2, 255]], dtype=np.uint8), PALETTE))
    assert pixels.tolist() == [[[255, 0, 0], [0, 0, 255], [0, 0, 0]]]


def test_more_than_256_classes_have_different_colors():
    palette = [(label // 256, label % 256, 7) for label in range(300)]
    pixels = np.asarray(colorize(np.array([[0, 44, 299, 300]]), palette))
    assert pixels.tolist() == [[[0, 0, 7], [0, 44, 7], [1, 43, 7], [0, 0, 0]]]


def test_an_overlay_blends_colors_and_its_legend_lists_only_present_classes():
    image, labels = Image.new("RGB", (200, 50), "white"), np.zeros((50, 200), dtype=np.uint8)
    plain = overlay(image, labels, PALETTE, opacity=0.5)
    assert plain.size == (200, 50)
    assert plain.getpixel((3, 3)) == (255, 127, 127)
    with_legend = overlay(image, labels, PALETTE, ["road", "sky", "car"])
    colors = {color for _, color in with_legend.crop((0, 50, *with_legend.size)).getcolors(10_000)}
    assert (255, 0, 0) in colors
    assert (0, 255, 0) not in colors


def test_a_legend_wraps_inside_the_image():
    labels = np.arange(60, dtype=np.uint8).reshape(6, 10)
    names = [f"a long class name {label}" for label in range(60)]
    sheet = overlay(Image.new("RGB", (300, 30)).resize((10, 6)), labels, PALETTE * 20, names)
    assert sheet.width == 10
    assert sheet.height > 60 * 20


def test_a_contact_sheet_has_a_row_for_every_sample():
    row = (Image.new("RGB", (64, 32)), np.zeros((32, 64), dtype=np.uint8), np.ones((32, 64), dtype=np.uint8))
    one, three = (contact_sheet([row] * count, PALETTE, ["a", "b", "c"]) for count in (1, 3))
    assert three.width == one.width
    assert three.height - one.height == 2 * (160 + 6)


def test_a_very_high_image_makes_a_contact_sheet_of_bounded_size_with_its_aspect():
    labels = np.zeros((4000, 8), dtype=np.uint8)
    labels[2000:] = 1
    sheet = contact_sheet([(Image.new("RGB", (8, 4000)), labels, labels)], PALETTE, ["a", "b", "c"])
    assert sheet.width == 3 * 320 + 12
    assert sheet.height < 1100
    column = np.asarray(sheet)[22 : 22 + 960, 326]  # labels, at a width of two pixels
    assert column[[0, 470]].tolist() == [[255, 0, 0]] * 2
    assert column[[490, 959]].tolist() == [[0, 255, 0]] * 2


def test_a_legend_of_very_many_classes_is_bounded_and_says_how_many_are_left_out(monkeypatch):
    written = []
    draw = visualization.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        visualization.ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, **kw: written.append(text) or draw(self, at, text, **kw),
    )
    key = legend([f"class {label}" for label in range(5000)], [(label % 256, 0, 0) for label in range(5000)], 10)
    assert key.height <= 256 * 20 + 12
    assert written[254:] == ["class 254", "and 4745 more"]


def test_an_overlay_blends_every_row_of_a_high_image():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (1100, 3, 3), dtype=np.uint8)
    labels = random.integers(0, 3, (1100, 3))
    expected = 0.25 * np.asarray(PALETTE)[labels] + 0.75 * pixels
    assert np.abs(np.asarray(overlay(Image.fromarray(pixels), labels, PALETTE, opacity=0.25)) - expected).max() <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_arrays_are_shown_as_colors_or_gray_and_other_types_than_8_bits_are_stretched(count):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, count), dtype=np.uint8)
    colors = pixels[..., :3] if count >= 3 else pixels[..., :1].repeat(3, axis=2)
    assert np.array_equal(np.asarray(viewable(pixels)), colors)
    shown = np.asarray(viewable(pixels.astype(np.float32) * 1000 - 7)).astype(int)
    assert shown.shape == colors.shape
    assert (shown.min(), shown.max()) == (0, 255)
    assert np.abs(shown - colors).max() <= 8  # 2 % at either end become black and white
    assert viewable(np.full((3, 4, 1), 5.0, np.float32)).size == (4, 3)  # a constant channel
    assert np.array_equal(np.asarray(overlay(pixels, np.zeros((30, 40), np.uint8), [(0, 0, 0)], opacity=0)), colors)


def plain_stretch(pixels):
    """Stretch the pixels (n, N) of an image, each channel between two percentiles of all, in float64."""
    low, high = np.percentile(pixels.astype(np.float64), (2, 98), axis=0)
    return ((pixels - low) / (high - low) * 255).clip(0, 255)


@pytest.mark.parametrize(
    ("value_type", "no_data"),
    [
        ("float32", [-9999]),
        ("float32", [np.finfo(np.float32).min]),
        ("float32", [np.nan]),
        ("float32", [np.inf, -9999]),
        ("float32", [-9999, 1e20]),
        ("uint16", [65535]),
        ("uint16", [0]),
        ("int32", [-(2**31)]),
    ],
)
@pytest.mark.parametrize("count", [1, 4])
def test_pixels_without_data_do_not_change_the_gray_levels_of_the_others(count, value_type, no_data):
    random = np.random.default_rng(1)
    pixels = random.random((60, 80, count), dtype=np.float32)
    if value_type != "float32":
        pixels = (5000 + 3000 * pixels).astype(value_type)
    is_valid = np.ones((60, 80), dtype=bool)
    for number, value in enumerate(no_data):  # of a third of the image
        part = slice(20 * number // len(no_data), 20 * (number + 1) // len(no_data))
        is_valid[part] = False
        pixels[part] = value
    shown = np.asarray(viewable(pixels)).astype(float)
    colors = pixels[..., :3] if count >= 3 else pixels[..., :1].repeat(3, axis=2)
    assert np.abs(shown[is_valid] - plain_stretch(colors[is_valid])).max() <= 0.51
    assert np.isin(shown[~is_valid], (0, 255)).all()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_values_that_are_rare_or_clipped_are_not_taken_for_pixels_without_data(share):
    random = np.random.default_rng(2)
    pixels = random.random((50, 60, 3), dtype=np.float32)
    pixels[random.random((50, 60)) < share] = 0  # black pixels
    assert np.abs(np.asarray(viewable(pixels)) - plain_stretch(pixels.reshape(-1, 3)).reshape(pixels.shape)).max() < 1
    mask = (random.random((50, 60, 1)) < share).astype(np.uint16)
    assert np.array_equal(np.asarray(viewable(mask))[..., 0], 255 * mask[..., 0])


@pytest.mark.parametrize("value", [0, 7, np.nan, np.inf])
def test_an_image_without_any_difference_is_black(value):
    assert not np.asarray(viewable(np.full((4, 5, 3), value, np.float32))).any()


def test_large_integers_keep_their_differences():
    pixels = (2**30 + np.arange(200).reshape(10, 20, 1)).astype(np.int32)
    expected = plain_stretch(pixels.reshape(-1, 1)).reshape(pixels.shape)
    assert np.abs(np.asarray(viewable(pixels))[..., :1] - expected).max() < 1


def test_a_large_image_is_stretched_as_its_percentiles_say_within_the_memory_of_the_image():
    random = np.random.default_rng(3)
    pixels = random.gamma(4, 500, (2000, 2000, 4)).astype(np.uint16)
    pixels[:, :, 1] += np.arange(2000, dtype=np.uint16)  # a gradient
    tracemalloc.start()
    shown = viewable(pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * pixels.nbytes
    expected = plain_stretch(pixels[..., :3].reshape(-1, 3)).reshape(2000, 2000, 3)
    assert np.abs(np.asarray(shown) - expected).max() < 2
