"""Models of transformers, adapted for training with the contrastive objective."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel

from ..data.labels import IGNORE_INDEX
from ..data.specs import DatasetSpec
from ..errors import InputWarning, UsageError, first_line
from ..evaluation.class_order import find_order
from ..evaluation.image_preparation import ImagePreparation
from ..evaluation.model_kinds import refuse_other_kinds
from ..evaluation.predictor import names_by_label
from ..models.configuration_msctr import MsctrConfig
from ..models.contrastive_adapter import IGNORE_INDEX_SETTINGS, ContrastiveAdapter


def saved_kind(path: str) -> str:
    """Return the `model_type` of a saved semantic segmentation model.

    Raises:
        UsageError: If the model cannot be loaded, or is of another kind.
    """
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _cannot_be_loaded(path, error) from error
    refuse_other_kinds(config, f"`model_name_or_path`: {path}")
    return config.model_type


def adapt_saved(path: str, settings: dict[str, Any], spec: DatasetSpec) -> ContrastiveAdapter:
    """Load a saved model for the classes of a data set and wrap it with the contrastive objective.

    The same classes in another order keep their weights. A classifier for another number of classes gets new random
    weights.

    Raises:
        UsageError: If the model cannot be loaded, is not a segmentation model, has the objective built in, or does
            not match the settings.
    """
    if saved_kind(path) == MsctrConfig.model_type:
        raise UsageError(f"`contrastive_adapter`: {path} has the contrastive objective built in; leave it out.")
    try:
        model = AutoModelForSemanticSegmentation.from_pretrained(
            path,
            id2label=spec.id2label,
            label2id={name: label for label, name in spec.id2label.items()},
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _cannot_be_loaded(path, error) from error
    for name in IGNORE_INDEX_SETTINGS:  # that of our labels, whatever those that the model was trained on had
        if hasattr(model.config, name):
            setattr(model.config, name, IGNORE_INDEX)
    places = find_order(spec.classes, names_by_label(AutoConfig.from_pretrained(path)))
    if places not in (None, tuple(range(len(spec.classes)))):
        _reorder_classes(model, places)
    return ContrastiveAdapter(model, **settings).train()


@torch.no_grad()
def _reorder_classes(model: PreTrainedModel, places: Sequence[int]) -> None:
    """Give every class the weights that it had at another place, in all tensors with an entry for every class."""
    config = copy.deepcopy(model.config)
    config.num_labels = len(places) + 1
    with torch.device("meta"):
        larger = type(model)(config)
    shapes = {name: values.shape for name, values in _tensors(larger)}
    for name, values in _tensors(model):
        for dim, (size, larger_size) in enumerate(zip(values.shape, shapes[name], strict=True)):
            if size != larger_size:
                values.copy_(values.index_select(dim, torch.tensor(places)))


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def image_processor_of_saved(path: str, options: dict[str, Any]) -> Any:
    """Load the image processor of a saved model, set to show whole images, keep labels and resize as `options` say.

    Raises:
        UsageError: If it cannot be loaded or does not show whole images, or `options` request padding or a size to
            which it cannot resize.
    """
    try:
        image_processor = AutoImageProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _cannot_be_loaded(path, error) from error
    if options["size_divisor"] > 1:
        raise UsageError("`size_divisor`: an adapted model keeps its own image processor; leave it out.")
    image_processor = ImagePreparation(image_processor).image_processor
    if getattr(image_processor, "do_reduce_labels", False):
        image_processor.do_reduce_labels = False
    if options["do_resize"]:
        image_processor.do_resize, image_processor.size = True, options["size"]
        _refuse_other_sizes(image_processor, options["size"]["shortest_edge"])
    return image_processor


def other_scale(image_processor: Any, options: dict[str, Any]) -> list[str]:
    """Return a sentence about an image processor that resizes whole images, but no crops of training."""
    if options["do_resize"] or not getattr(image_processor, "do_resize", False):
        return []
    size = {name: length for name, length in dict(image_processor.size).items() if length is not None}
    lengths = ", ".join(f"{name} {length}" for name, length in size.items())
    return [
        f"images of validation and prediction are resized by the adapted model ({lengths}), crops of training are "
        "not; set resize_shorter_side to about the shorter side of the training images, which keeps their shape"
    ]


def _refuse_other_sizes(image_processor: Any, shorter: int) -> None:
    """Refuse an image processor that does not resize the shorter side of images to a length."""
    try:
        with warnings.catch_warnings(action="ignore", category=InputWarning):
            size = ImagePreparation(image_processor)([Image.new("RGB", (64, 32))]).shape[-2:]
    except UsageError:
        size = None
    if size != (shorter, 2 * shorter):
        raise UsageError(
            f"`resize_shorter_side`: {type(image_processor).__name__} of the adapted model cannot resize images to a "
            "length of their shorter side; leave it out."
        )


def _cannot_be_loaded(path: str, error: Exception) -> UsageError:
    return UsageError(f"`model_name_or_path`: {path} cannot be loaded: {first_line(error)}")
