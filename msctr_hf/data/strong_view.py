"""Strong view of a crop: random colors, gray values and blur, which leave every pixel in its place.

The order and the probabilities are those of UniMatch (https://arxiv.org/abs/2208.09910), whose hues move further.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .color_jitter import WHITE, jitter_colors, luma

JITTER_PROBABILITY, GRAY_PROBABILITY, BLUR_PROBABILITY = 0.8, 0.2, 0.5
LARGEST_CHANGE = 0.5  # of the factors of brightness, contrast and saturation
LARGEST_TURN = 0.15  # of hues; the shift of `jitter_colors` ends at a sixth of a turn
BLUR_RANGE = (0.1, 2.0)  # standard deviation, in pixels of a crop whose shorter side is BLURRED_SIDE or more
# the blur of UniMatch is for crops of 321 to 801 pixels; in small ones, it would erase thin objects
BLURRED_SIDE = 512
_REACH = 4  # standard deviations after which the weights of a blur are cut off


@dataclass(frozen=True)
class StrongView:
    """Random change of the colors of a crop: jitter in 80 %, gray in 20 %, Gaussian blur in 50 % of the crops.

    Args:
        strength (`float`): Factor of the ranges of the changes, and of the probability of gray, in [0, 1].
        are_colors (`bool`): Whether the channels are red, green and blue; others are only blurred.
        white (`float`): Value of white.
    """

    strength: float = 1.0
    are_colors: bool = True
    white: float = WHITE

    def __call__(self, pixels: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        """Change a crop.

        Args:
            pixels (`torch.Tensor` of shape `(C, H, W)`): uint8 or float32, from 0 to `white`.
            random (`np.random.Generator`): Source of all randomness.

        Returns:
            `torch.Tensor` of shape `(C, H, W)`: float32, which shares no memory with `pixels`.
        """
        changed = pixels.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if self.are_colors:
            if random.random() < JITTER_PROBABILITY:
                changed = self._jittered(changed, random)
            if random.random() < GRAY_PROBABILITY * self.strength:
                changed = luma(changed).expand_as(changed).clone()
        if random.random() < BLUR_PROBABILITY:
            smallest, largest = BLUR_RANGE
            largest *= self.strength * min(1, min(pixels.shape[1:]) / BLURRED_SIDE)
            changed = blur(changed, random.uniform(smallest, max(smallest, largest)))
        return changed

    def _jittered(self, pixels: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        change, turn = LARGEST_CHANGE * self.strength, LARGEST_TURN * self.strength
        scaled = pixels.mul_(WHITE / self.white)
        return jitter_colors(scaled, random, (1 - change, 1 + change), (-turn, turn)).mul_(self.white / WHITE)


def blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur an image by a Gaussian; beyond its border, it continues with the nearest pixel.

    The result is a sum of shifted images, whose last bits do not depend on the number of threads, as those of a
    convolution may.

    Args:
        pixels (`torch.Tensor` of shape `(C, H, W)`): float32.
        sigma (`float`): Standard deviation, in pixels.
    """
    reach = math.ceil(_REACH * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for dimension in (1, 2):
        length = pixels.shape[dimension]
        places = torch.arange(-reach, length + reach).clamp_(0, length - 1)
        extended = pixels.index_select(dimension, places)
        pixels = torch.zeros_like(pixels)
        for start, weight in enumerate(weights.tolist()):
            pixels.add_(extended.narrow(dimension, start, length), alpha=weight)
    return pixels
