"""Settings with which a network of timm serves as a backbone, found by trying it on images without values."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import timm
import torch
from transformers import TimmBackboneConfig

from ..errors import UsageError, brief_reason
from ..models.timm_backbones import MsctrTimmBackbone

_ADVICE = "use another network, or a Hub id of transformers"
TRIED_SIZES = ((96, 160), (107, 130), (230, 400))
SIZE_MULTIPLES = (1, 4, 8, 14, 16, 32, 64, 128, 224, 256, 384)  # patches, strides, and windows at the coarsest stride
ANY_SIZE = ({"strict_img_size": False}, {"dynamic_img_size": True, "dynamic_img_pad": True})  # names in timm


def timm_backbone_config(name: str, output_stride: int | None = None) -> dict[str, Any]:
    """Find settings with which a network of timm returns feature maps for images of any size.

    Args:
        name (`str`): Name of a network of timm, with or without the name of its weights.
        output_stride (`int`, *optional*): Coarsest stride, reached by dilating convolutions.

    Returns:
        `dict`: `backbone_config` of `MsctrConfig`. `size_multiple` is there if the network accepts only multiples of
        it, to which images are padded.

    Raises:
        UsageError: If timm cannot build the network, has no feature maps of it, or has them for one image size only;
            or if the network cannot be dilated to `output_stride`.
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0][:6]}*")[:5]
        raise UsageError(f"timm has no backbone {name!r}; similar names: {', '.join(close) or 'none'}.")
    try:
        network = timm.create_model(name, features_only=True)
    except Exception as error:  # the constructors of timm raise many kinds of exceptions
        raise UsageError(f"timm has no feature maps of {name} ({brief_reason(error)}); {_ADVICE}.") from error
    strides = network.feature_info.reduction()
    inner = getattr(network, "model", network)  # timm wraps plain transformers
    config: dict[str, Any] = {"model_type": "timm_backbone", "backbone": name}
    if len(set(strides)) > 1:
        config["out_indices"] = [
            index for index, stride in zip(network.feature_info.out_indices, strides, strict=True) if stride >= 4
        ]
    elif hasattr(inner, "patch_embed") and hasattr(inner, "blocks"):
        config["out_indices"] = evenly_spaced(range(len(inner.blocks)))
    else:
        raise UsageError(f"{name} has feature maps only at the stride {strides[-1]}; {_ADVICE}.")
    if output_stride is not None:
        config["output_stride"] = output_stride
    usual: dict[str, Any] = {}
    if name.startswith("hrnet"):
        usual = {"feature_location": ""}  # maps before the layers for classification
    elif name.startswith("swin"):
        usual = ANY_SIZE[0]
    elif hasattr(inner, "dynamic_img_size"):
        usual = ANY_SIZE[1]
    own_size = tuple(getattr(inner, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:])
    return json.loads(_accepted_settings(json.dumps(config), json.dumps(usual), own_size))


@functools.cache  # for a process that trains several times; in JSON, so that every caller gets its own copy
def _accepted_settings(config_json: str, usual_json: str, own_size: tuple[int, int]) -> str:
    """Try settings one after another until a network accepts images of any size with them."""
    config, usual = json.loads(config_json), json.loads(usual_json)
    name, output_stride = config["backbone"], config.get("output_stride")
    with torch.random.fork_rng(devices=[]):  # what is tried must not change the network that a seed starts from
        found = _try(config, usual, "meta")
        if found is not None:
            return json.dumps(found)
        if output_stride is not None:
            raise UsageError(
                f"`output_stride={output_stride}`: {name} cannot be dilated to this stride; leave it out, or use 8 or "
                "16 with a network of convolutions, such as a ResNet."
            )
        device = "meta"
        if _fault_at(config, own_size, "meta") is not None:  # some networks compute with values while they are built
            device = "cpu"
            if (fault := _fault_at(config, own_size, "cpu")) is not None:
                raise UsageError(f"timm cannot compute feature maps of {name} ({fault}); {_ADVICE}.")
        for timm_kwargs in (usual, {}, *ANY_SIZE):
            found = _try(config, timm_kwargs, device)
            if found is not None:
                return json.dumps(found)
    height, width = own_size
    raise UsageError(f"{name} accepts images of only one size in timm, {height} x {width} pixels; {_ADVICE}.")


