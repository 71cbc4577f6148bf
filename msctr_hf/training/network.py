"""Construction of a network that is ready for training, from settings and a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoConfig, TimmBackboneConfig

from ..data.channel_statistics import ChannelStatistics
from ..data.channels import Channels, count_of
from ..data.labels import IGNORE_INDEX
from ..data.settings import DataSettings
from ..data.specs import DatasetSpec
from ..errors import UsageError, brief_reason, building_a_network, first_line
from ..evaluation.class_order import find_order
from ..evaluation.finite import refuse_faulty_weights
from ..evaluation.predictor import names_by_label
from ..models.backbone_weights import load_backbone_weights
from ..models.backbones import input_channels
from ..models.configuration_msctr import MsctrConfig
from ..models.contrastive_adapter import ContrastiveAdapter
from ..models.decode_heads import Classifier
from ..models.image_processing_msctr import MsctrImageProcessor
from ..models.modeling_msctr import MsctrForSemanticSegmentation
from ..settings import as_mapping, changed, defaults
from .adapted_network import adapt_saved, image_processor_of_saved, saved_kind
from .idle_settings import OF_ANOTHER_BACKBONE
from .settings import ModelSettings
from .timm_networks import evenly_spaced, refuse_one_size, timm_backbone_config


def build_config(arguments: ModelSettings, settings: dict[str, Any], spec: DatasetSpec) -> MsctrConfig:
    """Build the configuration of a network for the classes and the channels of a data set.

    Args:
        arguments (`ModelSettings`): Settings of the backbone.
        settings (`dict`): Settings of `MsctrConfig` by name.
        spec (`DatasetSpec`): Data set, with classes, colors and channels.

    Raises:
        UsageError: If a setting is unknown, has a wrong type or contradicts others.
    """
    backbone_config = _backbone_config(arguments, spec.source.channels)
    with building_a_network():
        config = MsctrConfig(
            backbone_config=backbone_config,
            id2label=spec.id2label,
            label2id={name: label for label, name in spec.id2label.items()},
            palette=[list(color) for color in spec.palette],
            semantic_loss_ignore_index=IGNORE_INDEX,
            **settings,
        )
    if arguments.backbone_config is not None and isinstance(config.backbone_config, TimmBackboneConfig):
        refuse_one_size(config.backbone_config)
    return config


def build_network(
    arguments: ModelSettings, settings: dict[str, Any], spec: DatasetSpec
) -> MsctrForSemanticSegmentation | ContrastiveAdapter:
    """Build a network with its initial weights: those of a pretrained backbone, or of a saved model.

    Raises:
        UsageError: If settings or weights do not match the network, or weights are not finite.
    """
    model: MsctrForSemanticSegmentation | ContrastiveAdapter
    if arguments.contrastive_adapter:
        with building_a_network():
            model = adapt_saved(arguments.model_name_or_path, settings, spec)
    elif arguments.model_name_or_path is not None:
        with building_a_network():
            model = _start_from_saved(arguments.model_name_or_path, settings, spec)
    else:
        config = build_config(arguments, settings, spec)
        with building_a_network():
            model = MsctrForSemanticSegmentation(config)
            load_backbone_weights(model, arguments.backbone_weights, hub_id=arguments.backbone)
    _refuse_other_channels(model, arguments, spec.source.channels)
    refuse_faulty_weights(model, prefix="Training cannot start: ")
    if arguments.activation_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable()
    if arguments.freeze_backbone:
        freeze(model.backbone)
    return model


def settings_without_effect(arguments: ModelSettings) -> list[str]:
    """Return a sentence about settings of another backbone than that of a saved network, if there are any."""
    if arguments.model_name_or_path is None:
        return []
    given = as_mapping(arguments)
    unused = [name for name in changed(defaults(ModelSettings), given) if name in OF_ANOTHER_BACKBONE]
    if not unused:
        return []
    named = ", ".join(f"{name} {given[name]}" for name in unused)
    return [f"not used, since the network is that of {arguments.model_name_or_path}: {named}"]


def _refuse_other_channels(model: nn.Module, arguments: ModelSettings, channels: Channels | None) -> None:
    """Refuse a network that does not read the channels of the images."""
    read, count = input_channels(model.config), 3 if channels is None else channels.count
    if read != count:
        source = arguments.model_name_or_path or "`backbone_config`"
        default = " by default" if channels is None else ""
        raise UsageError(
            f"`num_channels` is {count}{default}, but the network of {source} reads images of {count_of(read)}."
        )


def choose_image_processor(
    model: MsctrForSemanticSegmentation | ContrastiveAdapter,
    arguments: ModelSettings,
    data_arguments: DataSettings,
    statistics: ChannelStatistics | None = None,
) -> Any:
    """Build the image processor to save with a network, or load that of an adapted model.

    With `statistics`, images are normalized with those of the training split.
    """
    options = image_processor_options(data_arguments)
    if statistics is not None:
        options |= {
            "num_channels": statistics.channels.count,
            "value_type": statistics.value_type,
            "rescale_factor": 1 / statistics.white,
            "image_mean": statistics.image_mean,
            "image_std": statistics.image_std,
        }
    if isinstance(model, ContrastiveAdapter):
        return image_processor_of_saved(arguments.model_name_or_path, options)
    return build_image_processor(model, **options)


def build_image_processor(model: MsctrForSemanticSegmentation, **options: Any) -> MsctrImageProcessor:
    """Build an image processor with the normalization of the backbone's weights, which `options` may replace."""
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    backbone = model.config.backbone_config
    if backbone.model_type == "timm_backbone" and (pretrained := timm.get_pretrained_cfg(backbone.backbone)):
        mean, std = pretrained.mean, pretrained.std
    normalization = {"image_mean": list(mean), "image_std": list(std)}
    return MsctrImageProcessor(align_corners=model.config.align_corners, **{**normalization, **options})


