# Copyright 2026 the authors of msctr_hf
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Image processors, on torchvision and on PIL: from images to tensors, and from logits back to label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.image_utils import ChannelDimension, get_image_size_for_max_height_width, make_list_of_images
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.segformer.image_processing_segformer import SegformerImageProcessor
from transformers.processing_utils import ImagesKwargs

from .decode_heads import resize

LABEL_PADDING = 255
RGB_CHANNELS = 3
PADDING_MODES = ("constant", "reflect")
_LABELS_KEY, _PIXELS_KEY = "labels", "pixel_values"
_BACKENDS = {
    "torchvision": "image_processing_msctr.MsctrImageProcessor",
    "pil": "image_processing_msctr.MsctrImageProcessorPil",
}


class MsctrImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Settings that are added to those of every image processor.

    Args:
        do_reduce_labels (`bool`): Whether label 0 becomes 255 and every other label one less (ADE20K's files).
        size_divisor (`int`): Images are padded at the right and the bottom to a multiple of this many pixels.
        padding_mode (`str`): `"constant"` pads with the mean color, `"reflect"` with mirrored pixels; the padding of
            labels is ignored in both modes.
        align_corners (`bool`): Whether logits are upsampled with aligned corners.
        num_channels (`int`): Number of channels of the images.
        value_type (`str`, *optional*): Type of the values that images must have, which are then not reduced to 8 bits:
            uint8, uint16, int32 or float32. `None`, for images of 8 bits or of any type.
    """

    do_reduce_labels: bool
    size_divisor: int
    padding_mode: str
    align_corners: bool
    num_channels: int
    value_type: str | None


class _PadAndPostProcess:
    """Mixin of both backends that pads after normalization and removes the padding after prediction."""

    valid_kwargs = MsctrImageProcessorKwargs
    do_resize = False
    default_to_square = False
    size: Any = {"shortest_edge": 512}
    size_divisor = 1
    padding_mode = "constant"
    align_corners = False
    num_channels = RGB_CHANNELS
    value_type: str | None = None

    @property
    def reads_rgb(self) -> bool:
        """Whether images are RGB of 8 bits, as those of other image processors."""
        return self.num_channels == RGB_CHANNELS and self.value_type is None

    def _preprocess_image_like_inputs(
        self,
        images,
        segmentation_maps=None,
        *,
        return_tensors=None,
        size_divisor=1,
        padding_mode="constant",
        **kwargs,
    ) -> BatchFeature:
        for name in ("align_corners", "num_channels", "value_type"):
            kwargs.pop(name, None)
        if not self.reads_rgb:
            is_gray = getattr(images, "ndim", None) == 2
            images = [self._values(image) for image in ([images] if is_gray else make_list_of_images(images))]
            kwargs["input_data_format"] = ChannelDimension.FIRST
        batch = super()._preprocess_image_like_inputs(  # type: ignore[misc]
            images, segmentation_maps, return_tensors=None, **kwargs
        )
        canvas = _canvas_size([image.shape[-2:] for image in batch[_PIXELS_KEY]], size_divisor)
        data = {_PIXELS_KEY: [pad(image, canvas, padding_mode) for image in batch[_PIXELS_KEY]]}
        if _LABELS_KEY in batch:
            data[_LABELS_KEY] = [pad(labels, canvas, value=LABEL_PADDING) for labels in batch[_LABELS_KEY]]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _values(self, image: Any) -> np.ndarray:
        """Return an image as an array (num_channels, H, W), float32.

        Args:
            image: Array (H, W), (H, W, num_channels) or (num_channels, H, W), tensor, or image of Pillow, whose colors
                become gray where one channel of 8 bits is expected.

        Raises:
            ValueError: If it has another number of channels, or values of another type.
        """
        count = self.num_channels
        if hasattr(image, "convert") and count == 1 and image.mode not in ("1", "F", "I") and image.mode[:4] != "I;16":
            image = image.convert("L")
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        if pixels.ndim == 3 and pixels.shape[2] != count and pixels.shape[0] == count:
            pixels = pixels.transpose(1, 2, 0)
        if pixels.ndim != 3 or pixels.shape[2] != count:
            found = pixels.shape[2] if pixels.ndim == 3 else f"the shape {pixels.shape} instead of"
            raise ValueError(
                f"The image has {found} channel(s), but the network reads {count}; give an array (H, W, {count}), or "
                "use `pipeline('msctr-segmentation')` of msctr_hf, which reads such files."
            )
        if self.value_type not in (None, str(pixels.dtype)):
            raise ValueError(
                f"The image has values of type {pixels.dtype}, but the network is for images of type "
                f"{self.value_type}; `pipeline('msctr-segmentation')` of msctr_hf reads files without changing them."
            )
        return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings to save; `auto_map` names both backends, of which transformers would name one."""
        settings = super().to_dict()  # type: ignore[misc]
        if "auto_map" in settings:
            settings["auto_map"] = {"AutoImageProcessor": _BACKENDS}
        return settings

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """Turn logits into label maps at the sizes of the images.

        Args:
            outputs (`MsctrSegmenterOutput`): Output of the network for images that this processor prepared, with
                `logits` (B, num_labels, h, w).
            target_sizes (`list[tuple[int, int]]`, *optional*): Height and width of every image before it was prepared,
                to cut off padding and undo resizing. By default maps keep the size of the logits.

        Raises:
            ValueError: If `target_sizes` does not have one entry per image, or logits are not finite.

        Returns:
            `list[torch.Tensor]`: int64 class maps (height, width).
        """
        logits = outputs.logits
        if not logits.isfinite().all():  # argmax would take NaN for the most probable class
            raise ValueError("Logits are NaN or infinite: weights are faulty, or half precision overflows.")
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        if len(target_sizes) != len(logits):
            raise ValueError(f"`target_sizes` must have one entry per image: {len(logits)}, got {len(target_sizes)}.")
        targets = [(int(height), int(width)) for height, width in target_sizes]
        prepared = [self.resized_size(*target) for target in targets]
        canvas = _canvas_size(prepared, self.size_divisor)
        maps = []
        for scores, inner, target in zip(logits, prepared, targets, strict=True):
            scores = resize(scores[None].float(), canvas, self.align_corners)[..., : inner[0], : inner[1]]
            maps.append(resize(scores, target, self.align_corners)[0].argmax(dim=0))
        return maps

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the height and width of an image after resizing and before padding, in pixels.

        Raises:
            ValueError: If `size` is none to which images are resized.
        """
        if not self.do_resize:
            return height, width
        size = {name: side for name, side in dict(self.size).items() if side}
        # the functions and the order of both backends of transformers
        if shorter := size.get("shortest_edge"):
            if longest := size.get("longest_edge"):
                return get_size_with_aspect_ratio((height, width), shorter, longest)
            blank = np.broadcast_to(np.uint8(0), (RGB_CHANNELS, height, width))
            return get_resize_output_image_size(
                blank, size=shorter, default_to_square=False, input_data_format=ChannelDimension.FIRST
            )
        if size.keys() >= {"max_height", "max_width"}:
            return get_image_size_for_max_height_width((height, width), size["max_height"], size["max_width"])
        if size.keys() >= {"height", "width"}:
            return size["height"], size["width"]
        raise ValueError(
            f"`size` must have `shortest_edge`, `height` and `width`, or `max_height` and `max_width`, got {size}."
        )


# trf-ignore: TRF057 written out: code on the Hub must not depend on the docstring generator of one release
class MsctrImageProcessor(_PadAndPostProcess, SegformerImageProcessor):
    """Image processor on torchvision: optional resizing, then rescaling, normalization and padding."""


# trf-ignore: TRF057 see above
class MsctrImageProcessorPil(_PadAndPostProcess, SegformerImageProcessorPil):
    """Image processor on PIL and NumPy: optional resizing, then rescaling, normalization and padding.

    Raises:
        ValueError: If `num_channels` is neither 1 nor 3, which only the image processor on torchvision reads.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.num_channels not in (1, RGB_CHANNELS):
            raise ValueError(
                f"The image processor on PIL reads 1 or 3 channels, but the network reads {self.num_channels}; use "
                "that on torchvision: `MsctrImageProcessor`, or `backend='torchvision'`."
            )


def _canvas_size(sizes: list[tuple[int, int]], divisor: int) -> tuple[int, int]:
    """Compute the smallest height and width that all images fit in and that are multiples of `divisor`."""
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def pad(image: Any, canvas: tuple[int, int], mode: str = "constant", value: int = 0) -> Any:
    """Pad (..., height, width) at the right and the bottom.

    Args:
        image (`torch.Tensor` or `np.ndarray`): Normalized image, or labels.
        canvas (`tuple[int, int]`): Height and width of the result, in pixels.
        mode (`str`): `"constant"` or `"reflect"`; padding larger than the image reflects it several times.
        value (`int`): Value of constant padding; after normalization zero is the mean color.

    Raises:
        ValueError: If the mode is unknown.
    """
    if mode not in PADDING_MODES:
        raise ValueError(f"`padding_mode` must be one of {', '.join(PADDING_MODES)}, got {mode!r}.")
    bottom, right = canvas[0] - image.shape[-2], canvas[1] - image.shape[-1]
    if mode == "reflect" and (bottom or right):
        rows = np.pad(np.arange(image.shape[-2]), (0, bottom), mode="reflect")
        columns = np.pad(np.arange(image.shape[-1]), (0, right), mode="reflect")
        return image[..., rows[:, None], columns]
    if isinstance(image, torch.Tensor):
        return F.pad(image, (0, right, 0, bottom), value=value)
    return np.pad(image, [(0, 0)] * (image.ndim - 2) + [(0, bottom), (0, right)], constant_values=value)


MsctrImageProcessor.register_for_auto_class()
MsctrImageProcessorPil.register_for_auto_class()

__all__ = ["MsctrImageProcessor", "MsctrImageProcessorPil"]
