import numpy as np
import pytest
from PIL import Image

from msctr_hf.data.augmentation import TrainingAugmentation, _Span, largest_class_share

PLAIN = {"image_mean": [0.0] * 3, "image_std": [1 / 255] * 3, "color_jitter": False, "flip_probability": 0.0}
RECORDED = [
    (3144, 3920255353),
    (2542, 1818173253),
    (2784, 3129143635),
]  # sum of the labels, and the random number after them


def sample(height=60, width=90, seed=0):
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8))
    labels = random.integers(0, 5, (height // 6, width // 6), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
    return small.resize((width, height), Image.Resampling.BICUBIC), Image.fromarray(labels)


def augment(seed=0, pair=None, **settings):
    augmentation = TrainingAugmentation(**{**PLAIN, "crop_size": (32, 48), **settings})
    pixel_values, labels = augmentation(*(pair or sample()), np.random.default_rng(seed))
    return pixel_values.permute(1, 2, 0).numpy(), labels.numpy()


def test_a_crop_without_scaling_is_cut_from_the_image_unchanged():
    image, labels = sample()
    crop, crop_labels = augment(scale_range=(1, 1), aspect_range=(1, 1))
    pieces = np.lib.stride_tricks.sliding_window_view(np.asarray(labels), (32, 48))
    matches = np.argwhere((pieces == crop_labels).all(axis=(2, 3)))
    assert any(
        np.abs(np.asarray(image)[top : top + 32, left : left + 48] - crop).max() < 1e-3 for top, left in matches
    )


def windows(count, size, crop, scales=(0.5, 2.0), seed=0):
    """Draw the rows and columns of random crops from randomly resized images."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        resized = [max(1, round(side * random.uniform(*scales))) for side in size]
        corners = [int(random.integers(max(r - c, 0) + 1)) for r, c in zip(resized, crop, strict=True)]
        yield [_Span(*one, padding=0) for one in zip(size, resized, crop, corners, strict=True)]


def test_a_resized_crop_equals_that_of_pillow():
    image, _ = sample()
    augmentation = TrainingAugmentation(**PLAIN, crop_size=(32, 48))
    for rows, columns in windows(200, (60, 90), (32, 48)):
        crop = augmentation._resize_and_pad(np.asarray(image), rows, columns).permute(1, 2, 0).numpy()
        (top, bottom), (left, right) = (
            (span.start + span.kept.start * span.scale, span.start + span.kept.stop * span.scale)
            for span in (rows, columns)
        )
        box = (left, top, min(right, 90), min(bottom, 60))
        expected = image.resize((columns.length, rows.length), Image.Resampling.BILINEAR, box=box)
        shown = crop[: rows.length, : columns.length].astype(int)
        difference = np.abs(shown - np.asarray(expected))
        assert difference.max() <= 2  # gray levels: both implementations round after each of two passes
        assert np.mean(difference > 1) < 0.001


def test_crops_are_shifted_by_at_most_a_pixel_from_those_of_the_whole_resized_image():
    for spans in windows(500, (61, 97), (32, 48), seed=1):
        for span in spans:
            first = span.start + span.kept.start * span.scale
            assert abs(first - span.corner * span.scale) <= 1.0  # source pixels; half a pixel except at the far border
            assert first + span.length * span.scale <= span.source + 1e-6
            assert span.nearest.min() >= 0
            assert span.region.start + span.nearest.max() < span.source


def test_labels_are_those_of_the_nearest_pixel():
    _, label = sample()
    augmentation = TrainingAugmentation(**PLAIN, crop_size=(32, 48), max_class_share=2)
    rows, columns, labels = augmentation._choose_window(np.asarray(label), np.random.default_rng(3))
    for row, column in ((0, 0), (5, 7), (31, 47)):
        y = int(rows.start + (rows.kept.start + row + 0.5) * rows.scale)
        x = int(columns.start + (columns.kept.start + column + 0.5) * columns.scale)
        assert labels[row, column] == label.getpixel((x, y))


def test_small_images_are_padded_with_the_mean_color_and_ignored_labels():
    crop, labels = augment(
        pair=sample(18, 24),
        scale_range=(1, 1),
        aspect_range=(1, 1),
        image_mean=[0.2, 0.4, 0.6],
        image_std=[1.0] * 3,
    )
    assert labels.shape == (32, 48)
    assert (labels != 255).sum() == 18 * 24
    assert np.abs(crop[labels == 255]).max() < 0.003
    corners = {tuple(np.argwhere(augment(seed, sample(18, 24), scale_range=(1, 1))[1] != 255)[0]) for seed in range(8)}
    assert len(corners) > 3  # the offset of the image in its padding is random


def test_small_images_can_be_reflected_and_labels_stay_ignored():
    image, label = sample(18, 24)
    settings = {"pair": (image, label), "scale_range": (1, 1), "aspect_range": (1, 1), "max_class_share": 2}
    crop, labels = augment(padding_mode="reflect", **settings)
    assert np.array_equal(labels, augment(**settings)[1])
    top, left = np.argwhere(labels != 255)[0]
    surround = ((top, 32 - 18 - top), (left, 48 - 24 - left), (0, 0))
    assert np.abs(crop - np.pad(np.asarray(image), surround, mode="reflect")).max() < 1e-3
    assert (labels != 255).sum() == 18 * 24


def test_mirroring_moves_image_and_labels_together():
    plain, labels = augment(3)
    mirrored, mirrored_labels = augment(3, flip_probability=1.0)
    assert np.array_equal(mirrored, plain[:, ::-1])
    assert np.array_equal(mirrored_labels, labels[:, ::-1])


def test_mirroring_top_and_bottom_moves_image_and_labels_together():
    settings = {"flip_probability": 1.0, "flip_vertical_probability": 1.0}
    plain, labels = augment(3)
    mirrored, mirrored_labels = augment(3, **settings)
    sides = [np.array_equal(mirrored, plain[::-1, ::-1]), np.array_equal(mirrored_labels, labels[::-1, ::-1])]
    assert sides == [True, True]
    tops = [
        not np.array_equal(augment(seed, flip_vertical_probability=0.25)[0], augment(seed)[0]) for seed in range(80)
    ]
    assert 8 <= sum(tops) <= 34  # 20 expected


def test_a_rotated_crop_is_a_window_of_the_image_turned_by_quarters_for_crops_that_are_not_square_too():
    image, labels = (np.asarray(each) for each in sample())
    turned = []
    for seed in range(24):
        crop, crop_labels = augment(seed, rotate90=True, scale_range=(1, 1), aspect_range=(1, 1), max_class_share=2)
        assert crop.shape == (32, 48, 3)
        for turns in range(4):
            back, back_labels = np.rot90(crop, -turns), np.rot90(crop_labels, -turns)
            height, width = back_labels.shape
            turned += [
                turns
                for top in range(60 - height + 1)
                for left in range(90 - width + 1)
                if abs(image[top, left] - back[0, 0]).max() < 1e-3
                and abs(image[top : top + height, left : left + width] - back).max() < 1e-3
                and (labels[top : top + height, left : left + width] == back_labels).all()
            ]
    assert len(turned) == 24
    assert all(2 <= turned.count(turns) <= 12 for turns in range(4))  # 6 expected


def test_a_quarter_turn_keeps_padding_reflection_and_scales():
    settings = {"pair": sample(18, 24), "rotate90": True, "max_class_share": 2}
    for padding_mode in ("constant", "reflect"):
        for seed in range(8):
            crop, labels = augment(seed, padding_mode=padding_mode, **settings)
            assert (crop.shape, labels.shape) == ((32, 48, 3), (32, 48))


def test_options_that_are_off_draw_no_random_numbers():
    """The numbers were recorded before there were options besides mirroring and colors."""
    drawn = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        augmentation = TrainingAugmentation(crop_size=(32, 48), image_mean=[0.5] * 3, image_std=[0.5] * 3)
        labels = augmentation(*sample(), random)[1]
        drawn.append((int(labels.sum()), int(random.integers(1 << 32))))
    assert drawn == RECORDED


def test_scales_and_aspect_ratios_cover_the_published_ranges():
    random = np.random.default_rng(0)
    augmentation = TrainingAugmentation(crop_size=(8, 8), image_mean=[0] * 3, image_std=[1] * 3)
    label = np.asarray(sample(600, 600)[1])
    spans = [augmentation._choose_window(label, random)[:2] for _ in range(300)]
    sizes = np.array([(rows.resized, columns.resized) for rows, columns in spans]) / 600
    area, aspect = sizes.prod(axis=1), sizes[:, 1] / sizes[:, 0]
    assert 0.25 <= area.min() < 0.35
    assert 3.5 < area.max() <= 4.01
    assert 0.9 - 0.01 <= aspect.min() < 0.92
    assert 1.08 < aspect.max() <= 1.1 + 0.01


def test_another_crop_is_drawn_where_one_class_fills_it():
    labels = np.zeros((120, 120), dtype=np.uint8)
    labels[:, 60:] = np.arange(60, dtype=np.uint8) % 7
    pair = (Image.new("RGB", (120, 120)), Image.fromarray(labels))
    settings = {"pair": pair, "crop_size": (30, 30), "scale_range": (1, 1), "aspect_range": (1, 1)}
    full = [
        sum(
            largest_class_share(augment(seed, max_class_share=share, **settings)[1].astype(np.uint8)) >= 0.75
            for seed in range(60)
        )
        for share in (2.0, 0.75)
    ]
    assert full[0] > 15
    assert full[1] < full[0] / 5


def test_the_largest_class_share_counts_valid_pixels_only():
    assert largest_class_share(np.array([[1, 1, 2, 255]], dtype=np.uint8)) == pytest.approx(2 / 3)
    assert largest_class_share(np.full((2, 2), 255, dtype=np.uint8)) == 1.0


def test_values_of_more_bits_are_augmented_as_those_of_8():
    image, labels = sample()
    deep = np.asarray(image).astype(np.uint16) * 257
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2] * 3, "color_jitter": True}
    expected, expected_labels = augment(pair=(image, labels), **settings)
    crop, crop_labels = augment(pair=(deep, labels), white=65535.0, **settings)
    assert np.array_equal(crop_labels, expected_labels)
    # resized values of 8 bits are rounded twice, and then stretched by three factors of up to 1.5
    assert np.abs(crop - expected).max() < 4 / 255 / 0.2


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_images_of_any_number_of_channels_are_cut_and_padded_with_their_mean(count, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, count)).astype(dtype)
    white = 255.0 if dtype == np.uint8 else 1.0
    mean = np.linspace(60, 200, count) / white
    settings = {"image_mean": mean, "image_std": [1 / white] * count, "channel_order": range(count), "white": white}
    labels = np.zeros((20, 30), np.uint8)
    crop, crop_labels = augment(
        pair=(pixels, labels), scale_range=(1, 1), aspect_range=(1, 1), max_class_share=2, **settings
    )
    rows, columns = (np.flatnonzero((crop_labels == 0).any(axis=axis)) for axis in (1, 0))
    shown = crop[np.ix_(rows, columns)]
    assert np.abs(shown + mean * white - pixels).max() < 1e-3
    assert np.abs(crop[crop_labels == 255]).max() <= (0.5 if dtype == np.uint8 else 1e-4)
