"""Path from images to pixel values, one for training, validation, prediction and the pipeline."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..data.channels import Channels, rows_of, size_of
from ..errors import UsageError, brief_reason, warn_caller
from ..models.image_processing_msctr import MsctrImageProcessor, MsctrImageProcessorPil

PREPARED_ROWS = 1024  # rows of an image that are normalized at a time
_SWITCHED_OFF = {"do_center_crop": "the center crop", "do_pad": "the padding"}

# colors whose pixel values show what an image processor does with colors: a base, one more of each channel, a check
_BASE, _STEP = 32, 192
_COLORS = ((32, 32, 32), (224, 32, 32), (32, 224, 32), (32, 32, 224), (80, 160, 120))
_COLOR_TOLERANCE = 1e-4  # of the range of pixel values; float32 rounds a thousand times finer
_SIZES_TRIED = ((128, 128), (256, 128), (128, 256))  # width, height
_LEVELS_OFF = 4  # gray levels of 255: a crop of 3 % or more moves the border of the image further than this
_REMEDY = (
    "save the model with an image processor that only resizes images and normalizes colors, such as "
    "SegformerImageProcessor"
)


class Colors(NamedTuple):
    """Pixel values of a color: channel k is `(color[order[k]] / white - mean[k]) / std[k]`."""

    order: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float = 255.0


@dataclass(frozen=True)
class DeferredPixelValues:
    """Pixel values of large images, of which no more rows are computed than are needed at a time.

    Args:
        preparation (`ImagePreparation`): Path to pixel values, which does not resize.
        images (`Sequence[Image]` or `Sequence[np.ndarray]`): Images of one size.
        device (`torch.device`): Device of the pixel values.
    """

    preparation: ImagePreparation
    images: Sequence[Any]
    device: torch.device | str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels, height and width."""
        (width, height), channels = size_of(self.images[0]), self.preparation.channels
        return len(self.images), 3 if channels is None else channels.count, height, width

    def __getitem__(self, part: slice) -> DeferredPixelValues:
        return replace(self, images=self.images[part])

    def rows(self, top: int, bottom: int) -> torch.Tensor:
        """Compute the pixel values of some rows, (B, C, bottom - top, W)."""
        return self.preparation([rows_of(image, top, bottom) for image in self.images], self.device)


