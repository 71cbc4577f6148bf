"""Conversion of checkpoints of the paper's released code to networks of `msctr_hf`, by renaming their entries."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..errors import UsageError, building_a_network
from ..models.configuration_msctr import MsctrConfig
from ..models.modeling_msctr import MsctrForSemanticSegmentation

# (pattern, replacement) of released names, of which the first that matches is used.
_PROJECTION_NAMES = [
    (r"projector_model\.project(\d+)\.3\.", r"projection_head.stages.\1.output."),
    (r"projector_model\.project(\d+)\.(\d)\.", r"projection_head.stages.\1.hidden.\2."),
]
_OCR = "spatial_ocr_head.object_context_block"
_HEAD_NAMES = {
    "fcn": [
        (r"cls_head\.0\.", "decode_head.conv."),
        (r"cls_head\.1\.", "decode_head.batch_norm."),
        (r"cls_head\.2\.", "decode_head.classifier."),
    ],
    "deeplabv3": [
        (r"aspp\.aspp5\.", "decode_head.image_pooling.0."),
        (r"aspp\.aspp5_bn\.", "decode_head.image_pooling.1."),
        *((rf"aspp\.aspp{n}\.", f"decode_head.branches.{n - 1}.0.") for n in (1, 2, 3, 4)),
        *((rf"aspp\.aspp{n}_bn\.", f"decode_head.branches.{n - 1}.1.") for n in (1, 2, 3, 4)),
        (r"aspp\.conv2\.", "decode_head.fuse.0."),
        (r"aspp\.bn2\.", "decode_head.fuse.1."),
        (r"conv_out\.", "decode_head.classifier."),
    ],
    "ocr": [
        (r"conv_high_map\.(\d)\.", r"decode_head.conv.\1."),
        (r"interm_prediction_head\.4\.", "auxiliary_head.classifier."),
        (r"interm_prediction_head\.(\d)\.", r"auxiliary_head.conv.\1."),
        *(
            (
                rf"{re.escape(_OCR)}\.{released}\.{3 * block + layer}\.",
                f"decode_head.object_attention.{part}.{block}.{layer}.",
            )
            for released, part in (("f_pixel", "query"), ("f_object", "key"))
            for block in (0, 1)
            for layer in (0, 1)
        ),
        (rf"{re.escape(_OCR)}\.f_down\.(\d)\.", r"decode_head.object_attention.value.\1."),
        (rf"{re.escape(_OCR)}\.f_up\.(\d)\.", r"decode_head.object_attention.out.\1."),
        (r"spatial_ocr_head\.conv_bn_dropout\.(\d)\.", r"decode_head.fuse.\1."),
        (r"conv_out\.", "decode_head.classifier."),
    ],
    "upernet": [
        (r"fpn\.ppm_conv\.(\d)\.(\d)\.", r"decode_head.pyramid_pooling.\1.\2."),
        (r"fpn\.ppm_last_conv\.(\d)\.", r"decode_head.pyramid_pooling_fuse.\1."),
        (r"fpn\.fpn_in\.(\d)\.(\d)\.", r"decode_head.laterals.\1.\2."),
        (r"fpn\.fpn_out\.(\d)\.0\.(\d)\.", r"decode_head.outputs.\1.\2."),
        (r"fpn\.conv_last\.0\.(\d)\.", r"decode_head.fuse.\1."),
        (r"fpn\.conv_last\.2\.", "decode_head.classifier."),
        (r"aux_head\.4\.", "auxiliary_head.classifier."),
        (r"aux_head\.(\d)\.", r"auxiliary_head.conv.\1."),
    ],
}
# Names of Swin in saved files of transformers, which differ from the names of its modules.
_SWIN_BLOCK = r"backbone\.layers\.(\d+)\.blocks\.(\d+)\."
_SWIN_BLOCK_SAVED = r"backbone.encoder.layers.\1.blocks.\2."
_SWIN_NAMES = [
    (r"backbone\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"backbone\.patch_embed\.norm\.", "backbone.embeddings.norm."),
    (rf"{_SWIN_BLOCK}norm1\.", rf"{_SWIN_BLOCK_SAVED}layernorm_before."),
    (rf"{_SWIN_BLOCK}norm2\.", rf"{_SWIN_BLOCK_SAVED}layernorm_after."),
    (rf"{_SWIN_BLOCK}attn\.proj\.", rf"{_SWIN_BLOCK_SAVED}attention.output.dense."),
    (rf"{_SWIN_BLOCK}attn\.", rf"{_SWIN_BLOCK_SAVED}attention.self."),
    (rf"{_SWIN_BLOCK}mlp\.fc1\.", rf"{_SWIN_BLOCK_SAVED}intermediate.dense."),
    (rf"{_SWIN_BLOCK}mlp\.fc2\.", rf"{_SWIN_BLOCK_SAVED}output.dense."),
    (r"backbone\.layers\.(\d+)\.downsample\.", r"backbone.encoder.layers.\1.downsample."),
    *((rf"backbone\.norm{stage}\.", f"backbone.hidden_states_norms.stage{stage + 1}.") for stage in range(4)),
]
_TIMM_NAMES = [(r"backbone\.", "backbone._backbone.")]
# Buffers that are not learned, and that the network computes from the window size.
_COMPUTED_BUFFERS = re.compile(r"relative_position_index$|attn_mask$")


def convert_original_checkpoint(
    state_dict: dict[str, torch.Tensor], config: MsctrConfig
) -> tuple[MsctrForSemanticSegmentation, dict[str, str]]:
    """Convert a state dict of the released code to a network.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Weights of the released code; names may begin with `module.`.
        config (`MsctrConfig`): Configuration of the same network, with an HRNet, ResNet or Swin backbone.

    Returns:
        `tuple`: the network, and a dict from released names to names in a saved folder of `msctr_hf`.

    Raises:
        UsageError: If a name is left over on either side, a shape differs, or the configuration is not valid.
    """
    state, names = rename_original_state(state_dict, config)
    with tempfile.TemporaryDirectory() as folder, building_a_network():
        config.save_pretrained(folder)
        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        model, info = MsctrForSemanticSegmentation.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True
        )
    released = {new: old for old, new in names.items()}
    missing = sorted(info["missing_keys"])
    unexpected = sorted(released.get(key, key) for key in info["unexpected_keys"])
    misshapen = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    for what, keys in (
        ("has entries that the network does not have", unexpected),
        ("lacks entries that the network needs", missing),
        ("has entries of other shapes than the network", misshapen),
    ):
        if keys:
            raise UsageError(
                f"The checkpoint {what}: {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''} ({len(keys)} in all)."
                " Is this the `config` with which it was trained?"
            )
    return model, names


def rename_original_state(
    state_dict: dict[str, torch.Tensor], config: MsctrConfig
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Rename the entries of a released state dict to their names in a saved folder of `msctr_hf`.

    The arguments and the returned names are those of `convert_original_checkpoint`.

    Raises:
        UsageError: If an entry does not belong to the network, or the released code does not have its decode head.
    """
    if config.decode_head not in _HEAD_NAMES:
        raise UsageError(
            f"`config`: the released code has the decode heads {', '.join(_HEAD_NAMES)}; none of its checkpoints fits "
            f"a network with `decode_head={config.decode_head!r}`."
        )
    backbone_names = _SWIN_NAMES if config.backbone_config.model_type == "swin" else _TIMM_NAMES
    rules = [*_PROJECTION_NAMES, *_HEAD_NAMES[config.decode_head], *backbone_names]
    without_projections = config.contrastive_mode == "ce"
    state: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}
    leftover = []
    for original, value in state_dict.items():
        name = original.removeprefix("module.")
        if _COMPUTED_BUFFERS.search(name) or (without_projections and name.startswith("projector_model.")):
            continue
        renamed = _rename(name, rules)
        if renamed is None:
            leftover.append(original)
            continue
        names[original] = renamed
        state.update(_split_qkv(renamed, value.contiguous()))
    if leftover:
        raise UsageError(
            f"{len(leftover)} entries of the checkpoint do not belong to a network with `decode_head="
            f"{config.decode_head!r}`: {', '.join(leftover[:6])}{', ...' if len(leftover) > 6 else ''}."
        )
    return state, names


def _rename(name: str, rules: list[tuple[str, str]]) -> str | None:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return None


def _split_qkv(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Split weights of Swin's attention, which the released code stacks, into query, key and value."""
    if ".self.qkv." not in name:
        return {name: value}
    parts = value.chunk(3)
    return {
        name.replace(".qkv.", f".{part}."): tensor.contiguous()
        for part, tensor in zip(("query", "key", "value"), parts, strict=True)
    }
