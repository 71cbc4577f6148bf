"""The strong view changes colors only, as its settings say, and is drawn by its random numbers alone."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from msctr_hf.data.strong_view import GRAY_PROBABILITY, JITTER_PROBABILITY, StrongView, blur


def pixels(size=(20, 30), dtype=np.uint8):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size)).astype(dtype))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [(20, 30), (3, 40)])
def test_blur_is_the_gaussian_filter_of_scipy(sigma, size):
    image = pixels(size).double()
    expected = [gaussian_filter(channel, sigma, mode="nearest", truncate=4) for channel in image.numpy()]
    torch.testing.assert_close(blur(image, sigma).numpy(), np.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_without_strength_the_view_shows_the_same_colors(dtype):
    image = pixels(dtype=dtype)
    before = image.clone()
    for seed in range(20):
        view = StrongView(strength=0.0)(image, np.random.default_rng(seed))
        assert (view - image.float()).abs().max() < 0.01
    view.zero_()
    assert torch.equal(image, before)


def test_small_crops_are_blurred_less_since_their_objects_are_thin():
    kept = {}
    for side in (96, 512):
        crop = torch.zeros(3, side, side)
        crop[:, side // 2] = 255
        views = (StrongView(are_colors=False)(crop, np.random.default_rng(seed)) for seed in range(20))
        kept[side] = min(float(view.max()) for view in views)
    assert kept[96] > 200
    assert kept[512] < 100


def test_views_differ_as_often_as_the_probabilities_say():
    image = pixels((4, 5))
    views = [StrongView()(image, np.random.default_rng(seed)) for seed in range(400)]
    gray = np.mean([bool(torch.allclose(view[0], view[1], atol=1e-3)) for view in views])
    same_brightness = np.mean([abs(float(view.mean() - image.float().mean())) < 0.02 for view in views])
    assert abs(gray - GRAY_PROBABILITY) < 0.06
    assert same_brightness < 1 - JITTER_PROBABILITY + 0.06


def test_one_seed_gives_one_view():
    first, again, other = (StrongView()(pixels(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_of_16_bits_get_the_changes_of_those_of_8_bits():
    for seed in range(5):
        view = StrongView()(pixels(), np.random.default_rng(seed))
        deep = StrongView(white=65535.0)(pixels(dtype=np.float32) * 257, np.random.default_rng(seed))
        torch.testing.assert_close(deep, view * 257, rtol=1e-4, atol=2.0)


def test_channels_that_are_no_colors_are_only_blurred():
    image = torch.cat([pixels(), pixels()])
    means = image.float().mean(dim=(1, 2))
    changed = 0
    for seed in range(10):
        view = StrongView(are_colors=False)(image, np.random.default_rng(seed))
        assert (view.mean(dim=(1, 2)) - means).abs().max() < 5
        changed += not torch.equal(view, image.float())
    assert 0 < changed < 10
