"""Pipeline of transformers with sliding windows, scales, mirror images and overlays."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image
from transformers import Pipeline

from ..data.images import read_image, read_image_file, to_rgb
from ..data.pixel_limit import set_max_image_pixels
from ..errors import UsageError, as_usage_error
from .finite import refuse_faulty_weights
from .predictor import Predictor
from .settings import InferenceSettings
from .visualization import overlay

TASK = "msctr-segmentation"
_INFERENCE = ("scales", "flip", "window_size", "window_stride")
_OVERLAY = ("opacity", "legend")
_LONGEST_PATH = 4096  # longer text is an image in base64
_READING = ("max_image_pixels",)


class SegmentationPipeline(Pipeline):
    """Pipeline that labels images of any size with any semantic segmentation model.

    ```python
    segment = pipeline("msctr-segmentation", model="runs/hrnet", scales=(0.75, 1, 1.25), flip=True)
    result = segment("street.jpg", window_size=(512, 1024), legend=True)
    result["overlay"].show()
    ```

    Settings of the pipeline or of a call: `scales`, `flip`, `window_size` and `window_stride` as in
    `InferenceSettings`; `opacity` of the colors; `legend`, whether the overlay has a legend; `max_image_pixels`, the
    width times height of the largest image that is read, in this process from then on (178,956,970 by default).

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
        known = (*_INFERENCE, *_OVERLAY, *_READING)
        if unknown := sorted(set(settings) - {*known}):
            raise UsageError(f"`{unknown[0]}` is not a setting of this pipeline; choose from {', '.join(known)}.")
        reading, inference, overlay_settings = (
            {name: settings[name] for name in names if name in settings} for names in (_READING, _INFERENCE, _OVERLAY)
        )
        return reading, inference, overlay_settings

    def preprocess(self, inputs: Any, max_image_pixels: int | None = None) -> dict[str, Any]:
        """Load an RGB image, upright, from an image, a path, a URL or text in base64."""
        if max_image_pixels is not None:
            set_max_image_pixels(max_image_pixels)
        return {"image": _load(inputs)}

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


def _load(inputs: Any) -> Image.Image:
    """Load an image as `msctr predict` reads files, whatever it comes from."""
    if isinstance(inputs, Image.Image):
        return to_rgb(inputs)
    if not isinstance(inputs, (str, Path)):
        raise UsageError(
            f"An image must be a path, a URL, a PIL image or text in base64, got {type(inputs).__name__}."
        )
    text = str(inputs)
    if text.startswith(("http://", "https://")):
        with as_usage_error(OSError, prefix=f"{text} cannot be loaded: "):
            # some servers refuse the name that urllib gives itself
            data = urlopen(Request(text, headers={"User-Agent": "msctr_hf"})).read()
        return read_image_file({"path": text, "bytes": data})
    if len(text) <= _LONGEST_PATH and not text.startswith("data:image/"):
        return read_image(text)
    with as_usage_error(ValueError, prefix="The text in base64 cannot be decoded: "):
        data = base64.b64decode(text.partition(",")[2] if text.startswith("data:image/") else text)
        return read_image_file({"path": "The text in base64", "bytes": data})
