import numpy as np
import pytest
from PIL import Image

from msctr_hf.data.augmentation import TrainingAugmentation, jitter_colors, largest_class_share

PLAIN = {"image_mean": [0.0] * 3, "image_std": [1 / 255] * 3, "color_jitter": False, "flip_probability": 0.0}


def sample(height=60, width=90, seed=0):
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8))
    labels = random.integers(0, 5, (height // 6, width // 6), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
    return small.resize((width, height), Image.Resampling.BICUBIC), Image.fromarray(labels)


def augment(seed=0, picture=None, **settings):
    augmentation = TrainingAugmentation(**{**PLAIN, "crop_size": (32, 48), **settings})
    pixel_values, labels = augmentation(*(picture or sample()), np.random.default_rng(seed))
    return pixel_values.permute(1, 2, 0).numpy(), labels.numpy()


def test_crop_without_scaling_is_a_piece_of_the_picture():
    image, labels = sample()
    crop, crop_labels = augment(scale_range=(1, 1), aspect_range=(1, 1))
    pieces = np.lib.stride_tricks.sliding_window_view(np.asarray(labels), (32, 48))
    matches = np.argwhere((pieces == crop_labels).all(axis=(2, 3)))
    assert any(
        np.abs(np.asarray(image)[top : top + 32, left : left + 48] - crop).max() < 1e-3 for top, left in matches
    )


@pytest.mark.parametrize("scale", [0.8, 1.7])
def test_cutting_first_equals_resizing_the_whole_picture(scale):
    image, labels = sample()
    crop, crop_labels = augment(scale_range=(scale, scale), aspect_range=(1, 1), max_class_share=2)
    size = (round(90 * scale), round(60 * scale))
    whole = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).astype(float)
    differences = (
        np.abs(whole[top : top + 32, left : left + 48] - crop)
        for top in range(whole.shape[0] - 31)
        for left in range(whole.shape[1] - 47)
    )
    best = min(differences, key=np.sum)
    assert np.mean(best > 1.01) < 0.005  # grey levels: Pillow rounds after each of its two passes
    assert best.max() <= 2.01
    assert set(np.unique(crop_labels)) <= set(np.unique(np.asarray(labels)))


def test_small_pictures_are_padded_with_the_mean_colour_and_ignored_labels():
    crop, labels = augment(
        picture=sample(18, 24),
        scale_range=(1, 1),
        aspect_range=(1, 1),
        image_mean=[0.2, 0.4, 0.6],
        image_std=[1.0] * 3,
    )
    assert labels.shape == (32, 48)
    assert (labels != 255).sum() == 18 * 24
    assert np.abs(crop[labels == 255]).max() < 0.003
    corners = {tuple(np.argwhere(augment(seed, sample(18, 24), scale_range=(1, 1))[1] != 255)[0]) for seed in range(8)}
    assert len(corners) > 3  # random offset


def test_mirroring_moves_picture_and_labels_together():
    plain, labels = augment(3)
    mirrored, mirrored_labels = augment(3, flip_probability=1.0)
    assert np.array_equal(mirrored, plain[:, ::-1])
    assert np.array_equal(mirrored_labels, labels[:, ::-1])


def test_scale_and_aspect_have_the_published_ranges():
    random = np.random.default_rng(0)
    augmentation = TrainingAugmentation(crop_size=(8, 8), image_mean=[0] * 3, image_std=[1] * 3)
    sizes = np.array([augmentation._choose_window(sample(600, 600)[1], random)[0].size for _ in range(300)]) / 600
    area, aspect = sizes.prod(axis=1), sizes[:, 1] / sizes[:, 0]
    assert 0.25 <= area.min() < 0.35
    assert 3.5 < area.max() <= 4.01
    assert 0.9 - 0.01 <= aspect.min() < 0.92
    assert 1.08 < aspect.max() <= 1.1 + 0.01


def test_crops_full_of_one_class_are_drawn_again():
    labels = np.zeros((120, 120), dtype=np.uint8)
    labels[:, 60:] = np.arange(60, dtype=np.uint8) % 7
    picture = (Image.new("RGB", (120, 120)), Image.fromarray(labels))
    settings = {"picture": picture, "crop_size": (30, 30), "scale_range": (1, 1), "aspect_range": (1, 1)}
    full = [
        sum(largest_class_share(augment(seed, max_class_share=share, **settings)[1]) >= 0.75 for seed in range(60))
        for share in (2.0, 0.75)
    ]
    assert full[0] > 15
    assert full[1] < full[0] / 5


def test_share_counts_valid_pixels_only():
    assert largest_class_share(np.array([[1, 1, 2, 255]])) == pytest.approx(2 / 3)
    assert largest_class_share(np.full((2, 2), 255)) == 1.0


def test_jitter_changes_colours_within_bounds_and_follows_the_seed():
    image = sample()[0]
    first, again = (np.asarray(jitter_colors(image, np.random.default_rng(1))) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, np.asarray(image))
    means = [np.asarray(jitter_colors(image, np.random.default_rng(seed))).mean() for seed in range(30)]
    assert np.asarray(image).mean() * 0.5 < min(means)
    assert max(means) < np.asarray(image).mean() * 1.6
