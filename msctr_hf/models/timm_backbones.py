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
"""Backbones of timm, with HRNet adapted as segmentation networks use it.

They have a file of their own, because timm is slow to import and other backbones do not need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.hrnet import HighResolutionModule
from torch import nn
from transformers import PreTrainedConfig, TimmBackbone


class MsctrTimmBackbone(TimmBackbone):
    """Network of timm that returns stage maps of shape (B, C_s, h_s, w_s), finest first.

    `config.timm_kwargs` are passed to `timm.create_model`. HRNet's fuse layers interpolate bilinearly, as in every
    HRNet for segmentation, and accept any input size; parameters keep timm's names. A network that accepts only
    multiples of `config.size_multiple` gets images that are padded with zeros at the right and the bottom, and its
    maps are cut to the size of the image.
    """

    supports_gradient_checkpointing = True

    def __init__(self, config: PreTrainedConfig, **kwargs):
        multiple = getattr(config, "size_multiple", None)
        if multiple is not None and not (isinstance(multiple, int) and multiple >= 1):
            raise ValueError(f"`size_multiple` must be a whole number of pixels, at least 1, got {multiple!r}.")
        settings = {**(getattr(config, "timm_kwargs", None) or {}), **kwargs}
        # `from_pretrained` builds networks on the device "meta", whose tensors have no values
        on_meta = torch.get_default_device().type == "meta"
        try:
            super().__init__(config, **settings)
            needs_values = on_meta and not _creates_buffers_that_are_not_saved(self._backbone)
        except RuntimeError:
            if not on_meta:
                raise
            needs_values = True  # RegNet of timm before 1.0.30, for example, computes its widths with tensors
        self._computed_buffers: dict[nn.Module, dict[str, torch.Tensor]] = {}
        if needs_values:
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                super().__init__(config, **settings)
            computed = {module: dict(_buffers_that_are_not_saved(module)) for module in self.modules()}
            self._computed_buffers = {module: buffers for module, buffers in computed.items() if buffers}
            for module in self.to("meta").modules():
                vars(module).pop("_is_hf_initialized", None)  # transformers would leave its buffers as they are
        self._channels_last = str(getattr(self._backbone, "output_fmt", "NCHW")).endswith("NHWC")
        self.size_multiple: int = multiple or 1
        self._checkpointing = False
        _interpolate_fuse_layers_bilinearly(self._backbone)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        computed = vars(self).get("_computed_buffers", {})  # transformers calls this in its constructor, too
        for name, values in computed.pop(module, {}).items():
            module.get_buffer(name).copy_(values)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass; transformers reads and sets this attribute."""
        return self._checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self._checkpointing = enable
        if hasattr(self, "_backbone"):
            self._backbone.set_grad_checkpointing(enable)
            for module in self._backbone.modules():  # recomputing needs what in-place activations overwrite
                if enable and getattr(module, "inplace", False):
                    module.inplace = False

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any):
        """Compute stage maps: (B, C, H, W) -> output whose `feature_maps` are (B, C_s, h_s, w_s), finest first."""
        height, width = pixel_values.shape[-2:]
        below, right = -height % self.size_multiple, -width % self.size_multiple
        if below or right:
            pixel_values = F.pad(pixel_values, (0, right, 0, below))
        output = super().forward(pixel_values, return_dict=True, **kwargs)
        if self._channels_last:
            output.feature_maps = tuple(stage.permute(0, 3, 1, 2).contiguous() for stage in output.feature_maps)
        if below or right:
            output.feature_maps = tuple(
                # the rows and columns that have a pixel of the image: sides are divided upwards
                stage[
                    ...,
                    : -(-height * stage.shape[-2] // (height + below)),
                    : -(-width * stage.shape[-1] // (width + right)),
                ]
                for stage in output.feature_maps
            )
        return output


class BilinearFusion(nn.Module):
    """`HighResolutionModule` of timm that upsamples bilinearly to the size of the branch to which a map is added.

    The classification network of timm repeats pixels by a fixed factor instead, which yields different features and
    fails if a size is not a multiple of 32.
    """

    def __init__(self, module: HighResolutionModule):
        super().__init__()
        self.branches = module.branches
        self.fuse_layers = module.fuse_layers
        self.fuse_act = module.fuse_act
        for target, sources in enumerate(self.fuse_layers if len(self.branches) > 1 else ()):
            for source in range(target + 1, len(self.branches)):
                sources[source][2] = nn.Identity()  # instead of nn.Upsample; removing it would rename parameters

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Fuse the maps of all branches, finest first, to maps of the same shapes."""
        maps = [branch(stage) for branch, stage in zip(self.branches, maps, strict=True)]
        if len(maps) == 1:
            return maps
        return [self._fuse(target, maps) for target in range(len(self.fuse_layers))]

    def _fuse(self, target: int, maps: list[torch.Tensor]) -> torch.Tensor:
        fused = None
        for source, layer in enumerate(self.fuse_layers[target]):
            contribution = layer(maps[source])
            if source > target:
                contribution = F.interpolate(
                    contribution, size=maps[target].shape[-2:], mode="bilinear", align_corners=False
                )
            fused = contribution if fused is None else fused + contribution
        return self.fuse_act(fused)


def _interpolate_fuse_layers_bilinearly(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, HighResolutionModule):
                setattr(parent, name, BilinearFusion(child))


def _creates_buffers_that_are_not_saved(network: nn.Module) -> bool:
    """Create buffers that are not saved on the device "meta", and return whether transformers gives them values.

    It calls a method of timm for that, which modules of timm before 1.0.23 and of other libraries do not have. Nor is
    it called for buffers that a network does not create on "meta" by itself: the masks of Swin V2 CR before 1.0.25.
    """
    for module in network.modules():
        if module._non_persistent_buffers_set:
            if not hasattr(module, "init_non_persistent_buffers"):
                return False
            module.init_non_persistent_buffers()
    return True


def _buffers_that_are_not_saved(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, buffer in module.named_buffers(recurse=False):
        if name in module._non_persistent_buffers_set:
            yield name, buffer