def image_processor_options(arguments: DataSettings) -> dict[str, Any]:
    """Return the options of the image processor for resizing and padding validation images."""
    shorter = arguments.resize_shorter_side
    resize = {"do_resize": True, "size": {"shortest_edge": shorter}} if shorter else {"do_resize": False}
    return {**resize, "size_divisor": arguments.size_divisor, "padding_mode": arguments.padding_mode}


def synchronize_batch_norms(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm by one whose statistics are shared by all processes.

    The conversion is that of timm, whose norms include an activation that torch's own conversion would drop.
    """
    return convert_sync_batchnorm(model)


def refuse_single_values(model: nn.Module, setting: str) -> None:
    """Make batch normalization refuse a single value per channel with a `UsageError` instead of a ValueError.

    The error names the setting that is 1, `"batch_size"` or `"unlabeled_batch_size"`.

    This is checked in the forward pass, since only there the sizes of all feature maps are known: `batch_size=1` works
    for networks that do not pool a whole image to one value, as the heads of DeepLabV3 and UPerNet do.
    """
    for module in model.modules():
        # not SyncBatchNorm, which counts the values of all processes
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.register_forward_pre_hook(partial(_refuse_single_value, setting))


def _refuse_single_value(setting: str, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if module.training and inputs[0].numel() == inputs[0].shape[1]:
        raise UsageError(
            f"With this `{setting}` and `crop_size` a normalization layer sees a single value per channel; use "
            f"`{setting}` 2 or more."
        )


def parameters_without_gradient(network: MsctrForSemanticSegmentation, size: Sequence[int]) -> list[str]:
    """List the trainable parameters on which no head depends, such as norms of stages that none reads.

    They depend on the backbone and on the stages that are read, and are found in the graph of a blank image.

    Args:
        network (`MsctrForSemanticSegmentation`): Network, which is not changed.
        size (`Sequence[int]`): Height and width of the image.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        network.training = True  # every head runs, while no layer updates its statistics
        image = torch.zeros((1, network.num_channels, *size), device=network.device, dtype=network.dtype)
        output = network(image, output_projections=network.projection_head is not None)
    finally:
        for module, training in modes:
            module.training = training
    maps = [output.logits, output.auxiliary_logits, *(output.projections or ())]
    total = torch.stack([each.float().sum() for each in maps if each is not None]).sum()
    parameters = {name: each for name, each in network.named_parameters() if each.requires_grad}
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def freeze(module: nn.Module) -> None:
    """Freeze parameters and normalization statistics, even when the whole network is set to training mode."""
    module.requires_grad_(False)
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign]


