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
"""Decode heads and the auxiliary head.

B = images, L = classes, C = channels. Every decode head computes logits (B, L, h, w) at its own stride from stage maps
and states in class attributes what it needs; `DECODE_HEADS`, at the end, lists all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

ASPP_RATES = (12, 24, 36)  # the same at output strides 8 and 16
ASPP_BATCH_NORM_EPS = 3e-4  # as in the authors' code
OCR_KEY_CHANNELS = 256
POOL_SIZES = (1, 2, 3, 6)


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, *, dilation: int = 1, bias: bool = False, eps: float = 1e-5
) -> nn.Sequential:
    """Build a convolution that keeps the size, followed by BatchNorm and ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias),
        nn.BatchNorm2d(out_channels, eps=eps),
        nn.ReLU(),
    )


def resize(features: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """Interpolate (B, C, h, w) bilinearly to `size` (height, width)."""
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=align_corners)


def average_cells(features: torch.Tensor, cells: int) -> torch.Tensor:
    """Average over a grid of `cells` x `cells`: (B, C, h, w) -> (B, C, cells, cells), as `F.adaptive_avg_pool2d`.

    It takes two matrix products, because the ONNX export of a pooling layer works only at the size of the example.
    """
    rows, columns = (_averaging_matrix(side, cells, features) for side in features.shape[-2:])
    return rows @ features @ columns.transpose(0, 1)


def _averaging_matrix(side: int, cells: int, like: torch.Tensor) -> torch.Tensor:
    """Build (cells, side): row i averages the pixels from floor(i side / cells) to ceil((i + 1) side / cells)."""
    pixels = torch.arange(side, device=like.device)
    cell = torch.arange(cells, device=like.device)[:, None]
    first, end = cell * side // cells, ((cell + 1) * side + cells - 1) // cells
    inside = (pixels >= first) & (pixels < end)
    return inside.to(like.dtype) / (end - first).to(like.dtype)


def concatenate_stages(feature_maps: Sequence[torch.Tensor], align_corners: bool) -> torch.Tensor:
    """Resize stage maps to the size of the first and concatenate them: (B, sum of C_s, h_1, w_1)."""
    if len(feature_maps) == 1:
        return feature_maps[0]
    size = feature_maps[0].shape[-2:]
    return torch.cat([resize(features, size, align_corners) for features in feature_maps], dim=1)


class Classifier(nn.Conv2d):
    """Last 1x1 convolution, to the logits; it has its own class because its initial weights are smaller.

    The arguments are those of `nn.Conv2d`, because libraries build layers of the class of the layer that they adapt.
    """

    def __init__(self, in_channels: int, num_labels: int, kernel_size: Any = 1, *args: Any, **options: Any):
        super().__init__(in_channels, num_labels, kernel_size, *args, **options)


