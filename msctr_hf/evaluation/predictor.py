"""Network with its image processor, for images of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from ..data.classes import default_palette
from ..errors import UsageError, building_a_network, first_line, warn_caller
from ..models.image_processing_msctr import MsctrImageProcessor, MsctrImageProcessorPil
from .finite import refuse_faulty_weights
from .inference import predict_label_maps
from .precision import has_bf16
from .settings import InferenceSettings, Size

PREPARED_ROWS = 1024  # rows of an image that are normalized at a time


@dataclass
class Predictor:
    """Network with its image processor, which labels images of any size.

    Args:
        model (`PreTrainedModel`): Any semantic segmentation model of transformers.
        image_processor: Image processor, used without padding: the inference functions add and remove it.
        settings (`InferenceSettings`): Scales, mirror images, windows, batch size.
        train_ids (`Sequence[int]`, *optional*): Train id of every class of the network, for a data set whose classes
            have another order; by default, the classes of the network are the train ids.
    """

    model: Any
    image_processor: Any
    settings: InferenceSettings = InferenceSettings()
    train_ids: Sequence[int] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the train ids; LABEL_0, ... if the network does not name them all."""
        return self._by_train_id(self._names)

    @property
    def _names(self) -> list[str]:
        config = self.model.config
        names, labels = config.id2label or {}, range(config.num_labels)
        is_complete = set(labels) <= set(names)
        return [names[label] if is_complete else f"LABEL_{label}" for label in labels]

    @property
    def palette(self) -> list:
        """RGB colors of the classes, from the configuration; for those it does not give, as `default_palette`."""
        given = list(getattr(self.model.config, "palette", None) or [])
        return self._by_train_id([*given, *default_palette(self._names)[len(given) :]])

    def _by_train_id(self, values: list) -> list:
        """Sort values of the classes of the network by train id."""
        return values if self.train_ids is None else [values[label] for label in np.argsort(self.train_ids)]

    def __call__(self, images: Iterable[Image.Image]) -> Iterator[np.ndarray]:
        """Yield the class map (H, W) of every RGB image at its size, uint8, or int64 with more than 256 classes.

        Consecutive images that the image processor resizes to one size share a batch of at most `settings.batch_size`
        images. At most one image more than a batch is read ahead.
        """
        settings = replace(
            self.settings,
            size_divisor=getattr(self.image_processor, "size_divisor", None) or 1,
            padding_mode=getattr(self.image_processor, "padding_mode", "constant"),
        )
        batch: list[tuple[torch.Tensor, Size]] = []
        for image in images:
            prepared = self.prepare([image])
            if batch and batch[0][0].shape != prepared.shape:
                yield from self._label(batch, settings)
            batch.append((prepared, (image.height, image.width)))
            del image, prepared  # a large image takes gigabytes, and must be freed before the next is read
            if len(batch) == self.settings.batch_size:
                yield from self._label(batch, settings)
        yield from self._label(batch, settings)

    def _label(self, batch: list[tuple[torch.Tensor, Size]], settings: InferenceSettings) -> list[np.ndarray]:
        """Label prepared images of one size, and empty the list."""
        if not batch:
            return []
        tensors, sizes = zip(*batch, strict=True)
        batch.clear()
        pixel_values = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        maps = predict_label_maps(self.model, pixel_values, settings, sizes)
        return [self._as_train_ids(labels.cpu().numpy()) for labels in maps]

    def _as_train_ids(self, labels: np.ndarray) -> np.ndarray:
        return labels if self.train_ids is None else np.array(self.train_ids, dtype=labels.dtype)[labels]

    def prepare(self, images: list[Image.Image]) -> torch.Tensor:
        """Resize and normalize RGB images of one size to a batch (B, 3, H, W), without padding."""
        if not self._resizes:
            size = (len(images), 3, images[0].height, images[0].width)
            if size[2] > PREPARED_ROWS:
                return self._prepare_in_strips(images, size)
        return self._prepare(images)

    @property
    def _resizes(self) -> bool:
        ours = isinstance(self.image_processor, (MsctrImageProcessor, MsctrImageProcessorPil))
        return not ours or bool(self.image_processor.do_resize)

    def _prepare_in_strips(self, images: list[Image.Image], size: Sequence[int]) -> torch.Tensor:
        """Prepare some rows at a time, since the image processor makes several copies of what it is given."""
        pixel_values = torch.empty(*size, device=next(self.model.parameters()).device)
        for top in range(0, size[2], PREPARED_ROWS):
            bottom = min(top + PREPARED_ROWS, size[2])
            strips = [image.crop((0, top, size[3], bottom)) for image in images]
            pixel_values[:, :, top:bottom] = self._prepare(strips)
        return pixel_values

    def _prepare(self, images: list[Image.Image]) -> torch.Tensor:
        unpadded = {} if getattr(self.image_processor, "size_divisor", None) is None else {"size_divisor": 1}
        prepared = self.image_processor(images=images, return_tensors="pt", **unpadded)
        return prepared["pixel_values"].to(next(self.model.parameters()).device)


def load_predictor(
    model: str,
    settings: InferenceSettings | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str = "float32",
) -> Predictor:
    """Load any `AutoModelForSemanticSegmentation` with its image processor, in evaluation mode.

    Args:
        model (`str`): Saved folder or Hub id.
        settings (`InferenceSettings`, *optional*): Scales, mirror images, windows, batch size; by default whole images
            at one scale.
        device (`str`, *optional*): Device of the network; by default an accelerator, if available.
        dtype (`str`): Precision of the network: float32, float16 or bfloat16.

    Raises:
        UsageError: If the model cannot be loaded, has weights that are not finite, or the device cannot be used.
    """
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise UsageError(
            f"`model`: {model} cannot be loaded: it has no config.json. A run has a model only after its first "
            "validation; `msctr train` with its settings and --resume auto continues it."
        )
    where = "" if Path(model).exists() else "is not a folder here, and "
    with building_a_network(prefix=f"`model`: {model} {where}cannot be loaded: "):
        network = AutoModelForSemanticSegmentation.from_pretrained(model, dtype=getattr(torch, dtype))
        image_processor = AutoImageProcessor.from_pretrained(model)
    if dtype == "bfloat16" and has_bf16(torch.device(device)) is False:
        warn_caller(f"{device} only emulates bfloat16, which can take many times as long as `dtype='float32'`.")
    refuse_faulty_weights(network, prefix=f"`model`: {model} cannot be used: ")
    try:
        return Predictor(network.to(device).eval(), image_processor, settings or InferenceSettings())
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"`device`: {device} cannot be used ({first_line(error)}).") from error
