"""Settings that have no effect in a run, since other settings switch off what they are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data.channels import Channels
from ..data.settings import is_about_unlabeled

OF_ANOTHER_BACKBONE = ("backbone", "output_stride", "backbone_config", "backbone_weights")
_OF_A_COPY = ("image_column", "label_column")
_ACROSS_STAGES = (
    "contrastive_cross_scale_temperature",
    "contrastive_cross_scale_pairs",
    "contrastive_cross_scale_weights",
    "contrastive_detach_coarse",
)
_OF_AUXILIARY_HEAD = ("auxiliary_loss_weight", "auxiliary_stage", "auxiliary_hidden_size")
_OF_PSEUDO_ANCHORS = ("contrastive_pseudo_threshold", "contrastive_pseudo_share")


def idle_settings(settings: Mapping[str, Any]) -> set[str]:
    """Find the settings without effect in a run, by the values of the others.

    Args:
        settings (`Mapping`): Settings of the run, those of `MsctrConfig` in its network, and `value_type` of its image
            processor, by name; what is missing is not known and switches nothing off.

    Returns:
        `set`: Names of settings, which may be missing in `settings`.
    """
    images_in_batch = settings.get("unlabeled_batch_size") or settings.get("batch_size")
    switched_off: dict[tuple[str, ...], bool] = {
        OF_ANOTHER_BACKBONE: settings.get("model_name_or_path") is not None,
        _OF_A_COPY: _are_none(settings, "dataset_name", "data_dir"),
        ("backbone_learning_rate_factor",): settings.get("freeze_backbone") is True,
        ("tile_overlap",): _are_none(settings, "tile_size"),
        ("unlabeled_mix",): images_in_batch == 1,
        ("pseudo_label_class_share",): settings.get("pseudo_label_threshold") == 0,
        ("color_jitter",): not _has_colors(settings.get("num_channels"), settings.get("value_type")),
        ("momentum",): settings.get("optimizer", "sgd") != "sgd",
        ("adam_betas",): settings.get("optimizer") == "sgd",
        ("poly_power",): settings.get("schedule", "poly") != "poly",
        ("exponential_gamma",): settings.get("schedule", "exponential") != "exponential",
        ("ema_decay",): settings.get("ema") is False,
        _OF_AUXILIARY_HEAD: settings.get("use_auxiliary_head") is False,
        _ACROSS_STAGES: settings.get("contrastive_mode") == "ms",
        _OF_PSEUDO_ANCHORS: settings.get("contrastive_pseudo_labels") is False,
    }
    idle = {name for names, is_off in switched_off.items() if is_off for name in names}
    if settings.get("contrastive_mode") == "ce":
        idle |= {name for name in settings if name.startswith(("contrastive_", "projection_"))}
        idle -= {"contrastive_mode", "contrastive_adapter"}
    if _are_none(settings, "unlabeled", "unlabeled_dir"):
        idle |= {name for name in settings if is_about_unlabeled(name)}
    return idle


def _has_colors(num_channels: int | None, value_type: str | None) -> bool:
    """Return whether images are RGB, as they are without a number of channels, of 8 or 16 bits, or may be."""
    return num_channels is None or Channels(num_channels, value_type or "uint8").are_colors


def _are_none(settings: Mapping[str, Any], *names: str) -> bool:
    return all(name in settings and settings[name] is None for name in names)
