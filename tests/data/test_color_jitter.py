import colorsys

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvF

from msctr_hf.data.color_jitter import HUE_RANGE, JITTER_RANGE, _hue, jitter_colors


def pixels(seed=0, size=(50, 70)):
    image = np.random.default_rng(seed).integers(0, 256, (3, *size))
    image[:, :5] = image[:1, :5]  # gray
    image[:, 5:10] = image[:, 5:10] // 128 * 255  # saturated colors: corners of the hexagon of hues
    return torch.from_numpy(image).byte()


def with_torchvision(image, random):
    """Apply the same random changes with the functions of torchvision, on floats."""
    changes = [tvF.adjust_brightness, tvF.adjust_contrast, tvF.adjust_saturation, tvF.adjust_hue]
    for position in random.permutation(4):
        values = HUE_RANGE if position == 3 else JITTER_RANGE
        image = changes[position](image, float(random.uniform(*values)))
    return image


@pytest.mark.parametrize("turns", [-0.05, -0.01, 0.0, 0.03, 0.05])
def test_the_hue_is_shifted_as_in_the_hsv_color_space(turns):
    image = pixels().float()
    turned = image.clone()
    _hue(turns)(turned)
    for y in range(0, 50, 2):
        for x in range(70):
            hue, saturation, value = colorsys.rgb_to_hsv(*(image[:, y, x] / 255).tolist())
            expected = 255 * torch.tensor(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
            torch.testing.assert_close(turned[:, y, x], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_jitter_equals_that_of_torchvision(seed):
    image = pixels(seed, (300, 300))  # larger than one strip
    jittered = jitter_colors(image, np.random.default_rng(seed))
    expected = 255 * with_torchvision(image / 255, np.random.default_rng(seed))
    torch.testing.assert_close(jittered, expected, rtol=0, atol=0.2)  # torchvision weights red by 0.2989, not by 0.299


def test_jitter_depends_on_the_seed():
    first, again, other = (jitter_colors(pixels(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, pixels().float())
