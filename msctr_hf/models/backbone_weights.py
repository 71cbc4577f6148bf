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
"""Pretrained weights for a backbone, loaded after the network is built (its construction would overwrite them)."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import tempfile
import textwrap
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv
from torch import nn

from .modeling_msctr import MsctrForSemanticSegmentation

HUB, NONE = "hub", "none"
_ADVICE = (
    f"use `backbone_weights='FILE'` (a local .safetensors or .pth), or `backbone_weights='{NONE}'` for random weights"
)
_MAX_NAMES_SHOWN = 4
_RGB_CHANNELS = 3
_MAX_REASON_LENGTH = 300


def load_backbone_weights(model: MsctrForSemanticSegmentation, weights: str, hub_id: str | None = None) -> None:
    """Load weights and normalization statistics into the backbone of a network.

    If it does not read three channels, the first convolution of weights for RGB is adapted as timm does: its channels
    are repeated and scaled, or summed for one channel.

    Args:
        model (`MsctrForSemanticSegmentation`): Network whose backbone is overwritten.
        weights (`str`): `"hub"`, `"none"`, or a local timm or transformers state dict (.safetensors, .pth), of which
            only layers of a classifier above the backbone may remain unused.
        hub_id (`str`, *optional*): Hub id of the weights of a transformers backbone; ignored for timm backbones.

    Raises:
        ValueError: If the weights cannot be loaded or do not fit.
    """
    if weights == NONE:
        return
    is_timm = model.config.backbone_config.model_type == "timm_backbone"
    if weights == HUB:
        (_load_timm_from_hub if is_timm else _load_transformers_from_hub)(model, hub_id)
    elif not Path(weights).exists():
        raise ValueError(f"`backbone_weights`: the file {weights} does not exist; {_ADVICE}.")
    else:
        (_load_timm_file if is_timm else _load_transformers_file)(model, Path(weights))


def _load_timm_from_hub(model: MsctrForSemanticSegmentation, hub_id: str | None) -> None:
    name = model.config.backbone_config.backbone
    try:
        state = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # timm, the Hub and the network raise many kinds of exceptions
        reason = _brief(error)
        raise ValueError(f"The weights of {name} cannot be loaded from the Hub ({reason}); {_ADVICE}.") from error
    _copy_timm_state(model, state, name)


def _load_timm_file(model: MsctrForSemanticSegmentation, path: Path) -> None:
    _copy_timm_state(model, read_state_dict(path), str(path))


def _copy_timm_state(model: MsctrForSemanticSegmentation, state: dict[str, torch.Tensor], source: str) -> None:
    """Copy weights by name; timm's feature extractors write `stages_0` where its classifiers write `stages.0`."""
    name = model.config.backbone_config.backbone
    network = getattr(model.backbone._backbone, "model", model.backbone._backbone)  # timm wraps plain transformers
    given = {_plain(key): value for key, value in state.items()}
    wanted = {_plain(key): value for key, value in network.state_dict(keep_vars=True).items()}
    _adapt_first_convolutions(given, wanted)
    counters = {key for key in wanted if key.endswith("num.batches.tracked")}
    missing = sorted(set(wanted) - set(given) - counters)
    misshapen = sorted(key for key in wanted if key in given and given[key].shape != wanted[key].shape)
    classifier = {_plain(key) for key in timm.create_model(name).state_dict()}
    unexpected = sorted(set(given) - set(wanted) - classifier)
    _check_fit(source, name, missing, misshapen, unexpected)
    with torch.no_grad():
        for key, value in wanted.items():
            if key in given:
                value.copy_(given[key])


