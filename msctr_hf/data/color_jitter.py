"""Random brightness, contrast, saturation and hue of an image, in random order and without rounding.

The changes are those of torchvision's `ColorJitter`, without rounding to 8 bits after each, and with a hue shift that
needs neither a division nor a conversion to HSV. Images are processed in strips of rows that fit into the cache of a
core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

JITTER_RANGE = (2 / 3, 1.5)  # factors of brightness, contrast and saturation
HUE_RANGE = (-0.05, 0.05)  # turns
WHITE = 255.0
_GRAY = (0.299, 0.587, 0.114)  # ITU-R 601
_SIGN_BIT = -(2**31)
_STRIP_PIXELS = 131_072

Change = Callable[[torch.Tensor], None]  # function that changes a strip (3, h, W) in place


def jitter_colors(
    pixels: torch.Tensor,
    random: np.random.Generator,
    factors: tuple[float, float] = JITTER_RANGE,
    turns: tuple[float, float] = HUE_RANGE,
) -> torch.Tensor:
    """Vary brightness, contrast, saturation and hue, in random order.

    Args:
        pixels (`torch.Tensor` of shape `(3, H, W)`): uint8, or float32 from 0 to 255.
        random (`np.random.Generator`): Source of order and amounts.
        factors (`tuple[float, float]`): Range of the factors of brightness, contrast and saturation, at least 0.
        turns (`tuple[float, float]`): Range of the shift of hues, in turns, within a sixth of a turn.

    Returns:
        `torch.Tensor` of shape `(3, H, W)`: float32, 0 to 255.
    """
    before: list[Change] = []  # before contrast, which needs the mean of the whole image after these changes
    after: list[Change] = []
    contrast = None
    for position in random.permutation(4):
        amount = float(random.uniform(*(turns if position == 3 else factors)))
        if position == 1:
            contrast = amount
        else:
            (before if contrast is None else after).append((_brightness, None, _saturation, _hue)[position](amount))
    jittered = torch.empty(pixels.shape, dtype=torch.float32)
    sums = torch.zeros(3)
    for source, strip in zip(_strips(pixels), _strips(jittered), strict=True):
        strip.copy_(source)
        for change in before:
            change(strip)
        sums += strip.sum(dim=(1, 2))
    mean_gray = float(sums @ torch.tensor(_GRAY)) / pixels[0].numel()
    after.insert(0, _contrast(contrast, mean_gray))
    for strip in _strips(jittered):
        for change in after:
            change(strip)
    return jittered


def _strips(pixels: torch.Tensor) -> Sequence[torch.Tensor]:
    return pixels.split(max(1, _STRIP_PIXELS // pixels.shape[2]), dim=1)


def luma(strip: torch.Tensor) -> torch.Tensor:
    """Compute the gray values (H, W) of colors (3, H, W)."""
    red, green, blue = strip
    return (red * _GRAY[0]).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2])


def _brightness(factor: float) -> Change:
    def change(strip: torch.Tensor) -> None:
        _clamp(strip.mul_(factor), factor)

    return change


def _contrast(factor: float, mean: float) -> Change:
    target = torch.tensor(mean)

    def change(strip: torch.Tensor) -> None:
        _clamp(torch.add((1 - factor) * target, strip, alpha=factor, out=strip), factor)

    return change


def _saturation(factor: float) -> Change:
    def change(strip: torch.Tensor) -> None:
        _clamp(torch.lerp(luma(strip), strip, factor, out=strip), factor)

    return change


def _clamp(strip: torch.Tensor, factor: float) -> None:
    """Clamp to black and white, which only a factor above 1 can exceed."""
    if factor > 1:
        strip.clamp_(0, WHITE)


def _hue(turns: float) -> Change:
    """Shift hues by less than a sixth of a turn.

    As a function of the hue, every channel is a tent that peaks at its own color, clipped to the smallest and the
    largest of the three channels. The unclipped tent is twice the channel minus the middle one. A shift by D moves
    every tent up or down by D times (largest - smallest). So every channel is unclipped, moved, and clipped again.
    """
    shift = 6 * turns

    def change(strip: torch.Tensor) -> None:
        least, largest = strip.amin(dim=0), strip.amax(dim=0)
        middle = (strip[0] + strip[1]).add_(strip[2]).sub_(least).sub_(largest)
        across = torch.empty_like(strip)  # its sign says whether a tent falls or rises at this hue
        for channel in range(3):
            torch.sub(strip[(channel + 1) % 3], strip[(channel + 2) % 3], out=across[channel])
        strip.mul_(2).sub_(middle).sub_(_with_signs_of(across, (largest - least).mul_(shift)))
        torch.clamp(strip, least, largest, out=strip)

    return change


def _with_signs_of(signs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Multiply values by signs through the sign bits (`torch.copysign` is not vectorized); overwrites `signs`."""
    bits = signs.view(torch.int32)
    return bits.bitwise_and_(_SIGN_BIT).bitwise_xor_(values.view(torch.int32)).view(torch.float32)