def _backbone_config(arguments: ModelSettings, channels: Channels | None) -> dict[str, Any]:
    config = _backbone_config_of_rgb(arguments)
    if channels is None or channels.count == 3:
        return config
    return {**config, "num_channels": channels.count}


def _backbone_config_of_rgb(arguments: ModelSettings) -> dict[str, Any]:
    from_timm = arguments.backbone_config is None and "/" not in arguments.backbone
    if arguments.output_stride is not None and not from_timm:
        raise UsageError(
            f"`output_stride={arguments.output_stride}`: only networks of timm by name can be dilated; leave it out."
        )
    if arguments.backbone_config is not None:
        try:
            return json.loads(arguments.backbone_config)
        except json.JSONDecodeError as error:
            raise UsageError(f"`backbone_config` is not valid JSON ({error}): {arguments.backbone_config}") from None
    if "/" in arguments.backbone:
        return _backbone_config_from_hub(arguments.backbone)
    return timm_backbone_config(arguments.backbone, arguments.output_stride)


def _backbone_config_from_hub(hub_id: str) -> dict[str, Any]:
    try:
        config = AutoConfig.from_pretrained(hub_id)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The configuration of {hub_id} cannot be loaded from the Hub ({brief_reason(error)}); pass "
            "it as `backbone_config`."
        ) from error
    stages = [name for name in config.stage_names if name.startswith("stage")]
    chosen = stages if hasattr(config, "depths") else evenly_spaced(stages)
    return {**config.to_dict(), "out_features": chosen, "out_indices": None}


def _start_from_saved(path: str, settings: dict[str, Any], spec: DatasetSpec) -> MsctrForSemanticSegmentation:
    """Load a saved model for the classes of a data set.

    The same classes in another order keep their weights. A classifier for another number of classes gets new random
    weights.
    """
    kind = saved_kind(path)
    if kind != MsctrConfig.model_type:
        raise UsageError(
            f"`model_name_or_path`: {path} is a {kind}; add `contrastive_adapter=True` to train it with the "
            "contrastive objective."
        )
    config = MsctrConfig.from_pretrained(path)
    places = find_order(spec.classes, names_by_label(config))
    weights = config.class_weights
    config.palette = None  # colors are those of the data set
    if places is not None or "class_weights" in settings:
        config.class_weights = None
    # other class weights are fitted to the classes, or dropped, which is reported
    config = MsctrConfig.from_dict(config.to_dict(), id2label=spec.id2label)
    if places is not None and weights is not None:
        config.class_weights = [weights[place] for place in places]
    of_data = {"palette": [list(color) for color in spec.palette], "semantic_loss_ignore_index": IGNORE_INDEX}
    config = MsctrConfig.from_dict({**config.to_dict(), **of_data, **settings})
    try:
        model, info = MsctrForSemanticSegmentation.from_pretrained(
            path, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, SafetensorError) as error:
        raise UsageError(f"`model_name_or_path`: {path} cannot be loaded: {first_line(error)}") from error
    mismatched = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    # new weights are allowed in classifiers, since classes may differ, and in heads that are used only during training
    new = [key for key in mismatched if ".classifier." not in key and not key.startswith("projection_head.")]
    new += [key for key in info["missing_keys"] if not key.startswith(("projection_head.", "auxiliary_head."))]
    if new:
        raise UsageError(
            f"`model_name_or_path`: the settings describe another network than {path}: {len(new)} of its tensors do "
            f"not match ({', '.join(sorted(new)[:4])}); leave out settings such as `decode_head`, which it determines."
        )
    if places is not None:
        _reorder_classes(model, places)
    return model.float().train()


@torch.no_grad()
def _reorder_classes(model: nn.Module, places: Sequence[int]) -> None:
    """Give every class the weights that it had at another place."""
    for classifier in (module for module in model.modules() if isinstance(module, Classifier)):
        for values in classifier.parameters():
            values.copy_(values[list(places)].clone())
