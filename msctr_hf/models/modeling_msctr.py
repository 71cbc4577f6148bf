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
"""Segmentation network and its training objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils import ModelOutput, can_return_tuple

from .backbones import build_backbone, input_channels, works_at_one_stride
from .batch_statistics import unchanged_statistics, unchanged_statistics_in_backward
from .configuration_msctr import MsctrConfig
from .contrastive_loss import ContrastiveResult, MultiScaleContrastiveLoss
from .decode_heads import DECODE_HEADS, AuxiliaryHead, Classifier, concatenate_stages, resize
from .feature_pyramid import SimpleFeaturePyramid
from .loss_weight import ContrastiveWeight, UnlabeledWeight
from .pixel_embeddings import PixelEmbeddings
from .projection_head import ProjectionHead
from .pseudo_anchors import PseudoLabeled
from .semantic_losses import confident_pixel_cross_entropy, cross_entropy, dice_loss, hard_pixel_cross_entropy
from .transfers import mark_complete

CLASSIFIER_STD = 0.01
UNLABELED_ARGUMENTS = ("unlabeled_pixel_values", "pseudo_labels", "pseudo_confidence")  # of `forward`
THRESHOLDS = "pseudo_thresholds"  # of `forward`, optional

# The configuration decides which parts a network has, and configs/ has a recipe for every value of these fields:
# trf-ignore: TRF041 config.decode_head, config.use_auxiliary_head, config.auxiliary_stage, config.contrastive_mode
# trf-ignore: TRF041 config.projection_source
# The objective of training has terms that a configuration may add:
# trf-ignore: TRF041 config.ohem_threshold, config.dice_loss_weight, config.contrastive_pseudo_labels
# Docstrings are written out: code on the Hub must not depend on the docstring generator of one release.


# trf-ignore: TRF057 see above
@dataclass
class MsctrSegmenterOutput(ModelOutput):
    """Output of `MsctrForSemanticSegmentation`; access it by name.

    Args:
        loss (`torch.Tensor`, *optional*): Scalar; the full objective in training mode, the cross entropy otherwise.
        logits (`torch.Tensor` of shape `(B, num_labels, h, w)`): Class scores at the stride of the decode head.
        auxiliary_logits (`torch.Tensor` of shape `(B, num_labels, h, w)`, *optional*): Class scores of the auxiliary
            head, if it ran.
        projections (`tuple` of `(B, D, h_s, w_s)`, *optional*): Embeddings of the projected stages, finest first, not
            normalized; on request.
        loss_terms (`dict[str, torch.Tensor]`, *optional*): Terms of the loss, detached and unweighted.
        hidden_states (`tuple` of `(B, C_s, h_s, w_s)`, *optional*): Stage maps of the backbone; on request.
        diagnostics (`dict[str, torch.Tensor]`, *optional*): Cosines of the contrasted pairs, as in
            `ContrastiveResult`, with `ohem_threshold` the shares of hard pixels, and with unlabeled images the share
            of confident pixels. Numbers of anchors and classes, which the host knows, are in the network's
            `contrastive_facts`.

    All entries are tensors on the device of the network, under the same names for any batch, so that `nn.DataParallel`
    can gather them.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    auxiliary_logits: torch.Tensor | None = None
    projections: tuple[torch.Tensor, ...] | None = None
    loss_terms: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    diagnostics: dict[str, torch.Tensor] | None = None


class UnlabeledPass(NamedTuple):
    """Result of the pass of unlabeled images, and what a teacher says about them.

    Args:
        logits (`torch.Tensor` of shape `(U, num_labels, h, w)`): Class scores.
        hidden (`tuple` of `(U, C_s, h_s, w_s)`, *optional*): Maps whose rows the projection head projects, if they are
            contrasted.
        pseudo_labels (`torch.Tensor` of shape `(U, H', W')`, int64): Classes or the ignore index.
        pseudo_confidence (`torch.Tensor` of shape `(U, H', W')`): Confidence of the teacher.
        thresholds (`torch.Tensor` of shape `(U, H', W')`, *optional*): Smallest confidence of a confident pixel.
    """

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] | None
    pseudo_labels: torch.Tensor
    pseudo_confidence: torch.Tensor
    thresholds: torch.Tensor | None = None


