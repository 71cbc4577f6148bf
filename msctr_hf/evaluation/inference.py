"""Prediction: whole pictures, sliding windows, several scales, mirrored.

B = images, L = classes; sizes are (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..models.decode_heads import resize

Size = tuple[int, int]

CPU_STRIP_ROWS = 8  # a strip stays in a core's cache
DEVICE_STRIP_ROWS = 256  # fewer launches


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
    batch_size: int = 8,
) -> torch.Tensor:
    """Class probabilities of every pixel, averaged over scales and mirror images.

    Every view's logits are upsampled to the output size as the network upsamples them, then softmax, then the mean.

    Args:
        model (`nn.Module`): A model whose output has `logits`, in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Normalised pictures, not padded.
        output_size (`Sequence[int]`, *optional*): Size of the result; that of `pixel_values` by default.
        crop_size (`Sequence[int]`, *optional*): Sliding window; whole pictures by default. Overlapping logits are
            averaged; smaller pictures are padded to one window.
        stride (`Sequence[int]`, *optional*): Of the window; two thirds of it by default. The last is shifted inside.
        scales (`Sequence[float]`): Factors by which pictures are resized.
        flip (`bool`): Also predict mirror images.
        size_divisor (`int`): Pad whole pictures at the right and the bottom to a multiple; padding is cut off again.
        batch_size (`int`): Windows, or pictures, at a time.

    Returns:
        `torch.Tensor` of shape `(B, L, *output_size)`: probabilities, float32.

    Raises:
        ValueError: If a size, a stride or a scale is impossible.
    """
    align_corners = _align_corners(model)
    output_size = _size(pixel_values.shape[-2:] if output_size is None else output_size)
    total, views = None, 0
    for logits in _views(model, pixel_values, crop_size, stride, scales, flip, size_divisor, batch_size):
        probabilities = resize(logits, output_size, align_corners).softmax(dim=1)
        total = probabilities if total is None else total.add_(probabilities)
        views += 1
    return total.div_(views)


@torch.no_grad()
def predict_labels(
    model: nn.Module,
    pixel_values: torch.Tensor,
    *,
    output_size: Sequence[int] | None = None,
    crop_size: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    size_divisor: int = 1,
    batch_size: int = 8,
) -> torch.Tensor:
    """The most probable class of every pixel, (B, *output_size) uint8, or int64 with more than 256 classes.

    The classes of `predict_probabilities`, several times faster and without ever holding all probabilities.
    Arguments and errors as there.
    """
    output_size = _size(pixel_values.shape[-2:] if output_size is None else output_size)
    views = list(_views(model, pixel_values, crop_size, stride, scales, flip, size_divisor, batch_size))
    return most_probable_classes(views, output_size, _align_corners(model))


def most_probable_classes(views: Sequence[torch.Tensor], size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """Upsample logits, average the probabilities of several views, take the largest: strip by strip of rows.

    Args:
        views (`Sequence[torch.Tensor]` of shapes `(B, L, h, w)`): Logits, at any sizes.
        size (`Sequence[int]`): Height and width of the result.
        align_corners (`bool`): As in `F.interpolate`.

    Returns:
        `torch.Tensor` of shape `(B, *size)`, uint8, or int64 with more than 256 classes.
    """
    num_images, num_labels = views[0].shape[:2]
    dtype = torch.uint8 if num_labels <= 256 else torch.int64
    labels = torch.empty((num_images, *size), dtype=dtype, device=views[0].device)
    num_rows = CPU_STRIP_ROWS if labels.device.type == "cpu" else DEVICE_STRIP_ROWS
    for top in range(0, size[0], num_rows):
        rows = slice(top, min(top + num_rows, size[0]))
        strips = (_resize_to_rows(logits, rows, size, align_corners) for logits in views)
        total = next(strips) if len(views) == 1 else sum(strip.softmax(dim=1) for strip in strips)
        labels[:, rows] = total.permute(0, 2, 3, 1).argmax(dim=-1)
    return labels


def _resize_to_rows(logits: torch.Tensor, rows: slice, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """Some rows of what bilinear interpolation of (B, L, h, w) to `size` gives, classes side by side in memory."""
    height = logits.shape[2]
    positions = torch.arange(rows.start, rows.stop, dtype=torch.float64)
    if align_corners:
        positions = positions * ((height - 1) / max(size[0] - 1, 1))
    else:
        positions = ((positions + 0.5) * (height / size[0]) - 0.5).clamp_(0, height - 1)
    upper = positions.floor().long().clamp_max_(height - 1)
    lower = (upper + 1).clamp_max_(height - 1)
    weights = (positions - upper).to(logits.device, logits.dtype)[:, None, None]
    first, last = int(upper[0]), int(lower[-1])
    source = logits[:, :, first : last + 1].permute(0, 2, 3, 1).contiguous()  # (B, few rows, w, L)
    upper, lower = (torch.stack([upper, lower]) - first).to(logits.device)
    between = torch.lerp(source[:, upper], source[:, lower], weights).permute(0, 3, 1, 2)  # (B, L, rows, w)
    return resize(between, (between.shape[2], size[1]), align_corners)


def _views(
    model: nn.Module, pixel_values: torch.Tensor, crop_size, stride, scales, flip, size_divisor, batch_size
) -> Iterator[torch.Tensor]:
    """Logits of every scale and mirror image, mirrored back, at sizes of their own."""
    crop_size, stride = _check_views(crop_size, stride, scales, size_divisor)
    align_corners = _align_corners(model)
    for scale in scales:
        size = _size(max(1, round(side * scale)) for side in pixel_values.shape[-2:])
        scaled = resize(pixel_values, size, align_corners=False)
        for mirrored in (False, True) if flip else (False,):
            view = scaled.flip(-1) if mirrored else scaled
            if crop_size is not None:
                logits = _window_logits(model, view, crop_size, stride, batch_size, align_corners)
            else:
                logits = _whole_logits(model, view, size_divisor, batch_size, align_corners)
            yield logits.flip(-1) if mirrored else logits


def _align_corners(model: nn.Module) -> bool:
    return bool(getattr(model.config, "align_corners", False))


def _whole_logits(
    model: nn.Module, pixel_values: torch.Tensor, size_divisor: int, batch_size: int, align_corners: bool
) -> torch.Tensor:
    """Logits of whole pictures: at the stride of the head, or at the size of the picture where it was padded."""
    size = pixel_values.shape[-2:]
    canvas = _size(-(-side // size_divisor) * size_divisor for side in size)
    pixel_values = _pad(pixel_values, canvas)
    logits = torch.cat([_forward(model, part) for part in pixel_values.split(batch_size)])
    if canvas == _size(size):
        return logits
    return resize(logits, canvas, align_corners)[..., : size[0], : size[1]]


def _window_logits(
    model: nn.Module,
    pixel_values: torch.Tensor,
    crop_size: Size,
    stride: Size,
    batch_size: int,
    align_corners: bool,
) -> torch.Tensor:
    """Mean of the logits of overlapping windows, at the size of the picture."""
    height, width = pixel_values.shape[-2:]
    canvas = _pad(pixel_values, (max(height, crop_size[0]), max(width, crop_size[1])))
    corners = [
        (image, top, left)
        for image in range(len(canvas))
        for top in window_starts(canvas.shape[-2], crop_size[0], stride[0])
        for left in window_starts(canvas.shape[-1], crop_size[1], stride[1])
    ]
    total, counts = None, canvas.new_zeros((len(canvas), 1, *canvas.shape[-2:]), dtype=torch.float32)
    for part in _batches(corners, batch_size):
        windows = torch.stack(
            [canvas[i, :, top : top + crop_size[0], left : left + crop_size[1]] for i, top, left in part]
        )
        logits = resize(_forward(model, windows), crop_size, align_corners)
        if total is None:
            total = logits.new_zeros((len(canvas), logits.shape[1], *canvas.shape[-2:]))
        for (image, top, left), window in zip(part, logits, strict=True):
            area = (image, slice(None), slice(top, top + crop_size[0]), slice(left, left + crop_size[1]))
            total[area] += window
            counts[area] += 1
    return (total / counts)[..., :height, :width]


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """First pixels of windows along one side; the last window ends at the border."""
    if side <= window:
        return [0]
    return [*range(0, side - window, stride), side - window]


def _forward(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    parameter = next(model.parameters())
    return model(pixel_values=pixel_values.to(parameter.device, parameter.dtype)).logits.float()


def _pad(pixel_values: torch.Tensor, canvas: Size) -> torch.Tensor:
    """Pad at the right and the bottom with zero, the mean colour."""
    height, width = pixel_values.shape[-2:]
    return F.pad(pixel_values, (0, canvas[1] - width, 0, canvas[0] - height))


def _batches(entries: list, batch_size: int) -> Iterator[list]:
    return (entries[start : start + batch_size] for start in range(0, len(entries), batch_size))


def _size(values) -> Size:
    height, width = values
    return int(height), int(width)


def _check_views(crop_size, stride, scales, size_divisor) -> tuple[Size | None, Size | None]:
    if not scales or min(scales) <= 0:
        raise ValueError(f"`scales` must be positive, got {list(scales)}.")
    if size_divisor < 1:
        raise ValueError(f"`size_divisor` must be at least 1, got {size_divisor}.")
    if crop_size is None:
        if stride is not None:
            raise ValueError("A window stride needs a window size.")
        return None, None
    crop_size = _size(crop_size)
    stride = tuple(max(1, 2 * side // 3) for side in crop_size) if stride is None else _size(stride)
    if min(crop_size) < 1 or any(not 1 <= step <= side for step, side in zip(stride, crop_size, strict=True)):
        raise ValueError(f"The stride of a window must lie between 1 and its size {crop_size}, got {stride}.")
    return crop_size, stride
