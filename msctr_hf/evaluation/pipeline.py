"""Pipeline of transformers with sliding windows, scales, mirror images and overlays."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence, Sized
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from ..data.channels import Channels
from ..data.images import array_to_rgb, read_image, read_image_file, to_channels, to_rgb
from ..data.pixel_limit import set_max_image_pixels
from ..errors import UsageError, as_usage_error
from .embedding_maps import Embedder
from .finite import refuse_faulty_weights
from .predictor import Predictor
from .settings import InferenceSettings
from .visualization import overlay

TASK = "msctr-segmentation"
_INFERENCE = ("scales", "flip", "window_size", "window_stride")
_EMBEDDINGS = ("return_embeddings", "features", "stage")
_OVERLAY = ("opacity", "legend")
_LONGEST_PATH = 4096  # longer text is an image in base64
_READING = ("max_image_pixels",)
_ANSWER_TIMEOUT = 60.0  # seconds without an answer of a server
_KEPT_IN_URLS = "%/:?@!$&'()*+,;=~"  # besides letters and digits: what has a meaning there, or is quoted already


class SegmentationPipeline(Pipeline):
    """Pipeline that labels images of any size with any semantic segmentation model.

    ```python
    segment = pipeline("msctr-segmentation", model="runs/hrnet", scales=(0.75, 1, 1.25), flip=True)
    result = segment("street.jpg", window_size=(512, 1024), legend=True)
    result["overlay"].show()
    ```

    Settings of the pipeline or of a call: `scales`, `flip`, `window_size` and `window_stride` as in
    `InferenceSettings`; `return_embeddings`, whether to return embeddings of the pixels too, with `features` and
    `stage` as in `MsctrForSemanticSegmentation.embed`; `opacity` of the colors; `legend`, whether the overlay has a
    legend; `max_image_pixels`, the width times height of the largest image that is read, in this process from then on
    (178,956,970 by default); `batch_size`, the number of images, or windows, in one forward pass: consecutive images
    of one size share a pass.

    A call takes an image: a path, a URL, text in base64, a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4) of 8
    or 16 bits; for a network of other channels, a file or an array (H, W, C) of them. It returns a dict: `labels`
    (H, W), uint8 or, with more than 256 classes, int64; `areas`, the share of the image that every present class
    covers; `overlay`, a PIL image; and, on request, `embeddings` (D, h, w), unit vectors in float32, of the image at
    scale 1 and not mirrored, whole or by windows as in `Embedder`. A sequence of images, or an array (N, H, W, C),
    returns a list of dicts; a generator or a `Dataset` of torch, an iterator that reads a batch at a time.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self._predictor = Predictor(self.model, self.image_processor)
        refuse_faulty_weights(self.model)

    def _sanitize_parameters(self, **settings: Any) -> tuple[dict, dict, dict]:
        known = (*_INFERENCE, *_EMBEDDINGS, *_OVERLAY, *_READING)
        if unknown := sorted(set(settings) - {*known}):
            raise UsageError(f"`{unknown[0]}` is not a setting of this pipeline; choose from {', '.join(known)}.")
        reading, inference, overlay_settings = (
            {name: settings[name] for name in names if name in settings}
            for names in (_READING, (*_INFERENCE, *_EMBEDDINGS), _OVERLAY)
        )
        return reading, inference, overlay_settings

    def __call__(self, inputs: Any, *args: Any, **settings: Any) -> Any:
        """Label an image, or every image of a sequence, an array (N, H, W, 3), an iterator or a `Dataset`."""
        if isinstance(inputs, Dataset):
            return super().__call__(inputs, *args, **settings)
        if isinstance(inputs, Iterator):
            return super().__call__((image for image in inputs), *args, **settings)
        if _is_batch(inputs):
            # as a `Dataset`, since transformers takes only lists for several inputs, and no empty ones
            return list(super().__call__(Subset(inputs, range(len(inputs))), *args, **settings))
        return self([inputs], *args, **settings)[0]

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """Yield the dict of every image; a batch is a list of images, where transformers would pad tensors."""
        given = {name: value for name, value in forward_params.items() if name in _INFERENCE}
        predictor = replace(
            self._predictor, model=self.model, settings=InferenceSettings(**given, batch_size=batch_size)
        )
        embedder = None
        if forward_params.get("return_embeddings"):
            which = {name: value for name, value in forward_params.items() if name in ("features", "stage")}
            embedder = Embedder(predictor, **which)
        has_length = isinstance(inputs, Sized)
        loader = DataLoader(
            (PipelineDataset if has_length else PipelineIterator)(inputs, self.preprocess, preprocess_params),
            batch_size=batch_size,
            num_workers=num_workers if has_length else min(num_workers, 1),  # every worker would yield all images
            collate_fn=list,
        )
        return (
            self.postprocess(outputs, **postprocess_params)
            for batch in loader
            for outputs in self.forward(batch, predictor=predictor, embedder=embedder)
        )

    def preprocess(self, inputs: Any, max_image_pixels: int | None = None) -> dict[str, Any]:
        """Load an image, upright, from an image, a path, a URL or text in base64."""
        if max_image_pixels is not None:
            set_max_image_pixels(max_image_pixels)
        return {"image": _load(inputs, self._predictor.channels)}

    def _forward(
        self, model_inputs: list[dict[str, Any]], predictor: Predictor, embedder: Embedder | None
    ) -> list[dict[str, Any]]:
        label_maps = predictor(inputs["image"] for inputs in model_inputs)
        outputs = [{**inputs, "labels": labels} for inputs, labels in zip(model_inputs, label_maps, strict=True)]
        if embedder is None:
            return outputs
        return [{**output, "embeddings": embedder(output["image"]).cpu().numpy()} for output in outputs]

    def postprocess(
        self, model_outputs: dict[str, Any], opacity: float = 0.55, legend: bool = False
    ) -> dict[str, Any]:
        """Build the dict that a call returns from the class map of an image."""
        image, labels = model_outputs["image"], model_outputs["labels"]
        names, palette = self._predictor.class_names, self._predictor.palette
        present, counts = np.unique(labels, return_counts=True)
        return {
            "labels": labels,
            "areas": {names[label]: float(count / labels.size) for label, count in zip(present, counts, strict=True)},
            "overlay": overlay(image, labels, palette, names if legend else None, opacity),
            **{name: model_outputs[name] for name in ("embeddings",) if name in model_outputs},
        }


