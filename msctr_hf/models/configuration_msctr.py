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
"""Configuration of a segmentation network trained with multi-scale and cross-scale contrast."""

import difflib
import logging
import math
from dataclasses import field, fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .contrastive_loss import MultiScaleContrastiveLoss
from .decode_heads import DECODE_HEADS, DecodeHead

logger = logging.getLogger(__name__)

DEFAULT_BACKBONE = {"model_type": "timm_backbone", "backbone": "resnet50.tv_in1k", "out_indices": [1, 2, 3, 4]}

# Keys that transformers writes or passes, and that are not fields of a configuration class.
_KEYS_OF_TRANSFORMERS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "fusion_config",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
    "use_cache",
}


def _field(default: Any, help: str) -> Any:
    """Declare a field of the configuration, whose help is shown in the docstring and by `msctr train --help`."""
    return field(default=default, metadata={"help": help})


def _by_head(name: str) -> str:
    """Return the end of a help text: the defaults of the decode heads, the most common one first."""
    heads: dict[str, list[str]] = {}
    for head, kind in DECODE_HEADS.items():
        value = (DecodeHead.defaults | kind.defaults).get(name)
        heads.setdefault(str(list(value) if isinstance(value, tuple) else value), []).append(head)
    ordered = sorted(heads.items(), key=lambda entry: -len(entry[1]))
    return "; default: " + ", ".join(
        f"{value} for {' and '.join(names)}" for value, names in ordered if value != "None"
    )


