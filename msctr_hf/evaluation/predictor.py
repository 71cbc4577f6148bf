"""Network with its image processor, for images of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

from ..data.channels import Channels, count_of, size_of
from ..data.classes import default_palette
from ..errors import UsageError, building_a_network, first_line, warn_caller
from ..models.backbones import input_channels
from .finite import refuse_faulty_weights
from .image_preparation import DeferredPixelValues, ImagePreparation
from .inference import predict_label_maps, predict_probabilities_at
from .model_kinds import refuse_other_kinds, refuse_universal
from .precision import has_bf16
from .settings import InferenceSettings, Size


def names_by_label(config: Any) -> list[str]:
    """Return the names of the classes of a network in the order of their labels; LABEL_0, ... if not all are named.

    A config.json may list `id2label` in any order: programs that sort its keys as text write "10" before "2".
    """
    names, labels = config.id2label or {}, range(config.num_labels)
    is_complete = set(labels) <= set(names)
    return [names[label] if is_complete else f"LABEL_{label}" for label in labels]


@dataclass
class Predictor:
    """Network with its image processor, which labels images of any size.

    Args:
        model (`PreTrainedModel`): Any semantic segmentation model of transformers.
        image_processor: Image processor, used without padding: the inference functions add and remove it.
        settings (`InferenceSettings`): Scales, mirror images, windows, batch size.
        train_ids (`Sequence[int]`, *optional*): Train id of every class of the network, for a data set whose classes
            have another order; by default, the classes of the network are the train ids.
        preparation (`ImagePreparation`, *optional*): Path from images to pixel values of this image processor, to save
            the time to measure it again; another image processor gets its own.

    Raises:
        UsageError: If the model predicts masks, or the image processor does not show it whole images.
    """

    model: Any
    image_processor: Any
    settings: InferenceSettings = InferenceSettings()
    train_ids: Sequence[int] | None = None
    preparation: ImagePreparation | None = None

    def __post_init__(self):
        refuse_universal(getattr(self.model, "config", None), type(self.model).__name__)
        if self.image_processor is None:
            return
        # also after `dataclasses.replace`, which passes on the preparation of the former image processor
        if self.preparation is None or self.preparation.given is not self.image_processor:
            self.preparation = ImagePreparation(self.image_processor)
        prepared, read = (3 if self.channels is None else self.channels.count), self.num_channels
        if prepared != read:
            raise UsageError(
                f"The network reads images of {count_of(read)}, but its image processor prepares {prepared} "
                "(`num_channels`); save the model with the image processor it was trained with."
            )

    @property
    def channels(self) -> Channels | None:
        """Channels of the images, which are arrays (H, W, N); `None` for RGB images of 8 bits."""
        return None if self.preparation is None else self.preparation.channels

    @property
    def num_channels(self) -> int:
        """Number of channels of the pixel values that the network reads."""
        return input_channels(getattr(self.model, "config", None))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the train ids; LABEL_0, ... if the network does not name them all."""
        return self._by_train_id(names_by_label(self.model.config))

    @property
    def palette(self) -> list:
        """RGB colors of the classes, from the configuration; for those it does not give, as `default_palette`."""
        given = list(getattr(self.model.config, "palette", None) or [])
        return self._by_train_id([*given, *default_palette(names_by_label(self.model.config))[len(given) :]])

    def _by_train_id(self, values: list) -> list:
        """Sort values of the classes of the network by train id."""
        return values if self.train_ids is None else [values[label] for label in np.argsort(self.train_ids)]

    def __call__(self, images: Iterable[Image.Image | np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the class map (H, W) of every image at its size, uint8, or int64 with more than 256 classes.

        Consecutive images that the image processor resizes to one size share a batch of at most `settings.batch_size`
        images. At most one image more than a batch is read ahead. Images are RGB, or with `channels` arrays (H, W, N).
        """
        settings = self._settings_with_padding
        batch: list[tuple[torch.Tensor | DeferredPixelValues, Size]] = []
        for image in images:
            prepared = self._prepare_or_defer(image)
            if batch and batch[0][0].shape != prepared.shape:
                yield from self._label(batch, settings)
            width, height = size_of(image)
            batch.append((prepared, (height, width)))
            del image, prepared  # a large image takes gigabytes, and must be freed before the next is read
            if len(batch) == self.settings.batch_size:
                yield from self._label(batch, settings)
        yield from self._label(batch, settings)

    def probabilities_at(
        self, image: Image.Image | np.ndarray, rows: Sequence[int] | np.ndarray, columns: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Compute the probability of every class where some rows and columns of pixels of an image cross.

        Args:
            image (`Image` or `np.ndarray` of shape `(H, W, N)`): RGB image, or with `channels` an array.
            rows, columns (`Sequence[int]`): Pixels of the image, in ascending order.

        Returns:
            `np.ndarray` of shape `(len(rows), len(columns), L)`: probabilities by train id, float32.
        """
        width, height = size_of(image)
        probabilities = predict_probabilities_at(
            self.model,
            self._prepare_or_defer(image),
            self._settings_with_padding,
            output_size=(height, width),
            rows=rows,
            columns=columns,
        )
        by_class = probabilities[0].permute(1, 2, 0).cpu().numpy()
        return by_class if self.train_ids is None else by_class[..., np.argsort(self.train_ids)]

    @property
    def _settings_with_padding(self) -> InferenceSettings:
        """Settings of inference with the padding of the image processor."""
        return replace(
            self.settings,
            size_divisor=self.preparation.size_divisor,
            padding_mode=self.preparation.padding_mode,
        )

    def _prepare_or_defer(self, image: Image.Image | np.ndarray) -> torch.Tensor | DeferredPixelValues:
        """Prepare an image; a large one of which only windows are needed is prepared when they are."""
        windows_only = self.settings.window_size is not None and tuple(self.settings.scales) == (1.0,)
        if windows_only and self.preparation.by_rows(size_of(image)[1]):
            return DeferredPixelValues(self.preparation, [image], self._device)
        return self.prepare([image])

    def _label(
        self, batch: list[tuple[torch.Tensor | DeferredPixelValues, Size]], settings: InferenceSettings
    ) -> list[np.ndarray]:
        """Label prepared images of one size, and empty the list."""
        if not batch:
            return []
        prepared, sizes = zip(*batch, strict=True)
        batch.clear()
        if len(prepared) == 1:
            pixel_values = prepared[0]
        elif isinstance(prepared[0], DeferredPixelValues):
            pixel_values = replace(prepared[0], images=[each.images[0] for each in prepared])
        else:
            pixel_values = torch.cat(prepared)
        maps = predict_label_maps(self.model, pixel_values, settings, sizes)
        return [self._as_train_ids(labels.cpu().numpy()) for labels in maps]

    def _as_train_ids(self, labels: np.ndarray) -> np.ndarray:
        return labels if self.train_ids is None else np.array(self.train_ids, dtype=labels.dtype)[labels]

    def prepare(self, images: list[Image.Image | np.ndarray]) -> torch.Tensor:
        """Resize and normalize images of one size to a batch (B, C, H, W), without padding."""
        return self.preparation(images, self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


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
        UsageError: If the model cannot be loaded or predicts something else than classes of pixels, has weights that
            are not finite, its image processor does not show it whole images, or the device cannot be used.
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
        refuse_other_kinds(AutoConfig.from_pretrained(model), f"`model`: {model}")
        network = AutoModelForSemanticSegmentation.from_pretrained(model, dtype=getattr(torch, dtype))
        image_processor = AutoImageProcessor.from_pretrained(model)
    if dtype == "bfloat16" and has_bf16(torch.device(device)) is False:
        warn_caller(f"{device} only emulates bfloat16, which can take many times as long as `dtype='float32'`.")
    refuse_faulty_weights(network, prefix=f"`model`: {model} cannot be used: ")
    try:
        network = network.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"`device`: {device} cannot be used ({first_line(error)}).") from error
    return Predictor(network, image_processor, settings or InferenceSettings())
