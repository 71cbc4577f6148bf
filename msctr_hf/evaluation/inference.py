"""Prediction of whole images or sliding windows, at several scales, with mirror images.

B = images, L = classes; sizes are (height, width) in pixels.

Logits are upsampled to the size of the labels: for 150 classes at 1024x2048 pixels, 1.3 GB of float32 per image. Since
only the most probable class of every pixel is kept, upsampling, softmax, mean and argmax are computed for a strip of a
few rows before the next strip begins, and logits of a whole image are never stored at this size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UsageError
from ..models.decode_heads import resize
from ..models.image_processing_msctr import pad
from .finite import finite_outputs
from .image_preparation import DeferredPixelValues
from .settings import InferenceSettings, Size

CPU_STRIP_ROWS = 4  # few enough for a strip to stay in the cache of a core
DEVICE_STRIP_ROWS = 256  # enough for the launches of kernels to take no noticeable time


@torch.no_grad()
def predict_probabilities(
    model: nn.Module,
    pixel_values: torch.Tensor,
    *,
    output_size: Sequence[int] | None = None,
    crop_size: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    size_divisor: int = 1,
    padding_mode: str = "constant",
    batch_size: int = 8,
) -> torch.Tensor:
    """Compute the class probabilities of every pixel, averaged over scales and mirror images.

    The logits of every view are upsampled to the output size, as the network upsamples them; then their softmax is
    averaged.

    Args:
        model (`nn.Module`): A model whose output has `logits`, in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Normalized images, not padded.
        output_size (`Sequence[int]`, *optional*): Size of the result; the size of `pixel_values` by default.
        crop_size (`Sequence[int]`, *optional*): Size of a sliding window; whole images by default. Overlapping logits
            are averaged; smaller images are padded to one window.
        stride (`Sequence[int]`, *optional*): Stride of the window; two thirds of the window by default. The last
            window is shifted inside the image.
        scales (`Sequence[float]`): Factors by which images are resized.
        flip (`bool`): Whether to also predict mirror images.
        size_divisor (`int`): Whole images are padded at the right and the bottom to a multiple of this, and the
            padding is removed afterwards.
        padding_mode (`str`): `"constant"`, which pads zeros, or `"reflect"`.
        batch_size (`int`): Number of images, or windows, in one forward pass.

    Returns:
        `torch.Tensor` of shape `(B, L, *output_size)`: probabilities, float32.

    Raises:
        UsageError: If a size, a stride or a scale is not valid.
        NotFiniteError: If a logit is NaN or infinite.
    """
    output_size = _size(pixel_values.shape[-2:] if output_size is None else output_size)
    try:
        # any sequences, which are checked and converted there
        view: Any = {"scales": scales, "window_size": crop_size, "window_stride": stride}
        settings = InferenceSettings(
            **view, flip=flip, batch_size=batch_size, size_divisor=size_divisor, padding_mode=padding_mode
        )
    except UsageError as error:
        sentence = str(error).replace("`window_size`", "`crop_size`").replace("`window_stride`", "`stride`")
        raise UsageError(sentence) from None
    views = _views(model, pixel_values, settings)
    probabilities = None
    for rows, strip in _mean_probabilities(views, output_size, _align_corners(model)):
        if probabilities is None:
            probabilities = strip.new_empty((*strip.shape[:2], *output_size))
        probabilities[:, :, rows] = strip
    return probabilities


@torch.no_grad()
def predict_labels(
    model: nn.Module,
    pixel_values: torch.Tensor,
    settings: InferenceSettings | None = None,
    *,
    output_size: Sequence[int] | None = None,
) -> torch.Tensor:
    """Find the most probable class of every pixel: (B, *output_size) uint8, or int64 with more than 256 classes.

    It returns the argmax of `predict_probabilities`, but is several times faster and does not store all probabilities:
    with a sliding window, memory grows with the images and one row of windows, not with the classes of every pixel.

    Args:
        model (`nn.Module`): A model whose output has `logits`, in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Normalized images, not padded.
        settings (`InferenceSettings`, *optional*): Whole images at one scale by default.
        output_size (`Sequence[int]`, *optional*): Size of the result; the size of `pixel_values` by default.

    Raises:
        NotFiniteError: If a logit is NaN or infinite.
    """
    output_size = _size(pixel_values.shape[-2:] if output_size is None else output_size)
    views = _views(model, pixel_values, settings or InferenceSettings())
    return _largest(views, output_size, _align_corners(model))


@torch.no_grad()
def predict_label_maps(
    model: nn.Module,
    pixel_values: torch.Tensor | DeferredPixelValues,
    settings: InferenceSettings,
    output_sizes: Sequence[Size],
) -> list[torch.Tensor]:
    """Predict as `predict_labels` does, with a separate size for the class map (H, W) of every image.

    Pixel values may be deferred with a sliding window at one scale, which is 1.
    """
    views, align_corners = _views(model, pixel_values, settings), _align_corners(model)
    if len(set(output_sizes)) == 1:
        return list(_largest(views, output_sizes[0], align_corners))
    return [
        _largest([view.select_image(index) for view in views], size, align_corners)[0]
        for index, size in enumerate(output_sizes)
    ]


@torch.no_grad()
def predict_probabilities_at(
    model: nn.Module,
    pixel_values: torch.Tensor | DeferredPixelValues,
    settings: InferenceSettings,
    *,
    output_size: Size,
    rows: Sequence[int] | np.ndarray,
    columns: Sequence[int] | np.ndarray,
) -> torch.Tensor:
    """Compute `predict_probabilities` where some rows and columns of the result cross, without the rest of its rows.

    Args:
        model (`nn.Module`): A model whose output has `logits`, in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Normalized images, not padded.
        settings (`InferenceSettings`): Scales, mirror images, windows, batch size and padding.
        output_size (`tuple[int, int]`): Size of the result of `predict_probabilities`.
        rows (`Sequence[int]`): Rows of it, in ascending order.
        columns (`Sequence[int]`): Columns of it.

    Returns:
        `torch.Tensor` of shape `(B, L, len(rows), len(columns))`: probabilities, float32.

    Raises:
        NotFiniteError: If a logit is NaN or infinite.
    """
    views = _views(model, pixel_values, settings)
    chosen = torch.as_tensor(columns, device=views[0].device)
    single_rows = (slice(row, row + 1) for row in map(int, rows))
    strips = _mean_probabilities(views, output_size, _align_corners(model), single_rows)
    return torch.cat([strip[..., chosen] for _, strip in strips], dim=2)


def most_probable_classes(views: Sequence[torch.Tensor], size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """Upsample logits, average the probabilities of several views and take the argmax, in strips of rows.

    Args:
        views (`Sequence[torch.Tensor]` of shapes `(B, L, h, w)`): Logits, at any sizes.
        size (`Sequence[int]`): Height and width of the result.
        align_corners (`bool`): As in `F.interpolate`.

    Returns:
        `torch.Tensor` of shape `(B, *size)`, uint8, or int64 with more than 256 classes.
    """
    return _largest([_WholeView(logits) for logits in views], _size(size), align_corners)


@torch.no_grad()
def classes_and_confidence(
    logits: torch.Tensor, size: Sequence[int], align_corners: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Upsample logits and find the most probable class of every pixel with its probability, in strips of rows.

    Args:
        logits (`torch.Tensor` of shape `(B, L, h, w)`): Logits.
        size (`Sequence[int]`): Height and width of the result.
        align_corners (`bool`): As in `F.interpolate`.

    Returns:
        `tuple`: classes (B, *size) int64, and their probabilities (B, *size) float32; NaN where logits are.
    """
    height, width = _size(size)
    classes = torch.empty((len(logits), height, width), dtype=torch.int64, device=logits.device)
    confidence = torch.empty(classes.shape, dtype=torch.float32, device=logits.device)
    for rows, strip in _mean_probabilities([_WholeView(logits.float())], (height, width), align_corners):
        confidence[:, rows], classes[:, rows] = strip.max(dim=1)
    return classes, confidence


