"""Multi-scale and cross-scale contrastive learning for semantic segmentation, in the Hugging Face ecosystem.

Importing the package registers the network with the Auto classes and the pipelines of transformers. Everything else is
imported at its first use, so that `datasets`, `evaluate` and others cost no time where they are not needed.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForInstanceSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .evaluation.pipeline import TASK, SegmentationPipeline
from .models.configuration_msctr import MsctrConfig
from .models.image_processing_msctr import MsctrImageProcessor, MsctrImageProcessorPil
from .models.modeling_msctr import MsctrForSemanticSegmentation, MsctrSegmenterOutput

if TYPE_CHECKING:
    from .commands.train import train
    from .data.loading import load_segmentation_dataset
    from .evaluation.inference import predict_probabilities
    from .evaluation.mean_iou import MeanIoU
    from .models.anchor_sampling import Anchors, sample_anchors
    from .models.backbone_weights import load_backbone_weights
    from .models.contrastive_adapter import ContrastiveAdapter
    from .models.contrastive_loss import MultiScaleContrastiveLoss
    from .models.info_nce import info_nce_loss
    from .training.trainer_callback import ContrastiveWeightCallback

__version__ = "0.1.0"

_LOADED_ON_DEMAND = {
    "Anchors": "models.anchor_sampling",
    "ContrastiveAdapter": "models.contrastive_adapter",
    "ContrastiveWeightCallback": "training.trainer_callback",
    "MeanIoU": "evaluation.mean_iou",
    "MultiScaleContrastiveLoss": "models.contrastive_loss",
    "info_nce_loss": "models.info_nce",
    "load_backbone_weights": "models.backbone_weights",
    "load_segmentation_dataset": "data.loading",
    "predict_probabilities": "evaluation.inference",
    "sample_anchors": "models.anchor_sampling",
    "train": "commands.train",
}

AutoConfig.register("msctr", MsctrConfig)
AutoModelForSemanticSegmentation.register(MsctrConfig, MsctrForSemanticSegmentation)
AutoImageProcessor.register(
    MsctrConfig, image_processor_classes={"torchvision": MsctrImageProcessor, "pil": MsctrImageProcessorPil}
)
# The pipeline refuses universal models by name; if they were not loaded, transformers would print its own traceback.
_LOADED_BY_PIPELINE = (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    AutoModelForInstanceSegmentation,
)
PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=SegmentationPipeline, pt_model=_LOADED_BY_PIPELINE, type="image"
)


def __getattr__(name: str) -> Any:
    if name not in _LOADED_ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LOADED_ON_DEMAND[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LOADED_ON_DEMAND})


__all__ = [
    "Anchors",
    "ContrastiveAdapter",
    "ContrastiveWeightCallback",
    "MeanIoU",
    "MsctrConfig",
    "MsctrForSemanticSegmentation",
    "MsctrImageProcessor",
    "MsctrImageProcessorPil",
    "MsctrSegmenterOutput",
    "MultiScaleContrastiveLoss",
    "SegmentationPipeline",
    "info_nce_loss",
    "load_backbone_weights",
    "load_segmentation_dataset",
    "predict_probabilities",
    "sample_anchors",
    "train",
]
