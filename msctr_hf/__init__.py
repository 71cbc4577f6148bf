"""Multi-scale and cross-scale contrastive learning for semantic segmentation, at home in Hugging Face."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.pipelines import PIPELINE_REGISTRY

from .data.loading import load_segmentation_dataset
from .evaluation.inference import predict_probabilities
from .evaluation.mean_iou import MeanIoU
from .evaluation.pipeline import TASK, SegmentationPipeline
from .models.anchor_sampling import Anchors, sample_anchors
from .models.backbone_weights import load_backbone_weights
from .models.configuration_msctr import MsctrConfig
from .models.contrastive_adapter import ContrastiveAdapter
from .models.contrastive_loss import MultiScaleContrastiveLoss
from .models.image_processing_msctr import MsctrImageProcessor, MsctrImageProcessorPil
from .models.info_nce import info_nce_loss
from .models.modeling_msctr import MsctrForSemanticSegmentation, MsctrSegmenterOutput

__version__ = "0.1.0"

AutoConfig.register("msctr", MsctrConfig)
AutoModelForSemanticSegmentation.register(MsctrConfig, MsctrForSemanticSegmentation)
AutoImageProcessor.register(
    MsctrConfig, image_processor_classes={"torchvision": MsctrImageProcessor, "pil": MsctrImageProcessorPil}
)
PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=SegmentationPipeline, pt_model=AutoModelForSemanticSegmentation, type="image"
)

__all__ = [
    "Anchors",
    "ContrastiveAdapter",
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
]