def _largest(views: Sequence[_WholeView | _TiledView], size: Size, align_corners: bool) -> torch.Tensor:
    # with a single view the softmax is left out, since it does not change which class is the largest
    only_one = len(views) == 1 and not views[0].mirrored
    strips = (
        ((rows, next(_strips(views, rows, size, align_corners))) for rows in _row_slices(size, views[0].device))
        if only_one
        else _mean_probabilities(views, size, align_corners)
    )
    labels = None
    for rows, strip in strips:
        if labels is None:
            dtype = torch.uint8 if strip.shape[1] <= 256 else torch.int64
            labels = torch.empty((len(strip), *size), dtype=dtype, device=strip.device)
        labels[:, rows] = _argmax(strip.permute(0, 2, 3, 1))
    return labels


def _argmax(values: torch.Tensor) -> torch.Tensor:
    """Find the largest value along the last dimension; on a CPU, numpy is several times faster than torch."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.detach().numpy().argmax(axis=-1))
    return values.argmax(dim=-1)


def _mean_probabilities(
    views: Sequence[_WholeView | _TiledView],
    size: Size,
    align_corners: bool,
    row_slices: Iterable[slice] | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield ranges of rows of the result, by default all, from the top, with their probabilities (B, L, rows, W)."""
    num_views = sum(2 if view.mirrored else 1 for view in views)
    for rows in _row_slices(size, views[0].device) if row_slices is None else row_slices:
        strips = (strip.softmax(dim=1) for strip in _strips(views, rows, size, align_corners))
        total = next(strips)
        for strip in strips:
            total += strip
        yield rows, total.div_(num_views)