# trf-ignore: TRF057 see above
class MsctrPreTrainedModel(PreTrainedModel):
    """Base class of the network, with weight initialization and attributes that transformers reads."""

    config_class = MsctrConfig
    base_model_prefix = "msctr"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over this batch: it cannot use the Trainer's num_items_in_batch
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            initialize_convolution(module)
        else:
            super()._init_weights(module)


def initialize_convolution(module: nn.Module) -> None:
    """Initialize the weights of a convolution before a norm, or of a classifier; do not change other modules."""
    if not isinstance(module, nn.Conv2d):
        return
    if isinstance(module, Classifier):
        init.normal_(module.weight, std=CLASSIFIER_STD)
    else:
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if module.bias is not None:
        init.zeros_(module.bias)


# trf-ignore: TRF057 see above
class MsctrForSemanticSegmentation(MsctrPreTrainedModel, PixelEmbeddings):
    """Segmentation network: backbone and decode head, and an auxiliary and a projection head for training.

    In training mode with `labels`, `loss` is the cross entropy of the logits, plus their Dice loss, the cross entropy
    of the auxiliary logits and the contrastive loss, weighted as the configuration says. The projection head is used
    only during training, and for embeddings of pixels (`embed`); inference costs what the plain network costs.

    `contrastive_facts` are the facts of the newest batch, as in `ContrastiveResult`; reading them does not wait for
    the device. `contrastive_weight` is the factor of the weight of the contrastive loss, which a training loop sets
    before the forward pass if the configuration has a warm-up or a schedule.

    With unlabeled images, their classes according to a teacher and its confidence, `loss` has the cross entropy of
    confident pixels too, times `unlabeled_loss_weight` and the factor of `unlabeled_weight`, which a training loop
    may replace by one that rises. With `contrastive_pseudo_labels`, confident pixels are anchors of the contrast too.
    Unlabeled images pass the network after the labeled ones, and BatchNorm normalizes either batch by its own mean and
    variance. Only those of the labeled images are kept in the running statistics, since the network will never predict
    images that are augmented so strongly; with activation checkpointing, what is computed again for the gradient is
    then not kept a second time.

    Source: https://arxiv.org/abs/2203.13409.
    """

    def __init__(self, config: MsctrConfig):
        super().__init__(config)
        config.validate_settings()  # some may have been assigned since it was built
        self.backbone = build_backbone(config.backbone_config)
        self.num_channels = input_channels(config)
        channels: list[int] = list(self.backbone.channels)  # type: ignore[arg-type]
        self.feature_pyramid = None
        if works_at_one_stride(self.backbone):
            self.feature_pyramid = SimpleFeaturePyramid(channels)
            channels = self.feature_pyramid.channels
        _check_stages(config, len(channels))
        self.num_stages = len(channels)
        decode_channels = [channels[stage - 1] for stage in config.decode_stages]
        hidden_size = config.hidden_size or sum(decode_channels)
        self.decode_head = DECODE_HEADS[config.decode_head](
            decode_channels, hidden_size, config.num_labels, config.dropout, config.align_corners
        )
        self.auxiliary_head = None
        if config.use_auxiliary_head:
            in_channels = (
                sum(decode_channels) if config.auxiliary_stage is None else channels[config.auxiliary_stage - 1]
            )
            self.auxiliary_head = AuxiliaryHead(
                in_channels, config.auxiliary_hidden_size, config.num_labels, config.dropout
            )
        self.projection_head = None
        self.contrastive_loss = None
        self.contrastive_facts: dict[str, float] = {}
        self.contrastive_weight = ContrastiveWeight.from_config(config)
        self.unlabeled_weight = UnlabeledWeight()
        if config.contrastive_mode != "ce":
            # The random state is restored, so that one seed starts all modes from the same network.
            with torch.random.fork_rng(devices=[]):
                pyramid_channels = [hidden_size] * len(decode_channels)
                projected = pyramid_channels if config.projection_source == "decode_head" else channels
                self.projection_head = ProjectionHead(
                    [projected[stage - 1] for stage in config.projection_stages], config.projection_dim
                )
            self.contrastive_loss = MultiScaleContrastiveLoss.from_config(config)
        # additions inside of them need tensors of one device; most backbones of transformers name their own such parts
        self._no_split_modules = [
            type(part).__name__
            for part in self.children()
            if not getattr(part, "_no_split_modules", None) and next(part.parameters(), None) is not None
        ]
        self.post_init()

    # trf-ignore: TRF057 see above; trf-ignore: TRF045 stage maps are the backbone's output, no hook has to record them
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_projections: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> MsctrSegmenterOutput:
        """Segment a batch, and compute the loss if `labels` are given.

        All entries of the output but `loss`, `loss_terms` and `diagnostics` are of the labeled images.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Normalized images of any size that is at least
                the coarsest stride.
            labels (`torch.Tensor` of shape `(B, H', W')`, int64, *optional*): Classes or the ignore index.
            output_projections (`bool`, *optional*): Whether to return the projections, also in evaluation mode.
            output_hidden_states (`bool`, *optional*): Whether to return the stage maps of the backbone; by default as
                the configuration says, which does not.
            kwargs: Unlabeled images as below, in training mode with `labels`, and on all processes or none.
                `return_dict=False` returns a tuple of the entries that are not `None`. Others are ignored.
            unlabeled_pixel_values (`torch.Tensor` of shape `(U, C, H', W')`, *optional*): Normalized images without
                labels, usually augmented strongly.
            pseudo_labels (`torch.Tensor` of shape `(U, H', W')`, int64, *optional*): Their classes according to a
                teacher, and the ignore index where there is padding.
            pseudo_confidence (`torch.Tensor` of shape `(U, H', W')`, *optional*): Probabilities that the teacher
                gives to these classes.
            pseudo_thresholds (`torch.Tensor` of shape `(U, H', W')`, *optional*): Confidence from which on a pixel has
                a cross entropy, in place of `pseudo_label_threshold`.

        Raises:
            ValueError: If labels do not match the images, one of the arguments for unlabeled images is missing or does
                not match the others, or projections are requested from a network without a projection head.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_projections and self.projection_head is None:
            raise ValueError("The network has no projection head: it was configured with `contrastive_mode='ce'`.")
        self._check_channels("pixel_values", pixel_values)
        # in `kwargs`, since the Trainer of transformers expects every argument in a batch whose name has "label" in it
        unlabeled_pixel_values, *pseudo = (kwargs.get(name) for name in UNLABELED_ARGUMENTS)
        thresholds = kwargs.get(THRESHOLDS)
        has_unlabeled = self._check_unlabeled(labels, thresholds, unlabeled_pixel_values, *pseudo)
        contrasts = labels is not None and self.training and self.contrastive_loss is not None
        contrasts_unlabeled = contrasts and has_unlabeled and self.config.contrastive_pseudo_labels
        if contrasts and labels.is_cuda:
            for read in (labels, *pseudo) if contrasts_unlabeled else (labels,):
                mark_complete(read)
        feature_maps = self._feature_maps(pixel_values)
        logits, auxiliary_logits, pyramid = self._decode(feature_maps)

        hidden, loss, loss_terms, diagnostics = None, None, None, None
        if contrasts or output_projections:
            hidden = self.projection_head.hidden(self._projected_maps(feature_maps, pyramid))
        unlabeled = None
        if has_unlabeled:
            unlabeled_logits, unlabeled_hidden = self._pass_unlabeled(unlabeled_pixel_values, contrasts_unlabeled)
            unlabeled = UnlabeledPass(unlabeled_logits, unlabeled_hidden, *pseudo)._replace(thresholds=thresholds)
        if labels is not None:
            loss, loss_terms, diagnostics = self._loss(
                logits, auxiliary_logits, hidden if contrasts else None, labels, unlabeled
            )
        if has_unlabeled:
            unchanged_statistics_in_backward(self, loss)
        return MsctrSegmenterOutput(
            loss=loss,
            logits=logits,
            auxiliary_logits=auxiliary_logits,
            projections=self.projection_head.project(hidden) if output_projections else None,
            loss_terms=loss_terms,
            hidden_states=tuple(feature_maps) if output_hidden_states else None,
            diagnostics=diagnostics,
        )

    def get_input_embeddings(self) -> None:
        """Return `None`: images have no input embeddings, but libraries that shard or adapt models ask for them."""

    def _stages_with_embeddings(self):
        config = self.config
        found = {"backbone": range(1, self.num_stages + 1)}
        if self.decode_head.gives_pyramid:
            found = {"decode_head": range(1, len(config.decode_stages) + 1), **found}
        return found if self.projection_head is None else {"projection": config.projection_stages, **found}

    def _maps_to_embed(self, pixel_values, features):
        """Compute the maps of all stages; a decode head that they do not need does not run."""
        feature_maps = self._feature_maps(pixel_values)
        if features == "backbone":
            return feature_maps
        of_pyramid = features == "decode_head" or self.config.projection_source == "decode_head"
        pyramid = self._decode(feature_maps)[-1] if of_pyramid else None
        if features == "decode_head":
            return pyramid
        return self.projection_head.project(self.projection_head.hidden(self._projected_maps(feature_maps, pyramid)))

    def _check_channels(self, name, pixel_values):
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"`{name}` have {pixel_values.shape[1]} channel(s), but the network reads {self.num_channels} "
                "(`num_channels` of its backbone)."
            )

    def _check_unlabeled(self, labels, thresholds, pixel_values, pseudo_labels, pseudo_confidence):
        """Return whether there are unlabeled images; raise if what belongs to them is missing or does not match."""
        given = dict(zip(UNLABELED_ARGUMENTS, (pixel_values, pseudo_labels, pseudo_confidence), strict=True))
        missing = [f"`{name}`" for name, value in given.items() if value is None]
        if len(missing) == len(given) and thresholds is None:
            return False
        if missing:
            raise ValueError(
                f"Unlabeled images are trained on with {', '.join(f'`{name}`' for name in given)}: pass "
                f"{' and '.join(missing)} too, or none of them."
            )
        if labels is None or not self.training:
            raise ValueError(
                "`unlabeled_pixel_values` are only for training: pass `labels` too and call `network.train()`, or "
                "leave them out."
            )
        self._check_channels("unlabeled_pixel_values", pixel_values)
        expected = (len(pixel_values), *pixel_values.shape[2:])
        for name, value in [*given.items(), (THRESHOLDS, thresholds)][1:]:
            if value is not None and value.shape != expected:
                raise ValueError(
                    f"`{name}` must be (U, H', W') = {expected}, the size of `unlabeled_pixel_values`, got "
                    f"{tuple(value.shape)}."
                )
        return True

    def _feature_maps(self, pixel_values):
        """Compute the stage maps, (B, C_s, h_s, w_s) per stage, finest first."""
        feature_maps = self.backbone(pixel_values).feature_maps
        return feature_maps if self.feature_pyramid is None else self.feature_pyramid(feature_maps)

    def _decode(self, feature_maps, auxiliary=True):
        """Compute logits from stage maps, with the auxiliary logits and the pyramid of the decode head, or `None`.

        Without `auxiliary`, the auxiliary head runs only if the decode head needs it.
        """
        config = self.config
        decode_maps = [feature_maps[stage - 1] for stage in config.decode_stages]
        auxiliary_logits = None
        trains_auxiliary_head = self.training and auxiliary
        if self.auxiliary_head is not None and (trains_auxiliary_head or self.decode_head.needs_auxiliary_logits):
            if config.auxiliary_stage is None:  # concatenate once for both heads
                decode_maps = [concatenate_stages(decode_maps, config.align_corners)]
                auxiliary_logits = self.auxiliary_head(decode_maps[0])
            else:
                auxiliary_logits = self.auxiliary_head(feature_maps[config.auxiliary_stage - 1])
        logits, pyramid = self.decode_head(decode_maps, auxiliary_logits)
        return logits, auxiliary_logits, pyramid

    @torch.compiler.disable(recursive=False)  # layers change for the block; what is called in it is compiled
    def _pass_unlabeled(self, pixel_values, contrasts):
        """Compute logits, and maps to project if they are contrasted, of a batch whose statistics are not kept."""
        with unchanged_statistics(self):
            return self._logits_and_hidden(pixel_values, contrasts)

    def _logits_and_hidden(self, pixel_values, contrasts):
        feature_maps = self._feature_maps(pixel_values)
        logits, _, pyramid = self._decode(feature_maps, auxiliary=False)
        hidden = self.projection_head.hidden(self._projected_maps(feature_maps, pyramid)) if contrasts else None
        return logits, hidden

    def _projected_maps(self, feature_maps, pyramid):
        maps = pyramid if self.config.projection_source == "decode_head" else feature_maps
        return [maps[stage - 1] for stage in self.config.projection_stages]

    def _loss(self, logits, auxiliary_logits, hidden, labels, unlabeled=None):
        """Compute the objective, its detached and unweighted terms, and the diagnostics of the contrast or `None`.

        `hidden` are the maps whose rows the projection head projects; without them, contrastive terms are left out.
        The auxiliary head learns from labeled images alone, as in the code of U2PL (https://arxiv.org/abs/2203.03884).
        """
        if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
            raise ValueError(f"`labels` must be (B, H, W) with B = {logits.shape[0]}, got {tuple(labels.shape)}.")
        config = self.config
        loss, terms, diagnostics = self._semantic_loss(logits, labels, "cross_entropy", config.dice_loss_weight)
        if self.training and auxiliary_logits is not None:
            auxiliary, auxiliary_terms, kept = self._semantic_loss(auxiliary_logits, labels, "auxiliary")
            terms, diagnostics = {**terms, **auxiliary_terms}, {**diagnostics, **kept}
            loss = loss + config.auxiliary_loss_weight * auxiliary
        if unlabeled is not None:
            name = "pseudo_cross_entropy"
            of_unlabeled, diagnostics[f"{name}/confident_pixels"] = self._unlabeled_loss(unlabeled)
            terms[name] = of_unlabeled.detach()
            loss = loss + self.unlabeled_weight(config.unlabeled_loss_weight * of_unlabeled)
        if hidden is None:
            return loss, terms, diagnostics or None
        pseudo = None
        if unlabeled is not None and unlabeled.hidden is not None:
            pseudo = PseudoLabeled(unlabeled.hidden, unlabeled.pseudo_labels, unlabeled.pseudo_confidence)
        contrast = contrast_and_keep_facts(self, hidden, labels, logits, pseudo)
        loss = loss + config.contrastive_loss_weight * contrast.loss
        return loss, {**terms, **contrast.terms}, {**diagnostics, **contrast.cosines}

    def _semantic_loss(self, logits, labels, name, dice_weight=0.0):
        """Compute the loss of one head, its terms, and the share of hard pixels if only these are trained on.

        Hard pixels and Dice belong to training: in evaluation mode the loss is the cross entropy.
        """
        config = self.config
        classes = {"ignore_index": config.semantic_loss_ignore_index, "class_weights": config.class_weights}
        diagnostics = {}
        with torch.autocast(logits.device.type, enabled=False):
            logits = self._resized(logits, labels)
            if self.training and config.ohem_threshold is not None:
                loss, kept = hard_pixel_cross_entropy(logits, labels, config.ohem_threshold, **classes)
                diagnostics[f"{name}/hard_pixels"] = kept
            else:
                loss = cross_entropy(logits, labels, **classes)
            terms = {name: loss.detach()}
            if self.training and dice_weight:
                dice = dice_loss(logits, labels, ignore_index=config.semantic_loss_ignore_index)
                terms["dice"] = dice.detach()
                loss = loss + dice_weight * dice
        return loss, terms, diagnostics

    def _unlabeled_loss(self, unlabeled):
        """Compute the cross entropy of the confident pixels of unlabeled images, and their share."""
        config = self.config
        with torch.autocast(unlabeled.logits.device.type, enabled=False):
            return confident_pixel_cross_entropy(
                self._resized(unlabeled.logits, unlabeled.pseudo_labels),
                unlabeled.pseudo_labels,
                unlabeled.pseudo_confidence,
                config.pseudo_label_threshold if unlabeled.thresholds is None else unlabeled.thresholds,
                ignore_index=config.semantic_loss_ignore_index,
            )

    def _resized(self, logits, labels):
        """Resize logits to the size of the labels, in float32 (float64 stays float64)."""
        # Contiguous, because with channels last the softmax is slow on CPUs and copies the map on GPUs.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
        return resize(logits, labels.shape[-2:], self.config.align_corners)


@torch.compiler.disable  # facts of the host would be constants of a compiled graph
def contrast_and_keep_facts(
    network: Any,
    hidden: tuple[torch.Tensor, ...],
    labels: torch.Tensor,
    logits: torch.Tensor,
    pseudo: PseudoLabeled | None = None,
) -> ContrastiveResult:
    """Contrast the anchors of a batch, and keep its facts in `network.contrastive_facts`.

    The loss is multiplied by the factor of `network.contrastive_weight`.

    The facts of a batch replace those of the batch before in the same dict, which the replicas of `nn.DataParallel`
    share with the network: what a replica assigns is lost.
    """
    project = network.projection_head.row_projections
    contrast = network.contrastive_loss.contrast(hidden, labels, project=project, logits=logits, pseudo=pseudo)
    network.contrastive_facts.clear()  # a batch before may have had unlabeled images, and this one none
    network.contrastive_facts.update(contrast.facts | network.contrastive_weight.facts())
    return contrast._replace(loss=network.contrastive_weight(contrast.loss))


def _check_stages(config: MsctrConfig, num_stages: int) -> None:
    auxiliary = [config.auxiliary_stage] if config.use_auxiliary_head and config.auxiliary_stage else []
    for name, stages in (
        ("decode_stages", config.decode_stages),
        ("projection_stages", config.projection_stages),
        ("auxiliary_stage", auxiliary),
    ):
        if any(not 1 <= stage <= num_stages for stage in stages):
            raise ValueError(f"`{name}` must be in 1 to {num_stages}, the stages of the backbone, got {list(stages)}.")
    head = DECODE_HEADS[config.decode_head]
    if len(config.decode_stages) < head.min_stages:
        raise ValueError(
            f"{head.display_name} needs at least {head.min_stages} stages in `decode_stages`, "
            f"got {list(config.decode_stages)}."
        )
    if config.use_auxiliary_head and config.auxiliary_stage is None and not head.concatenates_stages:
        raise ValueError(f"With {head.display_name} the auxiliary head needs an `auxiliary_stage`.")
    if config.projection_source == "decode_head" and max(config.projection_stages) > len(config.decode_stages):
        raise ValueError(
            f"`projection_stages` must be at most {len(config.decode_stages)}, the number of maps in the pyramid, got "
            f"{list(config.projection_stages)}."
        )


MsctrForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
# The pipeline "image-segmentation" looks up in this mapping which models it supports.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[MsctrConfig.model_type] = MsctrForSemanticSegmentation.__name__

__all__ = ["MsctrForSemanticSegmentation", "MsctrPreTrainedModel", "MsctrSegmenterOutput"]