def _is_batch(inputs: Any) -> bool:
    """Return whether an input is several images."""
    if isinstance(inputs, np.ndarray):
        return inputs.ndim == 4
    return isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes))


def _load(inputs: Any, channels: Channels | None) -> Image.Image | np.ndarray:
    """Load an image as `msctr predict` reads files, whatever it comes from."""
    if isinstance(inputs, Image.Image):
        return to_rgb(inputs) if channels is None else to_channels(inputs, channels)
    if isinstance(inputs, np.ndarray):
        return array_to_rgb(inputs) if channels is None else channels.check(inputs, "The array")
    if not isinstance(inputs, (str, Path)):
        raise UsageError(
            "An image must be a path, a URL, text in base64, a PIL image or an array of numpy, got "
            f"{type(inputs).__name__}."
        )
    text = str(inputs)
    if text.startswith(("http://", "https://")):
        return read_image_file({"path": text, "bytes": _download(text)}, channels)
    if len(text) <= _LONGEST_PATH and not text.startswith("data:image/"):
        return read_image(text, channels)
    with as_usage_error(ValueError, prefix="The text in base64 cannot be decoded: "):
        data = base64.b64decode(text.partition(",")[2] if text.startswith("data:image/") else text)
        return read_image_file({"path": "The text in base64", "bytes": data}, channels)


def _download(url: str) -> bytes:
    """Load a URL, which may have the letters and spaces that browsers accept.

    Raises:
        UsageError: If it cannot be loaded.
    """
    # ValueError: parts of a URL that cannot be
    with as_usage_error(OSError, HTTPException, ValueError, prefix=f"{url} cannot be loaded: "):
        parts = urlsplit(url)
        plain = parts._replace(
            netloc=parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode(),
            path=quote(parts.path, safe=_KEPT_IN_URLS),
            query=quote(parts.query, safe=_KEPT_IN_URLS),
            fragment="",  # which is not sent
        )
        # some servers refuse the name that urllib gives itself
        request = Request(plain.geturl(), headers={"User-Agent": "msctr_hf"})
        with urlopen(request, timeout=_ANSWER_TIMEOUT) as answer:
            return answer.read()
