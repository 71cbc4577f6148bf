"""A pipeline of transformers with what the stock one lacks: sliding windows, scales, mirror images, overlays."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import Pipeline
from transformers.image_utils import load_image

from ..errors import UsageError
from .predictor import Predictor
from .settings import InferenceSettings
from .visualization import overlay

TASK = "msctr-segmentation"
_INFERENCE = ("scales", "flip", "window_size", "window_stride")
_OVERLAY = ("opacity", "legend")


class SegmentationPipeline(Pipeline):
    """Label images of any size with any semantic segmentation model.

    ```python
    segment = pipeline("msctr-segmentation", model="runs/hrnet", scales=(0.75, 1, 1.25), flip=True)
    result = segment("street.jpg", window_size=(512, 1024), legend=True)
    result["overlay"].show()
    ```

    Settings, here or in a call: `scales`, `flip`, `window_size`, `window_stride` as in `predict_probabilities`;
    `opacity` of the colors, `legend` below the overlay.

    A call takes a path, a URL, a PIL image, or a list of these, and gives for each a dict: `labels` (H, W), uint8
    or, with more than 256 classes, int64; `areas`, the share of the image of every class that occurs; `overlay`, a
    PIL image.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, **settings: Any) -> tuple[dict, dict, dict]:
        unknown = sorted(set(settings) - {*_INFERENCE, *_OVERLAY})
        if unknown:
            raise UsageError(f"`{unknown[0]}` is no setting of this pipeline: {', '.join((*_INFERENCE, *_OVERLAY))}.")
        inference = {name: settings[name] for name in _INFERENCE if name in settings}
        return {}, inference, {name: settings[name] for name in _OVERLAY if name in settings}

    def preprocess(self, inputs: Any) -> dict[str, Any]:
        """An image, its path or URL -> RGB image."""
        return {"image": load_image(inputs)}

    def _forward(self, model_inputs: dict[str, Any], **inference: Any) -> dict[str, Any]:
        predictor = Predictor(self.model, self.image_processor, InferenceSettings(**inference))
        return {**model_inputs, "labels": next(predictor([model_inputs["image"]]))}

    def postprocess(
        self, model_outputs: dict[str, Any], opacity: float = 0.55, legend: bool = False
    ) -> dict[str, Any]:
        """Class map -> result as described above."""
        image, labels = model_outputs["image"], model_outputs["labels"]
        predictor = Predictor(self.model, self.image_processor)
        names, palette = predictor.class_names, predictor.palette
        present, counts = np.unique(labels, return_counts=True)
        return {
            "labels": labels,
            "areas": {names[label]: float(count / labels.size) for label, count in zip(present, counts, strict=True)},
            "overlay": overlay(image, labels, palette, names if legend else None, opacity),
        }