# `strict` checks types at run time; `from __future__ import annotations` would switch that off.
# trf-ignore: TRF057 written out: code on the Hub must not depend on the docstring generator of one release
@strict
class MsctrConfig(PreTrainedConfig):
    """Configuration of a network and of its training objective.

    Stages are counted from 1, the finest: C2 = stage 1 ... C5 = stage 4. A wrong type or an unknown key is an error.
    `None` is replaced by the default of the decode head. Where other classes are loaded, as by
    `from_pretrained(..., num_labels=3)`, `palette` and `class_weights` are reduced to the entries of these classes, or
    dropped if one of the new classes is not among the former ones. New names assigned to `id2label` change neither.

    Source: https://arxiv.org/abs/2203.13409.
    """

    model_type = "msctr"
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": AutoConfig}
    # everything but loss and logits: the Trainer passes what is left to `compute_metrics`
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "auxiliary_logits",
        "projections",
        "loss_terms",
        "hidden_states",
        "diagnostics",
    ]

    backbone_config: dict | PreTrainedConfig | None = _field(
        None,
        "Configuration of a transformers backbone; a dict needs its `model_type`. `timm_kwargs` in a "
        "`timm_backbone` are passed to `timm.create_model` (HRNet: `{'feature_location': ''}`); "
        "`num_channels` is that of the images, 3 by default. ResNet-50 by default.",
    )

    decode_head: Literal[*DECODE_HEADS] = _field("upernet", "Decode head.")  # type: ignore[valid-type]
    decode_stages: list[int] | tuple[int, ...] | None = _field(
        None, f"Stages that the decode head reads{_by_head('decode_stages')}"
    )
    hidden_size: int | None = _field(
        None, f"Width of the decode head, or else the sum of the channels that it reads{_by_head('hidden_size')}"
    )
    dropout: float | int | None = _field(
        None, f"Probability of dropping a channel before the classifiers{_by_head('dropout')}"
    )
    align_corners: bool | None = _field(
        None, f"Upsample logits with aligned corners, in training and in prediction{_by_head('align_corners')}"
    )
    use_auxiliary_head: bool | None = _field(
        None, f"Train a second classifier on an earlier map{_by_head('use_auxiliary_head')}"
    )
    auxiliary_loss_weight: float | int = _field(0.4, "Weight of the cross entropy of the auxiliary head.")
    auxiliary_stage: int | None = _field(
        None,
        f"Stage that the auxiliary head reads, or else all stages of the decode head{_by_head('auxiliary_stage')}",
    )
    auxiliary_hidden_size: int | None = _field(None, f"Width of the auxiliary head{_by_head('auxiliary_hidden_size')}")

    projection_dim: int = _field(256, "Number of channels D of the projections.")
    projection_source: Literal["backbone", "decode_head"] = _field(
        "backbone",
        "Maps that are projected: stages of the backbone, or UPerNet's pyramid.",
    )
    projection_stages: list[int] | tuple[int, ...] | None = _field(
        None, f"Projected stages, finest first{_by_head('projection_stages')}"
    )

    contrastive_mode: Literal["ce", "ms", "ms_cs"] = _field(
        "ms_cs",
        "No contrast (ce), within stages (ms), or within and across stages (ms_cs).",
    )
    contrastive_loss_weight: float | int = _field(0.1, "Weight of the whole contrastive loss.")
    contrastive_temperature: float | int = _field(0.1, "Temperature of the contrastive terms, at least 0.01.")
    contrastive_cross_scale_temperature: float | int | None = _field(
        None,
        "Temperature of the cross-scale terms; by default that of the within-scale terms.",
    )
    contrastive_scale_weights: list[float | int] | tuple[float | int, ...] | None = _field(
        None,
        "Weight of every projected stage; by default the first of 1, 0.7, 0.4, 0.1.",
    )
    contrastive_cross_scale_pairs: list[list[int]] | tuple[tuple[int, ...], ...] | None = _field(
        None,
        "Pairs (anchors, contrast) of positions in `projection_stages`, from 0. By default the finest with "
        "the coarsest and, with more than two stages, with the second coarsest.",
    )
    contrastive_cross_scale_weights: list[float | int] | tuple[float | int, ...] | None = _field(
        None,
        "Weight of every cross-scale pair; 1 by default.",
    )
    contrastive_detach_coarse: bool = _field(False, "Stop the gradient at the contrast side of a pair.")
    contrastive_min_anchors_per_class: int = _field(
        5, "Number of pixels that a class must have in an image to be contrasted."
    )
    contrastive_max_anchors_per_class: int = _field(2500, "Largest number of anchors of one class in one image.")
    contrastive_max_anchors: int = _field(10_000, "Largest number of anchors of a stage, per process.")
    contrastive_gather_anchors: bool = _field(
        False,
        "Contrast with the anchors of all processes, so that a batch split over GPUs has the loss of one GPU.",
    )
    contrastive_sampling: Literal["rarest", "budget"] = _field(
        "rarest",
        "Number of anchors of every class of an image: as many as the rarest class has (rarest, the published "
        "rule), or up to an equal share of contrastive_max_anchors (budget, meant for about 2048).",
    )

    contrastive_anchor_selection: Literal["random", "hard"] = _field(
        "random",
        "Anchors of every class of an image: drawn from all of its pixels (random, as published), or half of them "
        "from those that the network misclassifies, as far as there are enough (hard).",
    )
    contrastive_positives: Literal["each", "any"] = _field(
        "each",
        "Pull all pixels of its class to an anchor (each, as published), or let some of them suffice, so that a class "
        "may stay several clusters (any).",
    )
    contrastive_warmup_steps: int = _field(
        0, "Steps over which the weight of the contrastive loss rises to its value."
    )
    contrastive_schedule: Literal["constant", "linear", "cosine"] = _field(
        "constant",
        "Weight of the contrastive loss after the warm-up: constant, or falling to 0 at the end of training.",
    )

    contrastive_pseudo_labels: bool = _field(
        False,
        "Contrast confident pixels of unlabeled images too, by the classes that the teacher gives them.",
    )
    contrastive_pseudo_threshold: float | int = _field(
        0.97, "Confidence of the teacher from which on pixels of unlabeled images are contrasted, from 0 to 1."
    )
    contrastive_pseudo_share: float | int = _field(
        0.5, "Largest share of pixels of unlabeled images among the anchors of a stage, from 0 to below 1."
    )

    class_weights: list[float | int] | tuple[float | int, ...] | None = _field(
        None,
        "Weight of every class in every cross entropy; 1 by default. `msctr train` replaces 'auto' by the median "
        "frequency of the classes in the training split over that of the class, at most 50.",
    )
    dice_loss_weight: float | int = _field(
        0, "Weight of the soft Dice loss of the decode head, in addition to its cross entropy; 0 for none."
    )
    ohem_threshold: float | int | None = _field(
        None,
        "Train every cross entropy only on hard pixels (OHEM): those whose label has a smaller probability than this, "
        "and at least a sixteenth of the labeled pixels of a batch; by default on all pixels.",
    )
    pseudo_label_threshold: float | int = _field(
        0.95, "Confidence of the teacher from which on pixels of unlabeled images are trained on, from 0 to 1."
    )
    unlabeled_loss_weight: float | int = _field(1.0, "Weight of the cross entropy of unlabeled images.")
    semantic_loss_ignore_index: int = _field(255, "Label value that losses and metrics ignore.")
    palette: list[list[int]] | tuple[tuple[int, ...], ...] | None = _field(None, "RGB color of every class.")

    def __post_init__(self, **kwargs):
        self._refuse_unknown_keys(kwargs)
        self.backbone_config = _build_backbone_config(self.backbone_config)
        self._fill_in_defaults_of_the_decode_head()
        super().__post_init__(**kwargs)
        if self.id2label is not None and len(self.label2id or {}) != len(self.id2label):
            self.label2id = {name: index for index, name in self.id2label.items()}
        self.validate_settings()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "MsctrConfig":
        """Build a configuration from a dict and from settings that override it; classes are set before the others."""
        classes = {name: kwargs.pop(name) for name in ("id2label", "num_labels") if kwargs.get(name) is not None}
        former, new = config_dict.get("id2label"), classes.get("id2label")
        if former is not None and new is not None and len(former) == len(new):
            config_dict = {**config_dict, **_fit_to_classes(config_dict, _by_number(former), _by_number(new))}
        return super().from_dict(config_dict, **classes, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label" and value is not None:
            value = _by_number(value)
            former = self.__dict__.get("id2label")
            if former is not None and former != value:
                super().__setattr__("label2id", {label: number for number, label in value.items()})
                if len(former) != len(value):  # else the classes of this network get other names
                    for setting, entries in _fit_to_classes(self.__dict__, former, value).items():
                        super().__setattr__(setting, entries)
        super().__setattr__(name, value)

    def validate_settings(self) -> None:
        """Check settings that depend on each other and the names of all that is saved.

        This is also done before a network is built or saved, since values may have been assigned.

        Raises:
            ValueError: If a configuration with these settings could not be loaded.
        """
        self._refuse_unknown_keys(self.to_dict())
        self._validate_network()
        self._validate_contrast()

    def _refuse_unknown_keys(self, kwargs: dict[str, Any]) -> None:
        known = set(self.__dataclass_fields__) | _KEYS_OF_TRANSFORMERS
        for key in sorted(key for key in set(kwargs) - known if not key.startswith("_")):
            close = difflib.get_close_matches(key, known, n=1)
            hint = f". Did you mean `{close[0]}`?" if close else "; values of your own need names that begin with `_`."
            raise ValueError(f"`{key}` is not a setting of MsctrConfig{hint}")

    def _fill_in_defaults_of_the_decode_head(self) -> None:
        for name, value in (DecodeHead.defaults | DECODE_HEADS[self.decode_head].defaults).items():
            if getattr(self, name) is None:
                setattr(self, name, list(value) if isinstance(value, tuple) else value)

    def _validate_network(self) -> None:
        for name in ("hidden_size", "auxiliary_hidden_size", "projection_dim"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}.")
        if not 0 <= self.dice_loss_weight < math.inf:
            raise ValueError(f"`dice_loss_weight` must be at least 0 and finite, got {self.dice_loss_weight}.")
        if self.ohem_threshold is not None and not 0 < self.ohem_threshold <= 1:
            raise ValueError(f"`ohem_threshold` must be a probability in (0, 1], got {self.ohem_threshold}.")
        if not 0 <= self.pseudo_label_threshold <= 1:
            raise ValueError(
                f"`pseudo_label_threshold` must be a probability in [0, 1], got {self.pseudo_label_threshold}."
            )
        if not 0 <= self.unlabeled_loss_weight < math.inf:
            raise ValueError(
                f"`unlabeled_loss_weight` must be at least 0 and finite, got {self.unlabeled_loss_weight}."
            )
        if self.num_labels < 2:
            raise ValueError(
                f"A network needs at least two classes, got {self.num_labels}: the cross entropy of a single class is "
                "always 0; give the background a class."
            )
        head = DECODE_HEADS[self.decode_head]
        if head.needs_auxiliary_logits and not self.use_auxiliary_head:
            raise ValueError(
                f"The {head.display_name} head needs the logits of the auxiliary head: `use_auxiliary_head=True`."
            )
        if self.projection_source == "decode_head" and not head.gives_pyramid:
            with_pyramid = " or ".join(each.display_name for each in DECODE_HEADS.values() if each.gives_pyramid)
            raise ValueError(
                f"`projection_source='decode_head'` needs the pyramid of {with_pyramid}; with "
                f"`decode_head={self.decode_head!r}` use `projection_source='backbone'`."
            )
        for name in ("decode_stages", "projection_stages"):
            stages = getattr(self, name)
            if not stages or min(stages) < 1 or list(stages) != sorted(set(stages)):
                raise ValueError(f"`{name}` must list stages from 1, each once, finest first, got {list(stages)}.")
        for name in ("class_weights", "palette"):
            value = getattr(self, name)
            if value is not None and len(value) != self.num_labels:
                raise ValueError(f"`{name}` must have one entry per class: {self.num_labels}, got {len(value)}.")

    def _validate_contrast(self) -> None:
        if self.contrastive_mode not in ("ce", "ms", "ms_cs"):
            raise ValueError(f"`contrastive_mode` must be 'ce', 'ms' or 'ms_cs', got {self.contrastive_mode!r}.")
        for name in ("contrastive_temperature", "contrastive_cross_scale_temperature"):
            value = getattr(self, name)
            if value is not None and not value >= 0.01:
                raise ValueError(f"`{name}` must be at least 0.01, got {value}.")
        if self.contrastive_warmup_steps < 0:
            raise ValueError(f"`contrastive_warmup_steps` must be at least 0, got {self.contrastive_warmup_steps}.")
        if self.contrastive_schedule not in ("constant", "linear", "cosine"):
            raise ValueError(
                f"`contrastive_schedule` must be 'constant', 'linear' or 'cosine', got {self.contrastive_schedule!r}."
            )
        MultiScaleContrastiveLoss.from_config(self)


def _by_number(id2label: dict[Any, str]) -> dict[int, str]:
    return {int(number): label for number, label in id2label.items()}  # JSON has only strings as keys


def _fit_to_classes(settings: dict[str, Any], former: dict[int, str], new: dict[int, str]) -> dict[str, Any]:
    """Reduce palette and class weights to other classes, or drop them if some of these are new, and report it."""
    unnamed = all(label == f"LABEL_{number}" for number, label in former.items())
    if former == new or (unnamed and len(former) == len(new)):
        return {}
    position = {former[number]: index for index, number in enumerate(sorted(former))}
    kept = [position.get(new[number]) for number in sorted(new)]
    # settings of another length were assigned for the new classes already
    belonging = [name for name in ("palette", "class_weights") if len(settings.get(name) or ()) == len(former)]
    if not belonging:
        return {}
    names = " and ".join(f"`{name}`" for name in belonging)
    if None in kept:
        logger.warning(f"Dropped {names}, which belonged to other classes.")
        return dict.fromkeys(belonging)
    logger.warning(f"Reduced {names} to the new classes, which are among the former ones.")
    return {name: [settings[name][index] for index in kept] for name in belonging}  # type: ignore[index]


def _build_backbone_config(backbone_config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    if backbone_config is None:
        backbone_config = DEFAULT_BACKBONE
    is_config = isinstance(backbone_config, PreTrainedConfig)
    options = backbone_config.to_dict() if is_config else dict(backbone_config)
    pretrained = {
        "use_pretrained_backbone": options.get("use_pretrained_backbone"),
        "timm_kwargs['pretrained']": (options.get("timm_kwargs") or {}).get("pretrained"),
    }
    for name, value in pretrained.items():
        if value:
            raise ValueError(
                f"`backbone_config` describes a network and loads no weights, got {name} = {value!r}: leave it out, "
                "and give `--backbone_weights hub` (msctr train) or call `load_backbone_weights(model, 'hub')`."
            )
    if is_config:
        return backbone_config
    model_type = options.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"`backbone_config` needs the `model_type` of a transformers backbone ('timm_backbone', 'swin', "
            f"'convnext', ...), got {model_type!r}."
        )
    return CONFIG_MAPPING[model_type].from_dict(options)


def _describe_fields() -> str:
    """Return the `Args:` section of the class, from the help of its fields."""
    described = (each for each in fields(MsctrConfig) if "help" in each.metadata)
    return "\n".join(
        f"        {each.name} (defaults to `{each.default!r}`): {each.metadata['help']}" for each in described
    )


MsctrConfig.__doc__ = f"{MsctrConfig.__doc__}\n    Args:\n{_describe_fields()}\n    "
MsctrConfig.register_for_auto_class()

__all__ = ["MsctrConfig"]