def _row_slices(size: Size, device: torch.device) -> Iterator[slice]:
    num_rows = CPU_STRIP_ROWS if device.type == "cpu" else DEVICE_STRIP_ROWS
    return (slice(top, min(top + num_rows, size[0])) for top in range(0, size[0], num_rows))


def _strips(
    views: Sequence[_WholeView | _TiledView], rows: slice, size: Size, align_corners: bool
) -> Iterator[torch.Tensor]:
    """Yield the logits of some rows of the result for every view and its mirror image."""
    for view in views:
        strip = _resize_to_rows(view, rows, size, align_corners)
        if view.mirrored:
            upright, mirrored = strip.chunk(2)
            yield upright
            yield mirrored.flip(-1)
        else:
            yield strip


class _WholeView:
    """Logits of whole images, (B, L, h, w); mirror images follow the images in B.

    Rows are requested from the top to the bottom, as for `_TiledView`.
    """

    def __init__(self, logits: torch.Tensor, mirrored: bool = False):
        self.logits = logits
        self.mirrored = mirrored
        self.size = _size(logits.shape[-2:])
        self.device = logits.device

    def select_image(self, index: int) -> _WholeView:
        """Return the view of one image of the batch."""
        logits = self.logits
        if not self.mirrored:
            return _WholeView(logits[index : index + 1])
        return _WholeView(logits[index :: len(logits) // 2], mirrored=True)

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """Return some rows of the logits, (B, L, rows, w)."""
        return self.logits[:, :, first:stop]


class _TiledView:
    """Mean logits of overlapping windows at the size of the image, computed when their rows are requested.

    Rows must be requested from the top to the bottom. A row of windows passes the network when its first row of pixels
    is needed, and is dropped once the requested rows are below it: at any time, only the windows that overlap the
    current strip are stored, at the stride of the decode head and not at the size of the image.
    """

    def __init__(
        self,
        model: nn.Module,
        pixel_values: torch.Tensor | DeferredPixelValues,
        window: Size,
        stride: Size,
        settings: InferenceSettings,
    ):
        self.model = model
        self.pixel_values = pixel_values
        self.window = window
        self.window_stride = stride
        self.settings = settings
        self.mirrored = settings.flip
        self.size = _size(pixel_values.shape[-2:])
        self.device = next(model.parameters()).device
        self.tops, self.lefts = (window_starts(*side) for side in zip(self.size, window, stride, strict=True))
        self._logits: dict[int, torch.Tensor] = {}  # top -> (B, windows in this row, L, h, w)

    def select_image(self, index: int) -> _TiledView:
        """Return the view of one image of the batch."""
        image = self.pixel_values[index : index + 1]
        return _TiledView(self.model, image, self.window, self.window_stride, self.settings)

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """Return some rows of the logits, (B, L, rows, W)."""
        height, width = self.window
        # rows are requested from the top, so windows that end above these rows are not needed again
        self._logits = {top: logits for top, logits in self._logits.items() if top + height > first}
        total = None
        counts = torch.zeros((stop - first, self.size[1]), device=self.device)
        for top in self.tops:
            above, below = max(first, top), min(stop, top + height)
            if above >= below:
                continue
            if top not in self._logits:
                self._logits[top] = self._row_of_windows(top)
            rows = slice(above - top, below - top)
            place = slice(above - first, below - first)
            for left, logits in zip(self.lefts, self._logits[top].unbind(dim=1), strict=True):
                strip = _resize_to_rows(_WholeView(logits), rows, self.window, _align_corners(self.model))
                strip = strip[..., : self.size[1] - left]  # without the padding of an image narrower than the window
                if total is None:
                    # the classes of a pixel are adjacent in memory, as upsampling writes and argmax reads them
                    total = strip.new_zeros((len(strip), stop - first, self.size[1], strip.shape[1])).permute(
                        0, 3, 1, 2
                    )
                total[:, :, place, left : left + width] += strip
                counts[place, left : left + width] += 1
        # logits are averaged before the softmax: overlapping windows are one view of the image, not several
        return total.div_(counts)

    def _row_of_windows(self, top: int) -> torch.Tensor:
        """Compute the logits of all windows that start in one row, (B, windows, L, h, w)."""
        bottom = min(top + self.window[0], self.size[0])
        if isinstance(self.pixel_values, DeferredPixelValues):
            rows = self.pixel_values.rows(top, bottom)
        else:
            rows = self.pixel_values[:, :, top:bottom]
        num_images = len(rows) * (2 if self.mirrored else 1)
        places = [(image, left) for image in range(num_images) for left in self.lefts]
        logits = [
            _forward(self.model, torch.stack([self._crop(rows, image, left) for image, left in part]))
            for part in _batches(places, self.settings.batch_size)
        ]
        return _checked(self.model, torch.cat(logits)).unflatten(0, (num_images, len(self.lefts)))

    def _crop(self, rows: torch.Tensor, image: int, left: int) -> torch.Tensor:
        """Crop one window (3, height, width) of an image or a mirror image, padded at the right and the bottom."""
        width, full_width = self.window[1], self.size[1]
        of_image = rows[image % len(rows)]
        if image < len(rows):
            crop = of_image[..., left : left + width]
        else:
            crop = of_image[..., max(0, full_width - left - width) : full_width - left].flip(-1)
        return pad(crop, self.window, self.settings.padding_mode)


def _resize_to_rows(
    view: _WholeView | _TiledView, rows: slice, size: Sequence[int], align_corners: bool
) -> torch.Tensor:
    """Compute some rows of the bilinear interpolation of a view to `size`.

    The result equals these rows of `F.interpolate` of the whole view: the two source rows of every row are blended,
    then the result is resized along its width. Classes are adjacent in memory, so that both steps read contiguously.
    """
    if view.size == tuple(size):
        return view.rows(rows.start, rows.stop)
    where = (rows.start, rows.stop, view.size[0], size[0], align_corners)
    upper, lower, weights = _source_rows(*where)
    first, last = int(upper[0]), int(lower[-1])
    source = view.rows(first, last + 1)
    if source.device.type != "cpu":
        upper, lower, weights = _source_rows_on(source.device, source.dtype, *where)
    weights = weights.to(source.dtype)[:, None, None]
    source = source.permute(0, 2, 3, 1).contiguous()  # (B, few rows, w, L)
    between = torch.lerp(source[:, upper - first], source[:, lower - first], weights)
    between = between.permute(0, 3, 1, 2)  # (B, L, rows, w)
    return resize(between, (between.shape[2], size[1]), align_corners)


def _source_rows(
    start: int, stop: int, height: int, full_height: int, align_corners: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the upper and the lower source row of some rows of the result, and the weights of the lower ones."""
    # float64, since the whole part of a position selects a source row, and rounding must not select its neighbor
    positions = torch.arange(start, stop, dtype=torch.float64)
    if align_corners:
        positions = positions * ((height - 1) / max(full_height - 1, 1))
    else:
        positions = ((positions + 0.5) * (height / full_height) - 0.5).clamp_(0, height - 1)
    upper = positions.floor().long().clamp_max_(height - 1)
    lower = (upper + 1).clamp_max_(height - 1)
    return upper, lower, positions - upper


@lru_cache(maxsize=1024)  # the strips of some sizes of images: for every copy to a GPU, the host waits
def _source_rows_on(device: torch.device, dtype: torch.dtype, *where: Any) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode(False):  # a tensor of inference mode could not be used outside of it later
        upper, lower, weights = _source_rows(*where)
        return upper.to(device), lower.to(device), weights.to(dtype).to(device)  # not all devices have float64


def _views(
    model: nn.Module, pixel_values: torch.Tensor | DeferredPixelValues, settings: InferenceSettings
) -> list[_WholeView | _TiledView]:
    """Build the views of the images: one per scale, with its own size, with or without mirror images."""
    if isinstance(pixel_values, DeferredPixelValues):
        return [_TiledView(model, pixel_values, settings.window_size, settings.stride, settings)]
    views: list[_WholeView | _TiledView] = []
    divisor = settings.size_divisor
    for scale in settings.scales:
        size = _size(max(1, round(side * scale)) for side in pixel_values.shape[-2:])
        scaled = resize(pixel_values, size, align_corners=False)
        padded = _size(-(-side // divisor) * divisor for side in size)
        if settings.window_size is not None:
            views.append(_TiledView(model, scaled, settings.window_size, settings.stride, settings))
        elif padded != size:  # a single window that is larger than the image, whose padding is dropped
            views.append(_TiledView(model, scaled, padded, padded, settings))
        else:
            images = torch.cat([scaled, scaled.flip(-1)]) if settings.flip else scaled
            logits = torch.cat([_forward(model, part) for part in images.split(settings.batch_size)])
            views.append(_WholeView(_checked(model, logits), settings.flip))
    return views


def _align_corners(model: nn.Module) -> bool:
    return bool(getattr(model.config, "align_corners", False))


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """List the first pixels of the windows along one side; the last window ends at the border."""
    if side <= window:
        return [0]
    return [*range(0, side - window, stride), side - window]


def _forward(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    parameter = next(model.parameters())
    return model(pixel_values=pixel_values.to(parameter.device, parameter.dtype)).logits.float()


def _checked(model: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Check the logits of many forward passes at once, since each check waits for the device."""
    return finite_outputs(logits, next(model.parameters()).dtype)


def _batches(entries: list, batch_size: int) -> Iterator[list]:
    return (entries[start : start + batch_size] for start in range(0, len(entries), batch_size))


def _size(values) -> Size:
    height, width = values
    return int(height), int(width)
