"""Pipeline of transformers with sliding windows, scales, mirror images and overlays."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import Pipeline
from transformers.image_utils import load_image

from ..errors import UsageError
from .finite import refuse_faulty_weights
from .predictor import Predictor
from .settings import InferenceSettings
from .visualization import overlay

TASK = "msctr-segmentation"
_INFERENCE = ("scales", "flip", "window_size", "window_stride")
_OVERLAY = ("opacity", "legend")


class SegmentationPipeline(Pipeline):
    """Pipeline that labels images of any size with any semantic segmentation model.

    ```python
    segment = pipeline("msctr-segmentation", model="runs/hrnet", scales=(0.75, 1, 1.25), flip=True)
    result = segment("street.jpg", window_size=(512, 1024), legend=True)
    result["overlay"].show()
    ```

    Settings of the pipeline or of a call: `scales`, `flip`, `window_size` and `window_stride` as in
    `InferenceSettings`; `opacity` of the colors; `legend`, whether the overlay has a legend.

    A call takes a path, a URL, a PIL image, or a list of these, and returns a dict for each: `labels` (H, W), uint8
    or, with more than 256 classes, int64; `areas`, the share of the image that every present class covers; `overlay`,
    a PIL image.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        refuse_faulty_weights(self.model)

    def _sanitize_parameters(self, **settings: Any) -> tuple[dict, dict, dict]:
        unknown = sorted(set(settings) - {*_INFERENCE, *_OVERLAY})
        if unknown:
            raise UsageError(
                f"`{unknown[0]}` is not a setting of this pipeline; choose from {', '.join((*_INFERENCE, *_OVERLAY))}."
            )
        inference = {name: settings[name] for name in _INFERENCE if name in settings}
        return {}, inference, {name: settings[name] for name in _OVERLAY if name in settings}

    def preprocess(self, inputs: Any) -> dict[str, Any]:
        """Load an RGB image from an image, a path or a URL."""
        return {"image": load_image(inputs)}

    def _forward(self, model_inputs: dict[str, Any], **inference: Any) -> dict[str, Any]:
        predictor = Predictor(self.model, self.image_processor, InferenceSettings(**inference))
        return {**model_inputs, "labels": next(predictor([model_inputs["image"]]))}

    def postprocess(
        self, model_outputs: dict[str, Any], opacity: float = 0.55, legend: bool = False
    ) -> dict[str, Any]:
        """Build the dict that a call returns from the class map of an image."""
        image, labels = model_outputs["image"], model_outputs["labels"]
        predictor = Predictor(self.model, self.image_processor)
        names, palette = predictor.class_names, predictor.palette
        present, counts = np.unique(labels, return_counts=True)
        return {
            "labels": labels,
            "areas": {names[label]: float(count / labels.size) for label, count in zip(present, counts, strict=True)},
            "overlay": overlay(image, labels, palette, names if legend else None, opacity),
        }