class DecodeHead(nn.Module):
    """Base class of all decode heads, with the signatures of constructor and `forward` and the class attributes.

    Args:
        in_channels (`Sequence[int]`): Channels of the stages that the head reads (`decode_stages`).
        hidden_size (`int`): Width of the head.
        num_labels (`int`): Number of classes.
        dropout (`float`): Probability of dropping a channel before the classifier.
        align_corners (`bool`): How the head resizes the stage maps that it concatenates.

    Attributes:
        display_name (`str`): Name of the head in model cards and messages.
        defaults (`dict`): Values that replace `None` in the configuration; a head lists those that differ from
            `DecodeHead`. Stages are counted from 1, the finest (C2 = 1 .. C5 = 4); `hidden_size` is the sum of
            `in_channels` if neither lists it.
        min_stages (`int`): Smallest number of stages that the head can read.
        needs_auxiliary_logits (`bool`): Whether `forward` needs `auxiliary_logits`, even in prediction.
        gives_pyramid (`bool`): Whether `forward` also returns one map of `hidden_size` channels per stage it reads.
        concatenates_stages (`bool`): Whether the head begins with `concatenate_stages`. Only then can the auxiliary
            head read the concatenation (`auxiliary_stage=None`): the network concatenates once and passes one map.
    """

    display_name: ClassVar[str]
    defaults: ClassVar[dict[str, Any]] = {
        "dropout": 0.0,
        "align_corners": True,
        "use_auxiliary_head": False,
        "auxiliary_hidden_size": 256,
        "decode_stages": (1, 2, 3, 4),
        "projection_stages": (1, 2, 3, 4),
    }
    min_stages: ClassVar[int] = 1
    needs_auxiliary_logits: ClassVar[bool] = False
    gives_pyramid: ClassVar[bool] = False
    concatenates_stages: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: Sequence[int],
        hidden_size: int,
        num_labels: int,
        dropout: float,
        align_corners: bool,
    ):
        super().__init__()
        self.align_corners = align_corners

    def forward(
        self, feature_maps: Sequence[torch.Tensor], auxiliary_logits: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """Compute the logits.

        Args:
            feature_maps (`Sequence[torch.Tensor]` of shapes `(B, C_s, h_s, w_s)`): Stage maps, finest first.
            auxiliary_logits (`torch.Tensor` of shape `(B, L, h, w)`, *optional*): Output of the auxiliary head, if it
                ran.

        Returns:
            `tuple`: logits (B, L, h, w), and the pyramid, finest first, or `None`.
        """
        raise NotImplementedError


class FcnHead(DecodeHead):
    """Head of HRNet: 3x3 convolution with bias, BatchNorm, no ReLU, 1x1 convolution without bias."""

    display_name = "FCN"
    concatenates_stages = True

    def __init__(self, in_channels, hidden_size, num_labels, dropout, align_corners):
        super().__init__(in_channels, hidden_size, num_labels, dropout, align_corners)
        self.conv = nn.Conv2d(sum(in_channels), hidden_size, 3, padding=1)
        self.batch_norm = nn.BatchNorm2d(hidden_size)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(hidden_size, num_labels, bias=False)

    def forward(self, feature_maps, auxiliary_logits=None):
        """Compute the logits at the stride of the first map, from stage maps."""
        features = concatenate_stages(feature_maps, self.align_corners)
        return self.classifier(self.dropout(self.batch_norm(self.conv(features)))), None


class DeepLabV3Head(DecodeHead):
    """Atrous spatial pyramid pooling on the last stage (Chen et al., 2017, https://arxiv.org/abs/1706.05587)."""

    display_name = "DeepLabV3"
    defaults = {"hidden_size": 256, "auxiliary_stage": 3, "decode_stages": (4,), "projection_stages": (1, 3, 4)}
    concatenates_stages = True

    def __init__(self, in_channels, hidden_size, num_labels, dropout, align_corners):
        super().__init__(in_channels, hidden_size, num_labels, dropout, align_corners)
        channels, eps = sum(in_channels), ASPP_BATCH_NORM_EPS
        self.branches = nn.ModuleList(
            [
                conv_bn_relu(channels, hidden_size, 1, eps=eps),
                *(conv_bn_relu(channels, hidden_size, 3, dilation=rate, eps=eps) for rate in ASPP_RATES),
            ]
        )
        self.image_pooling = conv_bn_relu(channels, hidden_size, 1, eps=eps)
        self.fuse = conv_bn_relu((len(ASPP_RATES) + 2) * hidden_size, hidden_size, 1, eps=eps)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(hidden_size, num_labels)

    def forward(self, feature_maps, auxiliary_logits=None):
        """Compute the logits at the stride of the first map, from stage maps."""
        features = concatenate_stages(feature_maps, self.align_corners)
        pooled = self.image_pooling(features.mean(dim=(2, 3), keepdim=True))  # (B, hidden, 1, 1)
        branches = [branch(features) for branch in self.branches]
        branches.append(pooled.expand(-1, -1, *features.shape[-2:]))
        return self.classifier(self.dropout(self.fuse(torch.cat(branches, dim=1)))), None


class ObjectAttention(nn.Module):
    """Attention of every pixel to the representations of the object regions.

    Source: Yuan et al., "Object-Contextual Representations", 2020 (https://arxiv.org/abs/1909.11065), section 3.2.
    """

    def __init__(self, channels: int, key_channels: int):
        super().__init__()
        self.scale = key_channels**-0.5
        self.query = nn.Sequential(
            conv_bn_relu(channels, key_channels, 1), conv_bn_relu(key_channels, key_channels, 1)
        )
        self.key = nn.Sequential(conv_bn_relu(channels, key_channels, 1), conv_bn_relu(key_channels, key_channels, 1))
        self.value = conv_bn_relu(channels, key_channels, 1)
        self.out = conv_bn_relu(key_channels, channels, 1)

    def forward(self, features: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """Compute the context of every pixel: pixels (B, C, h, w) and regions (B, C, L, 1) -> (B, C, h, w)."""
        query = self.query(features).flatten(2).transpose(1, 2)  # (B, h*w, K)
        key = self.key(regions).flatten(2)  # (B, K, L)
        value = self.value(regions).flatten(2).transpose(1, 2)  # (B, L, K)
        attention = (query @ key * self.scale).softmax(dim=-1)  # (B, h*w, L)
        context = (attention @ value).transpose(1, 2).unflatten(2, features.shape[-2:])  # (B, K, h, w)
        return self.out(context)


class OcrHead(DecodeHead):
    """Object-contextual representations; soft object regions come from the auxiliary logits."""

    display_name = "OCR"
    defaults = {"hidden_size": 512, "use_auxiliary_head": True, "auxiliary_hidden_size": 512}
    needs_auxiliary_logits = True
    concatenates_stages = True

    def __init__(self, in_channels, hidden_size, num_labels, dropout, align_corners):
        super().__init__(in_channels, hidden_size, num_labels, dropout, align_corners)
        self.conv = conv_bn_relu(sum(in_channels), hidden_size, 3, bias=True)
        self.object_attention = ObjectAttention(hidden_size, OCR_KEY_CHANNELS)
        self.fuse = conv_bn_relu(2 * hidden_size, hidden_size, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(hidden_size, num_labels)

    def forward(self, feature_maps, auxiliary_logits=None):
        """Compute the logits at the stride of the first map, from stage maps and auxiliary logits."""
        features = self.conv(concatenate_stages(feature_maps, self.align_corners))
        auxiliary_logits = resize(auxiliary_logits, features.shape[-2:], align_corners=True)
        regions = auxiliary_logits.flatten(2).softmax(dim=-1)  # (B, L, h*w), over the pixels
        regions = (features.flatten(2) @ regions.transpose(1, 2)).unsqueeze(-1)  # (B, C, L, 1)
        context = self.object_attention(features, regions)
        return self.classifier(self.dropout(self.fuse(torch.cat([context, features], dim=1)))), None


class UperNetHead(DecodeHead):
    """Feature pyramid on top of pyramid pooling (Xiao et al., 2018, https://arxiv.org/abs/1807.10221).

    As in the authors' code, pooled maps are resized before their convolution, levels are concatenated in the order P2,
    P5, P4, P3, and corners are never aligned, whatever `align_corners` is.
    """

    display_name = "UPerNet"
    defaults = {
        "hidden_size": 512,
        "dropout": 0.1,
        "align_corners": False,
        "use_auxiliary_head": True,
        "auxiliary_stage": 4,
    }
    min_stages = 2
    gives_pyramid = True

    def __init__(self, in_channels, hidden_size, num_labels, dropout, align_corners):
        super().__init__(in_channels, hidden_size, num_labels, dropout, align_corners)
        coarsest = in_channels[-1]
        self.pyramid_pooling = nn.ModuleList(conv_bn_relu(coarsest, hidden_size, 1) for _ in POOL_SIZES)
        self.pyramid_pooling_fuse = conv_bn_relu(coarsest + len(POOL_SIZES) * hidden_size, hidden_size, 3)
        self.laterals = nn.ModuleList(conv_bn_relu(channels, hidden_size, 1) for channels in in_channels[:-1])
        self.outputs = nn.ModuleList(conv_bn_relu(hidden_size, hidden_size, 3) for _ in in_channels[:-1])
        self.fuse = conv_bn_relu(len(in_channels) * hidden_size, hidden_size, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(hidden_size, num_labels)

    def forward(self, feature_maps, auxiliary_logits=None):
        """Compute logits (B, L, h_1, w_1), and the pyramid P2..P5 with maps (B, hidden, h_s, w_s), from stage maps."""
        top_down = self._pool_pyramid(feature_maps[-1])
        pyramid = [top_down]
        for lateral, output, features in zip(
            reversed(self.laterals), reversed(self.outputs), reversed(feature_maps[:-1]), strict=True
        ):
            top_down = lateral(features) + resize(top_down, features.shape[-2:], align_corners=False)
            pyramid.append(output(top_down))
        *coarse, finest = pyramid
        fused = self.fuse(concatenate_stages([finest, *coarse], align_corners=False))
        return self.classifier(self.dropout(fused)), tuple(reversed(pyramid))

    def _pool_pyramid(self, features: torch.Tensor) -> torch.Tensor:
        size = features.shape[-2:]
        pooled = [
            conv(resize(average_cells(features, cells), size, align_corners=False))
            for conv, cells in zip(self.pyramid_pooling, POOL_SIZES, strict=True)
        ]
        return self.pyramid_pooling_fuse(torch.cat([features, *pooled], dim=1))


class AuxiliaryHead(nn.Module):
    """Second classifier, on an earlier map: 3x3 convolution with bias, BatchNorm, ReLU, dropout, 1x1 convolution."""

    def __init__(self, in_channels: int, hidden_size: int, num_labels: int, dropout: float = 0.0):
        super().__init__()
        self.conv = conv_bn_relu(in_channels, hidden_size, 3, bias=True)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(hidden_size, num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Compute auxiliary logits: (B, C, h, w) -> (B, L, h, w)."""
        return self.classifier(self.dropout(self.conv(features)))


DECODE_HEADS: dict[str, type[DecodeHead]] = {  # names in the configuration -> classes
    "fcn": FcnHead,
    "deeplabv3": DeepLabV3Head,
    "ocr": OcrHead,
    "upernet": UperNetHead,
}