class ImagePreparation:
    """Pixel values of whole images, as the image processor of a model computes them.

    Image processors of networks for classification crop the center of an image, or pad it, and the labels of what is
    left would be stretched over the whole image. Both are switched off, which a warning reports. Whether the rest
    shows the whole image is measured, since processors resize in many ways; this package's own are known.

    Args:
        image_processor: Image processor of transformers.

    Raises:
        UsageError: If it shows a network something else than a whole image, or cannot prepare images.
    """

    def __init__(self, image_processor: Any):
        self.given = self.image_processor = image_processor
        self._resizes_for_processor = False
        if isinstance(image_processor, (MsctrImageProcessor, MsctrImageProcessorPil)):
            return
        self.image_processor, switched_off = _without_crops(image_processor)
        try:
            shows_whole_images = self._shows_whole_images()
            if not shows_whole_images and self._whole_size((2, 1)) is not None:
                self._resizes_for_processor = True
                switched_off.append("the crop after resizing")
                shows_whole_images = self._shows_whole_images()
        except UsageError:
            raise
        except Exception as error:  # image processors raise many kinds for images or settings that they do not take
            raise UsageError(f"{self._name} cannot prepare images ({brief_reason(error)}); {_REMEDY}.") from error
        if not shows_whole_images:
            raise UsageError(f"{self._name} crops, pads or turns images; {_REMEDY}.")
        if switched_off:
            off = f"{' and '.join(switched_off)} {'is' if len(switched_off) == 1 else 'are'} switched off"
            warn_caller(f"{self._name}: {off}, so that whole images are labeled.")

    @property
    def _name(self) -> str:
        return type(self.image_processor).__name__

    @property
    def size_divisor(self) -> int:
        """Multiple of pixels to which the image processor pads images, which prediction does instead."""
        pads = getattr(self.image_processor, "do_pad", None) is not False
        return (getattr(self.image_processor, "size_divisor", None) or 1) if pads else 1

    @property
    def padding_mode(self) -> str:
        """How prediction pads images."""
        return getattr(self.image_processor, "padding_mode", "constant")

    @property
    def channels(self) -> Channels | None:
        """Channels of the images, which are arrays (H, W, N); `None` for RGB images of 8 bits."""
        if getattr(self.image_processor, "reads_rgb", True):
            return None
        return Channels(self.image_processor.num_channels, self.image_processor.value_type)

    @cached_property
    def colors(self) -> Colors:
        """What the image processor does with colors, measured.

        Raises:
            UsageError: If it changes colors in another way than channel by channel.
        """
        if self.channels is not None:
            settings = self.image_processor
            order = tuple(range(self.channels.count))
            return Colors(order, tuple(settings.image_mean), tuple(settings.image_std), 1 / settings.rescale_factor)
        values = np.array([self._values_of_color(color) for color in _COLORS])
        slopes = (values[1:4] - values[0]).T / _STEP  # (channels of pixel values, RGB)
        order = np.abs(slopes).argmax(axis=1)
        slope = slopes[np.arange(3), order]
        tolerance = _COLOR_TOLERANCE * np.abs(slope) * 255
        others = np.abs(slopes).sum(axis=1) - np.abs(slope)
        predicted = values[0] + slope * (np.array(_COLORS[4])[order] - _BASE)
        if (
            sorted(order) != [0, 1, 2]
            or not slope.all()
            or (others * 255 > tolerance).any()
            or (np.abs(predicted - values[4]) > tolerance).any()
        ):
            raise UsageError(f"{self._name} mixes color channels, or does not normalize them linearly; {_REMEDY}.")
        std = 1 / (255 * slope)
        mean = _BASE / 255 - values[0] * std + 0.0  # not -0.0
        settings = [getattr(self.image_processor, name, None) for name in ("image_mean", "image_std")]
        if None not in settings and list(order) == [0, 1, 2]:
            given = [np.broadcast_to(np.asarray(each, dtype=np.float64), 3) for each in settings]
            if np.allclose(given, [mean, std], rtol=1e-4, atol=1e-5):  # the same, but not rounded by the measurement
                mean, std = given
        return Colors(tuple(order.tolist()), tuple(mean.tolist()), tuple(std.tolist()))

    def __call__(self, images: list[Any], device: torch.device | str = "cpu") -> torch.Tensor:
        """Resize and normalize images of one size to a batch (B, C, H, W) of float32, without padding.

        Args:
            images (`list`): RGB images of Pillow, or with `channels` arrays (H, W, C).
            device (`torch.device`): Device of the result.
        """
        width, height = size_of(images[0])
        if not self.by_rows(height):
            return self._pixel_values(images).to(device, torch.float32)
        # some rows at a time, since the image processor makes several copies of what it is given
        channels = 3 if self.channels is None else self.channels.count
        pixel_values = torch.empty((len(images), channels, height, width), device=device)
        for top in range(0, height, PREPARED_ROWS):
            bottom = min(top + PREPARED_ROWS, height)
            strips = [rows_of(image, top, bottom) for image in images]
            pixel_values[:, :, top:bottom] = self._pixel_values(strips).to(device)
        return pixel_values

    def by_rows(self, height: int) -> bool:
        """Return whether images are large, and their rows are normalized each for itself."""
        return height > PREPARED_ROWS and not self._resizes

    @property
    def _resizes(self) -> bool:
        ours = isinstance(self.image_processor, (MsctrImageProcessor, MsctrImageProcessorPil))
        return not ours or bool(self.image_processor.do_resize)

    def _pixel_values(self, images: list[Any]) -> torch.Tensor:
        options: dict[str, Any] = {}
        if getattr(self.image_processor, "size_divisor", None) is not None:
            options["size_divisor"] = 1  # not padded
        if self._resizes_for_processor:
            resample = getattr(self.image_processor, "resample", None)
            images = [image.resize(self._whole_size(image.size), resample) for image in images]
            options["do_resize"] = False
        return self.image_processor(images=images, return_tensors="pt", **options)["pixel_values"]

    def _whole_size(self, size: Sequence[int]) -> tuple[int, int] | None:
        """Return the width and height to which the image processor resizes before it crops, if its settings tell."""
        setting = dict(getattr(self.image_processor, "size", None) or {})
        if shorter := setting.get("shortest_edge"):
            factor = int(shorter / (getattr(self.image_processor, "crop_pct", None) or 1)) / min(size)
            return round(size[0] * factor), round(size[1] * factor)
        return (setting["width"], setting["height"]) if setting.keys() >= {"width", "height"} else None

    def _values_of_color(self, color: tuple[int, ...]) -> np.ndarray:
        pixel_values = self._pixel_values([Image.new("RGB", _SIZES_TRIED[0], color)])
        if pixel_values.ndim != 4 or pixel_values.shape[:2] != (1, 3):
            raise UsageError(
                f"{self._name} makes pixel values of the shape {tuple(pixel_values.shape)} of an image instead of "
                f"(1, 3, height, width); {_REMEDY}."
            )
        # the center, since a processor may surround the image with padding
        return pixel_values[0, :, pixel_values.shape[2] // 2, pixel_values.shape[3] // 2].double().numpy()

    def _shows_whole_images(self) -> bool:
        """Measure whether the pixel values of ramps are ramps from border to border, for several aspect ratios."""
        order, mean, std, _ = self.colors
        for width, height in _SIZES_TRIED:
            columns, rows = np.meshgrid(_ramp(width), _ramp(height))
            ramps = np.stack([columns, rows, np.full_like(rows, 128)], axis=-1).round().astype(np.uint8)
            values = self._pixel_values([Image.fromarray(ramps)])[0].double().numpy()
            columns, rows = np.meshgrid(_ramp(values.shape[2]), _ramp(values.shape[1]))
            for color, expected in enumerate((columns, rows)):
                channel = order.index(color)
                shown = (values[channel] * std[channel] + mean[channel]) * 255
                if np.abs(shown - expected).max() > _LEVELS_OFF:
                    return False
        return True


def _without_crops(image_processor: Any) -> tuple[Any, list[str]]:
    """Copy an image processor with crops and padding switched off, and list what was on."""
    image_processor = copy.copy(image_processor)
    switched_off = []
    for setting, what in _SWITCHED_OFF.items():
        if getattr(image_processor, setting, None) and not (
            setting == "do_pad" and _pads_to_multiple(image_processor)
        ):
            setattr(image_processor, setting, False)
            switched_off.append(what)
    return image_processor, switched_off


def _pads_to_multiple(image_processor: Any) -> bool:
    """Return whether an image processor pads to a multiple of pixels, which prediction does in the same way."""
    divisor, size = (getattr(image_processor, name, None) for name in ("size_divisor", "pad_size"))
    return divisor is not None and size is None


def _ramp(length: int) -> np.ndarray:
    """Gray levels that rise from 0 at one border to 255 at the other, at the centers of pixels."""
    return 255 * (np.arange(length) + 0.5) / length
