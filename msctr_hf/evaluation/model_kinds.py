"""Refusal, by name, of models of transformers that do not predict a class for every pixel."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
)

from ..errors import UsageError

_UNIVERSAL = {*MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES, *MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES}
_REMEDY = "use a semantic segmentation model of transformers, such as SegFormer, UPerNet, DPT or BEiT"


def refuse_universal(config: Any, name: str) -> None:
    """Refuse universal models, which predict masks.

    Args:
        config: Configuration of any model.
        name (`str`): Start of the sentence: what is refused.

    Raises:
        UsageError: If it is the configuration of a universal model, such as Mask2Former.
    """
    kind = getattr(config, "model_type", None)
    if kind in _UNIVERSAL:
        raise UsageError(
            f"{name} is a universal model ({kind}), which predicts masks instead of a class for every pixel; "
            f"{_REMEDY}."
        )


def refuse_other_kinds(config: Any, name: str) -> None:
    """Refuse models that `AutoModelForSemanticSegmentation` does not load.

    Args:
        config: Configuration of a saved model.
        name (`str`): Start of the sentence: what is refused.

    Raises:
        UsageError: If it is not the configuration of a semantic segmentation model.
    """
    refuse_universal(config, name)
    has_code = "AutoModelForSemanticSegmentation" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING and not has_code:
        raise UsageError(f"{name} is not a semantic segmentation model ({config.model_type}); {_REMEDY}.")
