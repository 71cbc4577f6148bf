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
"""The contrastive objective for any semantic segmentation model of transformers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.hub import create_and_tag_model_card

from .configuration_msctr import MsctrConfig
from .contrastive_loss import MultiScaleContrastiveLoss
from .loss_weight import ContrastiveWeight
from .modeling_msctr import MsctrSegmenterOutput, contrast_and_keep_facts, initialize_convolution
from .pixel_embeddings import PixelEmbeddings
from .projection_head import ProjectionHead
from .transfers import mark_complete

MAX_STAGES = 4
_DEFAULT_IMAGE_SIZE = 224
HEADS_FILE = "projection_head.safetensors"
IGNORE_INDEX_SETTINGS = ("semantic_loss_ignore_index", "loss_ignore_index")  # names in configurations of models
_HEADS = "projection_head."
_MODEL = "model."
_SETTINGS_OF_HEADS = ("layers", "projection_dim", "projection_stages")
_SETTING_PREFIXES = ("projection_dim", "projection_stages", "contrastive_")


class ContrastiveAdapter(PreTrainedModel, PixelEmbeddings):
    """Wrapper that trains a model with projection heads and contrastive terms; `adapter.model` is an ordinary model.

    In training mode with `labels`, `loss` is the model's own loss plus the weighted contrastive loss; in evaluation
    mode the model runs as it is. The model's own loss is NaN if all pixels of a batch are ignored.

    ```python
    model = AutoModelForSemanticSegmentation.from_pretrained("nvidia/mit-b0", num_labels=19)
    adapter = ContrastiveAdapter(model, contrastive_mode="ms_cs")
    adapter(pixel_values=pixel_values, labels=labels).loss.backward()
    adapter.save_pretrained("segformer")  # what model.save_pretrained writes, and the projection head beside it
    ```

    The Trainer of transformers trains an adapter, and resumes from its checkpoints.

    Args:
        model (`PreTrainedModel`): SegFormer, DPT, BEiT, UPerNet, MobileViT, ...: any model that returns
            `hidden_states`, as maps (B, C, h, w) or as patch tokens (B, tokens, C).
        layers (`Sequence[int]`, *optional*): Positions of the stages in `hidden_states`, finest first. By default the
            last map of each of the four coarsest resolutions, or four evenly spaced layers of tokens.
        settings: `contrastive_...`, `projection_dim` and `projection_stages` as in `MsctrConfig`; stages are
            positions in `layers`, from 1.

    Raises:
        ValueError: If the model cannot be adapted, or a setting does not belong to the objective.
    """

    base_model_prefix = "model"  # where the model is; PEFT reads it
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False  # the loss is a mean over this batch: it cannot use the Trainer's num_items_in_batch

    def __init__(self, model: PreTrainedModel, *, layers: Sequence[int] | None = None, **settings: Any):
        # The configuration of the model is attached afterwards, because the constructor of the base class adjusts it.
        super().__init__(PreTrainedConfig())
        for name in settings:
            if not name.startswith(_SETTING_PREFIXES):
                raise ValueError(
                    f"`{name}` is not a setting of the contrastive objective; an adapted model keeps its own settings."
                )
        if settings.get("contrastive_pseudo_labels"):
            raise ValueError(
                "`contrastive_pseudo_labels`: an adapted model does not learn from unlabeled images; leave it out."
            )
        _refuse_other_models(model)
        self.model = model
        self.config = model.config
        self.name_or_path = model.name_or_path
        size = _image_size(model.config)
        hidden_states = _hidden_states_of_blank_image(model, size)
        shapes = [state.shape for state in hidden_states]
        self.layers = _default_layers(shapes) if layers is None else list(layers)
        if not self.layers or not all(0 <= layer < len(shapes) for layer in self.layers):
            raise ValueError(f"`layers` must be positions among {len(shapes)} hidden states, got {self.layers}.")
        settings = {"projection_stages": list(range(1, len(self.layers) + 1)), **settings}
        self.objective = MsctrConfig(
            id2label=model.config.id2label,
            label2id=model.config.label2id,
            semantic_loss_ignore_index=_ignore_index(model.config),
            **settings,
        )
        if max(self.objective.projection_stages) > len(self.layers):
            raise ValueError(
                f"`projection_stages` must be at most {len(self.layers)}, the number of stages, got "
                f"{list(self.objective.projection_stages)}."
            )
        self.projection_head = None
        self.contrastive_loss = None
        self.contrastive_facts: dict[str, float] = {}
        self.contrastive_weight = ContrastiveWeight.from_config(self.objective)
        if self.objective.contrastive_mode != "ce":
            projected = self._maps(hidden_states, size, self.objective.projection_stages)
            channels = [features.shape[1] for features in projected]
            # The random state is restored, so that one seed starts all modes from the same network.
            with torch.random.fork_rng(devices=[]):
                self.projection_head = ProjectionHead(channels, self.objective.projection_dim)
                self.projection_head.apply(initialize_convolution)
            parameter = next(model.parameters())
            self.projection_head.to(parameter.device, parameter.dtype)
            self.contrastive_loss = MultiScaleContrastiveLoss.from_config(self.objective)

    @classmethod
    def with_saved_head(cls, model: PreTrainedModel) -> ContrastiveAdapter:
        """Wrap a loaded model for `embed`, with the projection head that was saved next to it, if there is one.

        Args:
            model (`PreTrainedModel`): Model that `from_pretrained` loaded, from a folder or from the Hub.

        Raises:
            ValueError: If the model cannot be adapted, or the projection head is damaged or that of another model.
        """
        path = _saved_head(model)
        weights: dict[str, torch.Tensor] = {}
        settings: dict[str, Any] = {}
        if path is not None:
            try:
                with safe_open(path, framework="pt") as file:
                    settings = json.loads(file.metadata()["settings"])
                weights = load_file(path)
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} is damaged ({error}).") from error
        kept = {name: settings[name] for name in _SETTINGS_OF_HEADS if name in settings}
        adapter = cls(model, **kept, contrastive_mode="ms" if weights else "ce")
        if weights:
            try:
                adapter.projection_head.load_state_dict(_part(weights, _HEADS))
            except RuntimeError as error:
                raise ValueError(f"{path} is the projection head of another model.") from error
        return adapter.train(model.training)

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the model can recompute activations in the backward pass."""
        return self.model.supports_gradient_checkpointing

    @property
    def backbone(self) -> nn.Module:
        """Part of the model that has pretrained weights."""
        return getattr(self.model, "backbone", self.model.base_model)

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_projections: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MsctrSegmenterOutput | tuple:
        """Segment a batch, and compute the objective if `labels` are given.

        Arguments and output are those of `MsctrForSemanticSegmentation`. In training mode, `loss_terms` holds the
        model's own loss as `segmentation`, and every contrastive term; in evaluation mode there are only `loss` and
        `logits`, and what was requested. With `return_dict=False`, the output is a tuple of all entries but `None`.
        """
        if output_projections and self.projection_head is None:
            raise ValueError("The adapter has no projection head: it was made with `contrastive_mode='ce'`.")
        if kwargs.get("unlabeled_pixel_values") is not None:
            raise ValueError(
                "`unlabeled_pixel_values`: an adapted model does not learn from unlabeled images; leave them out."
            )
        if output_hidden_states is None:
            output_hidden_states = self.model.config.output_hidden_states
        contrasts = labels is not None and self.training and self.contrastive_loss is not None
        if contrasts and labels.is_cuda:
            mark_complete(labels)
        needs_maps = contrasts or bool(output_projections)
        output = self.model(
            pixel_values=pixel_values,
            labels=labels,
            output_hidden_states=needs_maps or output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        loss, terms, diagnostics, hidden = output.loss, None, None, None
        if loss is not None and self.training:
            terms = {"segmentation": loss.detach()}
        if needs_maps:
            maps = self._maps(output.hidden_states, pixel_values.shape[-2:], self.objective.projection_stages)
            hidden = self.projection_head.hidden(maps)
        if contrasts:
            contrast = contrast_and_keep_facts(self, hidden, labels, output.logits)
            loss = loss + self.objective.contrastive_loss_weight * contrast.loss
            terms, diagnostics = {**terms, **contrast.terms}, contrast.cosines
        adapted = MsctrSegmenterOutput(
            loss=loss,
            logits=output.logits,
            projections=self.projection_head.project(hidden) if output_projections else None,
            loss_terms=terms,
            hidden_states=output.hidden_states if output_hidden_states else None,
            diagnostics=diagnostics,
        )
        return adapted.to_tuple() if return_dict is False else adapted

    def get_input_embeddings(self) -> None:
        """Return `None`: images have no input embeddings, but libraries that shard or adapt models ask for them."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie the weights that the model ties."""
        self.model.tie_weights(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to load: an adapter is made around a loaded model.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "Load the model with `AutoModelForSemanticSegmentation.from_pretrained`, then wrap it: "
            "`ContrastiveAdapter(model)`."
        )

    def save_pretrained(
        self,
        folder: str | Path,
        state_dict: dict[str, torch.Tensor] | None = None,
        *,
        is_main_process: bool = True,
        save_heads: bool = True,
        push_to_hub: bool = False,
        token: str | bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the model as its own `save_pretrained` does, and the projection head in a file next to it.

        Args:
            folder (`str` or `Path`): Folder in which the model is saved.
            state_dict (`dict[str, torch.Tensor]`, *optional*): Weights of the adapter, if they are not in the module.
            is_main_process (`bool`): Whether this process writes.
            save_heads (`bool`): Whether to write the file of the projection head, which a resumed training needs, and
                `embed` for projections.
            push_to_hub (`bool`): Whether to push what was saved to the Hub, in one commit.
            token (`str` or `bool`, *optional*): Token for the Hub; by default that of `hf auth login`.
            kwargs: Passed to the model's `save_pretrained`; to push, `repo_id` (by default the name of the folder),
                `private`, `commit_message` and `create_pr` too.
        """
        of_push = {name: kwargs.pop(name, None) for name in ("repo_id", "private", "commit_message", "create_pr")}
        pushes = push_to_hub and is_main_process
        if pushes:  # before anything is written: the Hub may refuse
            name = of_push["repo_id"] or Path(folder).name
            repo_id = HfApi().create_repo(name, private=of_push["private"], token=token, exist_ok=True).repo_id
            timestamps = self._get_files_timestamps(folder) if Path(folder).is_dir() else {}
        own = None if state_dict is None else _part(state_dict, _MODEL)
        self.model.save_pretrained(folder, state_dict=own, is_main_process=is_main_process, **kwargs)
        if save_heads and is_main_process:
            heads = _part(self.state_dict() if state_dict is None else state_dict, _HEADS)
            heads = {_HEADS + key: value.contiguous() for key, value in heads.items()}
            save_file(heads, Path(folder) / HEADS_FILE, metadata={"settings": json.dumps(self._settings)})
        if pushes:  # what the model would push itself, after all is saved
            create_and_tag_model_card(repo_id, self.model.model_tags, token=token).save(Path(folder) / "README.md")
            self.model._upload_modified_files(
                folder,
                repo_id,
                timestamps,
                commit_message=of_push["commit_message"],
                token=token,
                create_pr=bool(of_push["create_pr"]),
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights of the adapter, or resume from a checkpoint of the Trainer, which holds those of the model.

        Args:
            state_dict (`Mapping[str, Any]`): Weights of the adapter. From the Trainer those of the plain model, which
                are read from its checkpoint together with the projection head.
            strict, assign (`bool`): As in `nn.Module`; a checkpoint of the Trainer is always loaded strictly.

        Raises:
            ValueError: If no weight is one of the adapter, or a checkpoint of the Trainer has no projection head or
                that of other settings.
            RuntimeError: If weights do not match.
        """
        checkpoint = _checkpoint_of_the_trainer()
        if checkpoint is None:
            if state_dict and not state_dict.keys() & self.state_dict().keys():
                raise ValueError("These are not weights of the adapter; load the model itself by `from_pretrained`.")
            return super().load_state_dict(state_dict, strict, assign)
        if not state_dict.keys() <= self.state_dict().keys():
            state_dict = self._read_checkpoint(checkpoint)
        return super().load_state_dict(state_dict, strict=True, assign=assign)

    def _read_checkpoint(self, folder: Path) -> dict[str, torch.Tensor]:
        """Read the weights of the adapter from a folder that `save_pretrained` wrote.

        The model is loaded like any model of its class, since transformers saves some weights under other names.
        """
        if not (folder / HEADS_FILE).exists():
            raise ValueError(f"{folder} has no {HEADS_FILE}: it is not a checkpoint of a `ContrastiveAdapter`.")
        with safe_open(folder / HEADS_FILE, framework="pt") as file:
            saved = {**_default_settings(), **json.loads(file.metadata()["settings"])}  # an older version had fewer
        for name, value in self._settings.items():
            if value != saved.get(name):
                raise ValueError(
                    f"`{name}` was {saved.get(name)!r} where {folder} was saved and is {value!r}; make the adapter "
                    "with the same settings."
                )
        model, info = type(self.model).from_pretrained(folder, output_loading_info=True)
        if missing := [*info["missing_keys"], *info["unexpected_keys"]]:
            raise ValueError(f"{folder} is of another model: {', '.join(sorted(missing)[:4])} do not match.")
        return {**{_MODEL + key: value for key, value in model.state_dict().items()}, **load_file(folder / HEADS_FILE)}

    @property
    def _settings(self) -> dict[str, Any]:
        """Settings that decide what is trained, as they are in JSON."""
        settings = {name: getattr(self.objective, name) for name in _default_settings()}
        return json.loads(json.dumps({"layers": self.layers, **settings}))

    def _layer(self, stage: int) -> int:
        return self.layers[stage - 1]

    def _maps(
        self, hidden_states: Sequence[torch.Tensor], size: Sequence[int], stages: Sequence[int]
    ) -> list[torch.Tensor]:
        """Select the hidden states of some stages, as maps (B, C, h, w)."""
        states = [hidden_states[self._layer(stage)] for stage in stages]
        return [state if state.ndim == 4 else _map_of_patches(state, size, self.model) for state in states]

    def _stages_with_embeddings(self) -> Mapping[str, Sequence[int]]:
        hidden_states: dict[str, Sequence[int]] = {"backbone": range(1, len(self.layers) + 1)}
        if self.projection_head is None:
            return hidden_states
        return {"projection": self.objective.projection_stages, **hidden_states}

    def _maps_to_embed(self, pixel_values: torch.Tensor, features: str) -> Sequence[torch.Tensor]:
        output = self.model(pixel_values=pixel_values, output_hidden_states=True, return_dict=True)
        stages = self._stages_with_embeddings()[features]
        maps = self._maps(output.hidden_states, pixel_values.shape[-2:], stages)
        return self.projection_head(maps) if features == "projection" else maps


def _default_settings() -> dict[str, Any]:
    return {each.name: each.default for each in fields(MsctrConfig) if each.name.startswith(_SETTING_PREFIXES)}


def _part(state_dict: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Select the weights of a submodule, under their names in it."""
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def _saved_head(model: PreTrainedModel) -> str | None:
    """Find the file of the projection head where a model was loaded from, without which there is `None`."""
    if not getattr(model, "name_or_path", None):  # other networks than those of transformers have no name
        return None
    return cached_file(
        model.name_or_path,
        HEADS_FILE,
        revision=getattr(model.config, "_commit_hash", None),
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def _checkpoint_of_the_trainer() -> Path | None:
    """Return the checkpoint that the Trainer of transformers is loading, or `None` if it is not loading one.

    The Trainer reads the file of the model itself and calls `load_state_dict` with the weights alone. It tells a model
    nowhere which folder they are from, so the file next to it can only be found through the calling functions.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "transformers.trainer":
            if frame.f_code.co_name == "_load_from_checkpoint":
                return Path(frame.f_locals["resume_from_checkpoint"])
            if frame.f_code.co_name == "_load_best_model":
                return Path(frame.f_locals["self"].state.best_model_checkpoint)
        frame = frame.f_back
    return None


def _refuse_other_models(model: Any) -> None:
    """Refuse what is not a semantic segmentation model of transformers for RGB images.

    Raises:
        ValueError: If it cannot be adapted.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT wraps models of transformers
    if isinstance(inner, ContrastiveAdapter) or isinstance(getattr(inner, "config", None), MsctrConfig):
        raise _not_adapted(model, "it has the contrastive objective built in, so it is trained as it is")
    if any(each.__module__.partition(".")[0] == "peft" for each in type(model).__mro__):
        raise ValueError(
            f"{type(model).__name__} cannot be adapted, since PEFT saves it in a form from which no training resumes: "
            "wrap the adapter by PEFT instead, `get_peft_model(ContrastiveAdapter(model), ...)`, or merge the weights "
            "first, `ContrastiveAdapter(model.merge_and_unload())`."
        )
    if not isinstance(model, PreTrainedModel):
        raise _not_adapted(model, "it is not a model of transformers")
    for name in ("pixel_values", "labels"):
        if name not in inspect.signature(model.forward).parameters:
            raise _not_adapted(model, f"its `forward` has no argument `{name}`")
    for part in (model.config, getattr(model.config, "backbone_config", None)):
        channels = getattr(part, "num_channels", None)
        if channels not in (None, 3):
            raise _not_adapted(model, f"it reads images of {channels} channel(s), which are not RGB")


def _not_adapted(model: Any, reason: str) -> ValueError:
    return ValueError(
        f"{type(model).__name__} cannot be adapted: {reason}; `ContrastiveAdapter` takes semantic segmentation models "
        "of transformers for RGB images, such as SegFormer, UPerNet, DPT, BEiT and MobileViT, and any other network "
        "can be trained with `MultiScaleContrastiveLoss`."
    )


def _hidden_states_of_blank_image(model: PreTrainedModel, size: tuple[int, int]) -> Sequence[torch.Tensor]:
    """Run a blank image to find the shapes of the hidden states; normalization statistics do not change."""
    parameter = next(model.parameters())
    image = torch.zeros((1, 3, *size), device=parameter.device, dtype=parameter.dtype)
    with _evaluation_mode(model), torch.no_grad():
        try:
            output = model(pixel_values=image, output_hidden_states=True, return_dict=True)
        except (TypeError, ValueError) as error:  # a prompt is missing, for example
            brief = (str(error).splitlines() or [type(error).__name__])[0]
            raise _not_adapted(model, f"it does not run on an image of {size} pixels alone ({brief})") from error
    logits, num_labels = getattr(output, "logits", None), model.config.num_labels
    if logits is None or logits.ndim != 4 or logits.shape[1] != num_labels:
        raise _not_adapted(model, f"it returns no logits of {num_labels} classes for every pixel")
    hidden_states = getattr(output, "hidden_states", None) or ()
    if not hidden_states or any(state.ndim not in (3, 4) for state in hidden_states):
        raise _not_adapted(model, "it returns no hidden states that are maps or tokens")
    return hidden_states


@contextmanager
def _evaluation_mode(model: nn.Module):
    """Run a block in evaluation mode, then restore the mode of every module, since some may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _default_layers(shapes: Sequence[torch.Size]) -> list[int]:
    last_of_resolution = {tuple(shape[2:]) if len(shape) == 4 else (shape[1],): i for i, shape in enumerate(shapes)}
    dimensions = {len(shape) for shape in shapes}
    if dimensions != {4} and (len(dimensions) > 1 or len(last_of_resolution) == 1):
        last = len(shapes) - 1  # position 0 holds the embeddings
        return sorted({max(1, last * quarter // MAX_STAGES) for quarter in range(1, MAX_STAGES + 1)})
    finest_first = sorted(last_of_resolution.items(), key=lambda entry: entry[0], reverse=True)
    return [layer for _, layer in finest_first[-MAX_STAGES:]]


def _map_of_patches(tokens: torch.Tensor, size: Sequence[int], model: PreTrainedModel) -> torch.Tensor:
    """Arrange tokens as a map, (B, tokens, C) -> (B, C, h, w), without the leading class and register tokens."""
    height, width = _grid(tokens.shape[1], size, model)
    return tokens[:, tokens.shape[1] - height * width :].transpose(1, 2).unflatten(2, (height, width))


def _grid(num_tokens: int, size: Sequence[int], model: PreTrainedModel) -> tuple[int, int]:
    """Find the height and width of a map of tokens, of which hierarchical transformers merge 2 x 2 between stages.

    Raises:
        ValueError: If there is no such map.
    """
    patch_size = _patch_size(model.config)
    if patch_size is None:
        raise _not_adapted(model, "its hidden states are tokens, and its configuration has no `patch_size`")
    patch = _pair(patch_size)
    merged_height, merged_width = (-(-side // length) for side, length in zip(size, patch, strict=True))
    while merged_height * merged_width > max(num_tokens, 1):
        merged_height, merged_width = -(-merged_height // 2), -(-merged_width // 2)
    if merged_height * merged_width == num_tokens:
        return merged_height, merged_width
    height, width = (side // length for side, length in zip(size, patch, strict=True))
    if num_tokens < height * width:
        raise _not_adapted(model, f"its {num_tokens} tokens of an image of {tuple(size)} pixels are not a map")
    return height, width


def _image_size(config: Any) -> tuple[int, int]:
    for part in (config, getattr(config, "backbone_config", None)):
        if getattr(part, "image_size", None):
            return _pair(part.image_size)
    return _pair(_DEFAULT_IMAGE_SIZE)


def _patch_size(config: Any) -> Any:
    backbone_config = getattr(config, "backbone_config", None)
    return getattr(backbone_config, "patch_size", None) or getattr(config, "patch_size", None)


def _ignore_index(config: Any) -> int:
    """Return the label that the model's own loss ignores, so that the contrast ignores it too."""
    return next((getattr(config, name) for name in IGNORE_INDEX_SETTINGS if hasattr(config, name)), 255)


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