def refuse_one_size(config: TimmBackboneConfig) -> None:
    """Refuse settings with which timm cannot build a network, or has feature maps of it for one image size only.

    Raises:
        UsageError: If they are refused; training would end with an error of timm at its first step or validation.
    """
    faults = []
    with torch.random.fork_rng(devices=[]):
        if (fault := _fault_of_building(config, "meta") and _fault_of_building(config, "cpu")) is not None:
            raise UsageError(f"`backbone_config`: timm cannot build {config.backbone} with these settings ({fault}).")
        for multiple in SIZE_MULTIPLES[-3:]:
            for device in ("meta", "cpu"):  # some networks compute with values, which "meta" does not have
                faults.append(_fault_at(config, (multiple, 2 * multiple), device))
                if faults[-1] is None:
                    return
    raise UsageError(
        f"`backbone_config`: {config.backbone} accepts images of only one size with these settings ({faults[-1]}); "
        f"{_ADVICE}, or name it as `backbone`, so that its settings are found."
    )


def evenly_spaced(blocks: Sequence) -> list:
    """Return the last block of each quarter of the blocks."""
    return [blocks[len(blocks) * quarter // 4 - 1] for quarter in (1, 2, 3, 4)]


def _try(config: dict[str, Any], timm_kwargs: dict[str, Any], device: str) -> dict[str, Any] | None:
    """Return the configuration with which a network accepts any size and has the requested stride, if there is one."""
    config = {**config, "timm_kwargs": timm_kwargs} if timm_kwargs else config
    try:
        backbone = _build(config, device)
    except Exception:  # as above
        return None
    if config.get("output_stride") not in (None, backbone._backbone.feature_info.reduction()[-1]):
        return None
    for backbone.size_multiple in SIZE_MULTIPLES:
        if all(_fault_of_maps(backbone, size, device) is None for size in TRIED_SIZES):
            multiple = backbone.size_multiple
            return {**config, "size_multiple": multiple} if multiple > 1 else config
    return None


def _build(config: dict[str, Any] | TimmBackboneConfig, device: str) -> MsctrTimmBackbone:
    if isinstance(config, dict):
        config = TimmBackboneConfig(**{key: value for key, value in config.items() if key != "model_type"})
    with torch.device(device):
        return MsctrTimmBackbone(config).eval()


def _fault_of_building(config: TimmBackboneConfig, device: str) -> str | None:
    try:
        _build(config, device)
    except Exception as error:  # as above
        return brief_reason(error)
    return None


def _fault_at(config: dict[str, Any] | TimmBackboneConfig, size: tuple[int, int], device: str) -> str | None:
    """Return why a network cannot compute maps of images of a size, or `None` if it can."""
    try:
        backbone = _build(config, device)
    except Exception as error:
        return brief_reason(error)
    return _fault_of_maps(backbone, size, device)


def _fault_of_maps(backbone: MsctrTimmBackbone, size: tuple[int, int], device: str) -> str | None:
    """Return why maps of an image cannot be computed or do not have the strides of the network, or `None`."""
    try:
        with torch.no_grad(), torch.device(device):
            maps = backbone(torch.zeros(1, backbone.config.num_channels, *size)).feature_maps
    except Exception as error:  # timm asserts, divides and reshapes
        return brief_reason(error)
    strides = backbone._backbone.feature_info.reduction()
    for stage, channels, stride in zip(maps, backbone.channels, strides, strict=True):
        # convolutions without padding lose pixels at the border, up to three in Inception
        near = stage.ndim == 4 and all(
            -3 <= side - full / stride <= 1 for side, full in zip(stage.shape[2:], size, strict=True)
        )
        if not near or stage.shape[1] != channels:
            return f"a map of an image of {size[0]} x {size[1]} pixels has the shape {tuple(stage.shape)}"
    return None
