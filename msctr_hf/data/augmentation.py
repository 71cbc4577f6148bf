"""Joint augmentation of a picture and its labels: the paper's recipe, with no work outside the crop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF
from PIL import Image, ImageOps

from .labels import IGNORE_INDEX

CROP_TRIES = 10
JITTER_RANGE = (2 / 3, 1.5)  # factors of brightness, contrast and saturation
HUE_RANGE = (-0.05, 0.05)


@dataclass(frozen=True)
class TrainingAugmentation:
    """Scale, aspect, padding, crop, mirror, colours, normalisation.

    Args:
        crop_size (`Sequence[int]`): Height and width of the result, in pixels.
        image_mean, image_std (`Sequence[float]`): Normalisation, for values from 0 to 1.
        scale_range (`Sequence[float]`): Range of the scale s.
        aspect_range (`Sequence[float]`): Range of a; the width is scaled by s sqrt(a), the height by s / sqrt(a).
        max_class_share (`float`): Crops of which one class fills this share of the valid pixels are drawn again.
        flip_probability (`float`): Probability of mirroring.
        color_jitter (`bool`): Whether colours vary.
    """

    crop_size: Sequence[int]
    image_mean: Sequence[float]
    image_std: Sequence[float]
    scale_range: Sequence[float] = (0.5, 2.0)
    aspect_range: Sequence[float] = (0.9, 1.1)
    max_class_share: float = 0.75
    flip_probability: float = 0.5
    color_jitter: bool = True

    def __call__(
        self, image: Image.Image, label: Image.Image, random: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment one sample.

        Args:
            image (`Image`): RGB picture.
            label (`Image`): Train ids, mode L, of the same size.
            random (`np.random.Generator`): Source of all randomness.

        Returns:
            `tuple`: pixel values (3, height, width) float32, normalised; labels (height, width) int64, 255 where
            ignored or padded.
        """
        window, labels = self._choose_window(label, random)
        crop = window.cut(image, Image.Resampling.BILINEAR, tuple(round(255 * mean) for mean in self.image_mean))
        if random.random() < self.flip_probability:
            crop, labels = ImageOps.mirror(crop), labels[:, ::-1]
        if self.color_jitter:
            crop = jitter_colors(crop, random)
        return normalize(crop, self.image_mean, self.image_std), torch.from_numpy(labels.astype(np.int64))

    def _choose_window(self, label: Image.Image, random: np.random.Generator) -> tuple[_Window, np.ndarray]:
        smallest, largest = self.scale_range
        scale = random.uniform(smallest, largest)
        narrowest, widest = self.aspect_range
        aspect = random.uniform(narrowest, widest)
        size = (
            max(1, round(label.height * scale / math.sqrt(aspect))),
            max(1, round(label.width * scale * math.sqrt(aspect))),
        )
        padding = [
            int(random.integers(max(crop - side, 0) + 1)) for crop, side in zip(self.crop_size, size, strict=True)
        ]
        for _ in range(CROP_TRIES):
            corner = [
                int(random.integers(max(side - crop, 0) + 1)) for crop, side in zip(self.crop_size, size, strict=True)
            ]
            window = _Window(tuple(self.crop_size), size, tuple(corner), tuple(padding))
            labels = np.asarray(window.cut(label, Image.Resampling.NEAREST, IGNORE_INDEX))
            if largest_class_share(labels) < self.max_class_share:
                break
        return window, labels


@dataclass(frozen=True)
class _Window:
    """A crop of a picture that was resized to `size` and padded up to the crop; all values (height, width)."""

    crop: tuple[int, ...]
    size: tuple[int, ...]
    corner: tuple[int, ...]
    padding: tuple[int, ...]

    def cut(self, picture: Image.Image, resample: Image.Resampling, fill: int | tuple[int, ...]) -> Image.Image:
        """Resize only what the crop shows, and pad."""
        height, width = (min(crop, side) for crop, side in zip(self.crop, self.size, strict=True))
        rows, columns = picture.height / self.size[0], picture.width / self.size[1]  # source pixels per pixel
        top, left = self.corner
        box = (left * columns, top * rows, (left + width) * columns, (top + height) * rows)
        box = (*box[:2], min(box[2], picture.width), min(box[3], picture.height))  # against rounding
        part = picture.resize((width, height), resample, box=box)
        if (height, width) == self.crop:
            return part
        canvas = Image.new(picture.mode, (self.crop[1], self.crop[0]), fill)
        canvas.paste(part, (self.padding[1], self.padding[0]))
        return canvas


def largest_class_share(labels: np.ndarray) -> float:
    """Share of the valid pixels that the most frequent class fills; 1 where none is valid."""
    counts = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    return float(counts.max() / counts.sum()) if counts.sum() else 1.0


def jitter_colors(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Vary brightness, contrast, saturation and hue, in random order."""
    changes = [
        (tvF.adjust_brightness, JITTER_RANGE),
        (tvF.adjust_contrast, JITTER_RANGE),
        (tvF.adjust_saturation, JITTER_RANGE),
        (tvF.adjust_hue, HUE_RANGE),
    ]
    for position in random.permutation(len(changes)):
        change, values = changes[position]
        image = change(image, float(random.uniform(*values)))
    return image


def normalize(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """RGB picture -> (3, H, W) float32."""
    return tvF.normalize(tvF.to_dtype(tvF.pil_to_tensor(image), torch.float32, scale=True), list(mean), list(std))
