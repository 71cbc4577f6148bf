"""Joint augmentation of an image and its labels: the recipe of the paper, computed only for the crop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .color_jitter import WHITE, jitter_colors
from .labels import IGNORE_INDEX
from .regions import Pixels, as_pixels
from .user_transform import UserTransform

CROP_TRIES = 10


@dataclass(frozen=True)
class TrainingAugmentation:
    """Augmentation of an image and its labels: random scale, aspect ratio, crop, mirroring, rotation and colors.

    Args:
        crop_size (`Sequence[int]`): Height and width of the result, in pixels.
        image_mean, image_std (`Sequence[float]`): Mean and standard deviation of every channel of the pixel values,
            for values of which white is 1.
        scale_range (`Sequence[float]`): Range of the scale s.
        aspect_range (`Sequence[float]`): Range of the aspect factor a; the width is scaled by s sqrt(a), the height by
            s / sqrt(a).
        max_class_share (`float`): Another crop is drawn, at most 9 times, while one class covers at least this share
            of the valid pixels.
        flip_probability (`float`): Probability of mirroring left and right.
        flip_vertical_probability (`float`): Probability of mirroring top and bottom.
        rotate90 (`bool`): Whether to rotate by 0, 90, 180 or 270 degrees, with equal probability. For a quarter turn,
            a window of the transposed crop size is cut, so that crops need not be square.
        user_transform (`UserTransform`, *optional*): Function that changes the crop, after rotation and before its
            colors are jittered.
        color_jitter (`bool`): Whether to jitter brightness, contrast, saturation and hue.
        padding_mode (`str`): Padding of images smaller than the crop: `"constant"`, the mean color, or `"reflect"`;
            labels are ignored there in both modes.
        channel_order (`Sequence[int]`): Position in the image of every channel of the pixel values: (2, 1, 0) for BGR.
        white (`float`): Value of white: 255, 65,535 for images of 16 bits, and 1 for values without a white.
    """

    crop_size: Sequence[int]
    image_mean: Sequence[float]
    image_std: Sequence[float]
    scale_range: Sequence[float] = (0.5, 2.0)
    aspect_range: Sequence[float] = (0.9, 1.1)
    max_class_share: float = 0.75
    flip_probability: float = 0.5
    flip_vertical_probability: float = 0.0
    rotate90: bool = False
    user_transform: UserTransform | None = None
    color_jitter: bool = True
    padding_mode: str = "constant"
    channel_order: Sequence[int] = (0, 1, 2)
    white: float = WHITE

    def __call__(
        self,
        image: Image.Image | Pixels,
        label: Image.Image | Pixels,
        random: np.random.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment one sample.

        Args:
            image (`Image` or `Pixels` of shape `(H, W, C)`): RGB image, or an array of any type of values. Of an array
                in a memory-mapped file, or of a large TIFF, only the part that the crop shows is read.
            label (`Image` or `Pixels` of shape `(H, W)`, uint8): Train ids, mode L, of the same size.
            random (`np.random.Generator`): Source of all randomness.

        Returns:
            `tuple`: pixel values (C, height, width) float32, normalized; labels (height, width) int64, 255 where
            ignored or padded.
        """
        pixels, labels = self.crop(image, label, random)
        if self.color_jitter:
            pixel_values = self._jitter_colors(pixels, random)
        else:
            pixel_values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return self.normalized(pixel_values), torch.from_numpy(labels.astype(np.int64))

    def tensors(self, sample: dict[str, Any], random: np.random.Generator) -> dict[str, torch.Tensor]:
        """Augment a sample {image, label} to the tensors `pixel_values` and `labels` of a batch."""
        pixel_values, labels = self(sample["image"], sample["label"], random)
        return {"pixel_values": pixel_values, "labels": labels}

    def crop(
        self, image: Image.Image | Pixels, label: Image.Image | Pixels, random: np.random.Generator
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Change all but the colors of a sample, whose arguments are those of a call.

        Returns:
            `tuple`: pixels (C, height, width), uint8 or float32, with the channels of the image; labels (height,
            width), uint8.
        """
        # What is switched off draws no random number, so that a new option does not change the images of other runs.
        turns = int(random.integers(4)) if self.rotate90 else 0
        rows, columns, labels = self._choose_window(as_pixels(label), random, transposed=turns % 2 == 1)
        pixels = self._resize_and_pad(as_pixels(image), rows, columns)
        if random.random() < self.flip_probability:
            pixels, labels = pixels.flip(-1), labels[:, ::-1]
        if self.flip_vertical_probability and random.random() < self.flip_vertical_probability:
            pixels, labels = pixels.flip(-2), labels[::-1]
        if turns:
            pixels, labels = torch.rot90(pixels, turns, (-2, -1)), np.rot90(labels, turns)
        if self.user_transform is not None:
            image, labels = self.user_transform(
                np.ascontiguousarray(pixels.permute(1, 2, 0)), np.ascontiguousarray(labels), random
            )
            pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
        return pixels, labels

    def normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bring channels into the order of the network and normalize them, (C, height, width) float32, in place."""
        if list(self.channel_order) != sorted(self.channel_order):
            pixels = pixels[list(self.channel_order)]
        return normalize(pixels, self.image_mean, self.image_std, self.white)

    def _jitter_colors(self, pixels: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        if self.white == WHITE:
            return jitter_colors(pixels, random)
        return jitter_colors(pixels * (WHITE / self.white), random).mul_(self.white / WHITE)

    def _choose_window(
        self, label: Pixels, random: np.random.Generator, transposed: bool = False
    ) -> tuple[_Span, _Span, np.ndarray]:
        """Choose the rows and columns of a crop, and return them with its labels."""
        crop_size = self.crop_size[::-1] if transposed else self.crop_size
        scale = random.uniform(self.scale_range[0], self.scale_range[1])
        aspect = random.uniform(self.aspect_range[0], self.aspect_range[1])
        factors = (scale / math.sqrt(aspect), scale * math.sqrt(aspect))
        sizes = [max(1, round(source * factor)) for source, factor in zip(label.shape, factors, strict=True)]
        padding = [int(random.integers(max(crop - side, 0) + 1)) for crop, side in zip(crop_size, sizes, strict=True)]
        for _ in range(CROP_TRIES):
            corner = [
                int(random.integers(max(side - crop, 0) + 1)) for crop, side in zip(crop_size, sizes, strict=True)
            ]
            rows, columns = (_Span(*one) for one in zip(label.shape, sizes, crop_size, corner, padding, strict=True))
            labels = _resize_labels(label, rows, columns)
            if largest_class_share(labels) < self.max_class_share:
                break
        return rows, columns, labels

    def _resize_and_pad(self, image: Pixels, rows: _Span, columns: _Span) -> torch.Tensor:
        """Compute the pixels of the crop by antialiased bilinear interpolation.

        Returns:
            `torch.Tensor` of shape `(C, height, width)`: uint8, or float32 for an image of another type.
        """
        # copies a read-only array, about which torch would warn
        region = np.require(image[rows.region, columns.region], requirements=["W"])
        if region.dtype != np.uint8:
            region = region.astype(np.float32)
        # A private operator, because F.interpolate(antialias=True) accepts a size or a scale, not both: with the scale
        # alone, 36 of 660 random crops came out different, most of them a row or column short. torchvision's
        # resized_crop rounds the window to whole pixels of the source: 578 of the 660 came out different.
        resized = torch.ops.aten._upsample_bilinear2d_aa(
            torch.from_numpy(region).permute(2, 0, 1)[None],  # channels last in memory, for which there is a fast path
            [rows.computed, columns.computed],
            False,
            1 / rows.scale,
            1 / columns.scale,
        )[0, :, rows.kept, columns.kept]
        crop_size = (rows.crop, columns.crop)
        if resized.shape[1:] == crop_size:
            return resized
        if self.padding_mode == "reflect":
            return resized[:, rows.reflected()[:, None], columns.reflected()]
        canvas = torch.empty((len(self.channel_order), *crop_size), dtype=resized.dtype)
        for channel, mean in zip(self.channel_order, self.image_mean, strict=True):
            # the color next to pixel values of 0
            canvas[channel] = round(255 * min(max(mean, 0), 1)) if resized.dtype == torch.uint8 else self.white * mean
        canvas[:, rows.place, columns.place] = resized
        return canvas


@dataclass
class _Span:
    """Rows, or columns, of a crop from a resized image, of which only the crop is computed.

    The part that is resized starts at a whole pixel of the source, so the crop is shifted by at most half a source
    pixel compared with a crop of the whole resized image.

    Args:
        source (`int`): Length of the image, in pixels.
        resized (`int`): Length of the resized image, in pixels.
        crop (`int`): Length of the crop, in pixels.
        corner (`int`): Position of the first pixel of the crop in the resized image.
        padding (`int`): Number of pixels of the crop before the image.
    """

    source: int
    resized: int
    crop: int
    corner: int
    padding: int

    def __post_init__(self) -> None:
        self.length = min(self.crop, self.resized)  # number of pixels of the crop that show the image
        self.place = slice(self.padding, self.padding + self.length)  # position of those pixels in the crop
        self.scale = self.source / self.resized  # source pixels per resized pixel

        # `reach` is the number of source pixels that the filter reads on either side of the nearest one; some pixels
        # before the crop are computed and dropped, so that the filter is not cut off at the border of the crop
        reach = math.ceil(max(1.0, self.scale))
        skipped = min(self.corner, math.ceil(reach / self.scale))
        count = skipped + self.length
        self.kept = slice(skipped, count)  # part of the resized region that the crop shows

        last = math.floor(self.source - count * self.scale + 1e-6)
        self.start = max(0, min(round((self.corner - skipped) * self.scale), last))
        stop = min(self.source, math.ceil(self.start + count * self.scale) + reach)
        self.region = slice(self.start, stop)  # source pixels that are resized
        # one pixel more if sizes are equal, since torch would then copy instead of filtering
        self.computed = count + 1 if count == stop - self.start else count

        # source pixel under the center of every pixel, counted from the start of the region
        centers = (np.arange(skipped, count) + 0.5) * self.scale
        self.nearest = centers.astype(np.intp).clip(max=self.source - 1 - self.start)

    def reflected(self) -> np.ndarray:
        """Compute the pixel of the image that every pixel of the crop shows if padding reflects the image."""
        after = self.crop - self.length - self.padding
        return np.pad(np.arange(self.length), (self.padding, after), mode="reflect")


def _resize_labels(label: Pixels, rows: _Span, columns: _Span) -> np.ndarray:
    """Compute the labels of the crop, (height, width) uint8, from the nearest pixels; 255 where padded."""
    labels = label[rows.region, columns.region][rows.nearest].take(columns.nearest, axis=1)
    if labels.shape == (rows.crop, columns.crop):
        return labels
    canvas = np.full((rows.crop, columns.crop), IGNORE_INDEX, dtype=np.uint8)
    canvas[rows.place, columns.place] = labels
    return canvas


def largest_class_share(labels: np.ndarray) -> float:
    """Compute the share of the valid pixels that the most frequent class covers; 1 if no pixel is valid."""
    counts = np.asarray(Image.fromarray(labels).histogram()[:IGNORE_INDEX])
    return float(counts.max() / counts.sum()) if counts.sum() else 1.0


def normalize(
    pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float], white: float = WHITE
) -> torch.Tensor:
    """Normalize pixel values (C, H, W), float32 in [0, white], in place."""
    shift, scale = (torch.tensor(values, dtype=torch.float32)[:, None, None] * white for values in (mean, std))
    return pixel_values.sub_(shift).div_(scale)