def _adapt_first_convolutions(given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Adapt, in place, the weights of convolutions that read RGB where the network reads other channels."""
    for key in wanted.keys() & given.keys():
        value, shape = given[key], wanted[key].shape
        if len(shape) == 4 and value.shape == (shape[0], _RGB_CHANNELS, *shape[2:]) and value.shape != shape:
            given[key] = adapt_input_conv(shape[1], value)


def _plain(key: str) -> str:
    return key.removeprefix("module.").replace("_", ".")


def _load_transformers_from_hub(model: MsctrForSemanticSegmentation, hub_id: str | None) -> None:
    if not hub_id or "/" not in hub_id:
        raise ValueError(f"`backbone` must be a Hub id like microsoft/swin-..., got {hub_id!r}; or {_ADVICE}.")
    _copy_transformers_backbone(model, hub_id, hub_id)


def _load_transformers_file(model: MsctrForSemanticSegmentation, path: Path) -> None:
    if path.is_dir():
        return _copy_transformers_backbone(model, str(path), str(path))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        if path.suffix == ".safetensors":
            read_state_dict(path)  # only for its error message: transformers does not name a corrupt file
            shutil.copyfile(path, weights)
        else:
            save_file({key: value.contiguous() for key, value in read_state_dict(path).items()}, weights)
        (Path(folder) / "config.json").write_text(
            json.dumps(model.config.backbone_config.to_dict(), default=str), encoding="utf-8"
        )
        _copy_transformers_backbone(model, folder, str(path))


def _copy_transformers_backbone(model: MsctrForSemanticSegmentation, folder: str, source: str) -> None:
    """Load weights with transformers, which maps their names, and copy them into the backbone.

    The norms of stages may be missing, since only backbones have them; layers above the backbone may remain unused.
    """
    config = model.config.backbone_config
    for num_channels in dict.fromkeys((getattr(config, "num_channels", _RGB_CHANNELS), _RGB_CHANNELS)):
        config = copy.deepcopy(config)
        config.num_channels = num_channels
        try:
            backbone, info = type(model.backbone).from_pretrained(  # type: ignore[attr-defined]
                folder, config=config, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
            )
        except Exception as error:
            raise ValueError(f"The weights {source} cannot be loaded ({_brief(error)}); {_ADVICE}.") from error
        if not info["mismatched_keys"]:
            break
    missing = sorted(key for key in info["missing_keys"] if "hidden_states_norms" not in key)
    misshapen = sorted(key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"])
    above = ("classifier", "head", "pooler", "layernorm", "swin.layernorm", "norm", "decoder")
    unexpected = sorted(key for key in info["unexpected_keys"] if not key.startswith(above))
    _check_fit(source, config.model_type, missing, misshapen, unexpected)
    wanted, given = model.backbone.state_dict(), backbone.state_dict()
    _adapt_first_convolutions(given, wanted)
    model.backbone.load_state_dict({key: value for key, value in given.items() if key in wanted})


def _check_fit(source: str, network: str, missing: list[str], misshapen: list[str], unexpected: list[str]) -> None:
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:_MAX_NAMES_SHOWN])}{', ...' if len(keys) > _MAX_NAMES_SHOWN else ''})"
        for what, keys in (("missing", missing), ("of another shape", misshapen), ("unknown", unexpected))
        if keys
    ]
    if problems:
        raise ValueError(f"{source} does not fit the backbone {network}: {'; '.join(problems)}; {_ADVICE}.")


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict from .safetensors or, without running code from it, from a .pth or .pt file.

    Raises:
        ValueError: If the file does not exist or does not contain tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _unwrap(torch.load(path, weights_only=True))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} contains more than tensors, or is corrupt; none of its code was run. Save a state dict as "
            "safetensors."
        ) from error
    except Exception as error:  # corrupt files and pickles of other objects raise many kinds of exceptions
        raise ValueError(f"{path} is not a readable state dict ({_brief(error)}).") from error
    return state


def _unwrap(checkpoint: object) -> dict[str, torch.Tensor]:
    """Extract the state dict, which a checkpoint stores directly or under one of the usual keys."""
    if isinstance(checkpoint, dict):
        for key in ("model_state_dict", "state_dict", "model"):
            checkpoint = checkpoint.get(key, checkpoint) if isinstance(checkpoint, dict) else checkpoint
    if isinstance(checkpoint, nn.Module) or not isinstance(checkpoint, dict):
        raise ValueError("it does not contain a dictionary of tensors")
    return checkpoint


def _brief(error: Exception) -> str:
    """Return the first line of a message, cut between words if it is very long, or the name of the exception."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0], _MAX_REASON_LENGTH, placeholder=" ...") if lines else type(error).__name__
