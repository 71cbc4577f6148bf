"""Mean teacher: the moving average of the student labels images, which the student then learns in a strong view.

Sources: Mean Teacher (https://arxiv.org/abs/1703.01780) for the teacher, FixMatch (https://arxiv.org/abs/2001.07685)
for the two views and the threshold, CutMix-Seg (https://arxiv.org/abs/1906.01916) and ClassMix
(https://arxiv.org/abs/2007.07936) for the mixing.

U = images, K = classes, C = channels.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from ..data.color_jitter import WHITE
from ..data.labels import IGNORE_INDEX
from ..data.specs import DatasetSpec
from ..evaluation.image_preparation import Colors
from ..evaluation.inference import classes_and_confidence
from ..evaluation.visualization import contact_sheet
from .class_thresholds import ClassThresholds

IMAGES_SHOWN = 4
_TITLES = ("strong view, mixed", "pseudo-labels", "confident ones")


class TaughtImages(NamedTuple):
    """Strong views with the labels of the teacher: arguments of the forward pass of the student.

    Args:
        unlabeled_pixel_values (`torch.Tensor` of shape `(U, C, H, W)`): Strong views, mixed.
        pseudo_labels (`torch.Tensor` of shape `(U, H, W)`, int64): Classes of the teacher, 255 where there is padding.
        pseudo_confidence (`torch.Tensor` of shape `(U, H, W)`): Probabilities of these classes, float32, 0 in padding.
        pseudo_thresholds (`torch.Tensor` of shape `(U, H, W)`, *optional*): Smallest confidence of a pixel that is
            trained on, float32, if it depends on the class.
    """

    unlabeled_pixel_values: torch.Tensor
    pseudo_labels: torch.Tensor
    pseudo_confidence: torch.Tensor
    pseudo_thresholds: torch.Tensor | None = None

    def arguments(self) -> dict[str, torch.Tensor]:
        """Return the arguments of the forward pass by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class MeanTeacher:
    """Labels images by the moving average of a network, in evaluation mode and without gradient.

    Args:
        accelerator (`Accelerator`): Accelerator, whose mixed precision the teacher shares.
        network (`nn.Module`): The average, in evaluation mode.
        batches (`Generator[dict]`): Batches of `UnlabeledAugmentation`, without end.
        mix (`str`): `"cutmix"`, `"classmix"` or `"none"`.
        channels_last (`bool`): Whether images keep the channels last in memory.
        class_thresholds (`ClassThresholds`, *optional*): Thresholds by class, which learn from every batch.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        network: nn.Module,
        batches: Generator[dict[str, torch.Tensor]],
        mix: str,
        channels_last: bool = False,
        class_thresholds: ClassThresholds | None = None,
    ):
        self.accelerator, self.network, self.batches = accelerator, network, batches
        self.mix = mix
        self.channels_last = channels_last
        self.class_thresholds = class_thresholds

    def next_batch(self) -> tuple[TaughtImages, torch.Tensor]:
        """Label the next images; return them with their encoded ids."""
        batch = next(self.batches)
        classes, confidence = self._predict(batch["weak_pixel_values"])
        is_valid = batch["is_valid"]
        if self.class_thresholds is not None:
            self.class_thresholds.update(classes, confidence, is_valid)
        labeled = TaughtImages(
            batch["strong_pixel_values"],
            classes.masked_fill(~is_valid, IGNORE_INDEX),
            confidence.masked_fill(~is_valid, 0.0),
        )
        if self.mix != "none":
            labeled = mix_neighbors(labeled, pasted_pixels(self.mix, batch, labeled.pseudo_labels))
        if self.class_thresholds is not None:
            labeled = labeled._replace(pseudo_thresholds=self.class_thresholds.of_pixels(labeled.pseudo_labels))
        in_layout = self._in_layout(labeled.unlabeled_pixel_values)
        return labeled._replace(unlabeled_pixel_values=in_layout), batch["image_id"]

    def diagnostics(self) -> dict[str, torch.Tensor]:
        """Return what the log says about the thresholds by class, if there are such."""
        return {} if self.class_thresholds is None else self.class_thresholds.diagnostics()

    @torch.no_grad()
    def _predict(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the most probable class of every pixel and its probability at the size of the view."""
        with self.accelerator.autocast():
            logits = self.network(pixel_values=self._in_layout(pixel_values)).logits
        align_corners = bool(getattr(self.network.config, "align_corners", False))
        return classes_and_confidence(logits, pixel_values.shape[-2:], align_corners)

    def _in_layout(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values.contiguous(memory_format=torch.channels_last) if self.channels_last else pixel_values


class TeacherStatistics:
    """Statistics of the teacher's normalization layers in this process, for a checkpoint.

    They are averages of those of the student. Without synchronized normalization every process has its own, and labels
    images by them, while the average of the weights is the same in all processes and saved once.

    Args:
        network (`nn.Module`): The teacher.
    """

    def __init__(self, network: nn.Module):
        self.network = network

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the statistics by name."""
        return dict(self.network.named_buffers())

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the statistics of a checkpoint."""
        for name, buffer in self.network.named_buffers():
            buffer.copy_(state[name])


def neighbors(num_images: int, device: torch.device) -> torch.Tensor:
    """Return the partner of every image, (U,) int64: 0 and 1 are partners, 2 and 3, ...; an odd last one is its own.

    The pairs are those of the whole batch if it is split between processes after an even number of images.
    """
    images = torch.arange(num_images, device=device)
    partners = images ^ 1
    return torch.where(partners < num_images, partners, images)


def pasted_pixels(mix: str, batch: dict[str, torch.Tensor], pseudo_labels: torch.Tensor) -> torch.Tensor:
    """Choose the pixels of every image that those of its partner replace, (U, H, W) bool.

    Args:
        mix (`str`): `"cutmix"`, the box that was drawn for the image; `"classmix"`, the pixels of half of the classes
            of the partner, rounded down, that have the largest `mix_priority` of the image.
        batch (`dict`): Batch of `UnlabeledAugmentation`.
        pseudo_labels (`torch.Tensor` of shape `(U, H, W)`, int64): Classes, 255 where there is padding.
    """
    if mix == "cutmix":
        return _boxes(batch["mix_box"], *pseudo_labels.shape[1:])
    theirs = pseudo_labels[neighbors(len(pseudo_labels), pseudo_labels.device)]
    return _half_of_the_classes(theirs, batch["mix_priority"])


def mix_neighbors(images: TaughtImages, pasted: torch.Tensor) -> TaughtImages:
    """Replace pixels of every image, with their labels, by those of its partner.

    Args:
        images (`TaughtImages`): Images before they are mixed.
        pasted (`torch.Tensor` of shape `(U, H, W)`, bool): Pixels to replace.
    """
    partners = neighbors(len(pasted), pasted.device)
    pixel_values, labels, confidence = images[:3]
    return TaughtImages(
        torch.where(pasted[:, None], pixel_values[partners], pixel_values),
        torch.where(pasted, labels[partners], labels),
        torch.where(pasted, confidence[partners], confidence),
    )


def _boxes(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    top, left, bottom, right = boxes.view(-1, 4, 1, 1).unbind(1)
    rows = torch.arange(height, device=boxes.device)[:, None]
    columns = torch.arange(width, device=boxes.device)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def _half_of_the_classes(labels: torch.Tensor, priority: torch.Tensor) -> torch.Tensor:
    """Select the pixels of half of the classes of every image by the order of their priorities, (U, K)."""
    num_images, num_classes = priority.shape
    classes = labels.where(labels != IGNORE_INDEX, num_classes).flatten(1)  # the last column stands for padding
    present = torch.zeros((num_images, num_classes + 1), dtype=torch.bool, device=labels.device)
    present.scatter_(1, classes, True)
    present[:, num_classes] = False
    ordered = priority.where(present[:, :num_classes], -1.0).argsort(dim=1, descending=True, stable=True)
    rank = ordered.argsort(dim=1)
    chosen = torch.zeros_like(present)
    chosen[:, :num_classes] = rank < present.sum(dim=1, keepdim=True) // 2
    return chosen.gather(1, classes).view(labels.shape)


def draw_pseudo_labels(images: TaughtImages, threshold: float, spec: DatasetSpec, colors: Colors) -> Image.Image:
    """Draw a few images, the labels of the teacher, and those of them that are trained on, side by side.

    Args:
        images (`TaughtImages`): Images with their labels.
        threshold (`float`): Smallest confidence of the labels that are trained on, if the images have none of their
            own.
        spec (`DatasetSpec`): Classes and colors.
        colors (`Colors`): Normalization of the images.
    """
    first = (None if tensor is None else tensor[:IMAGES_SHOWN].detach().cpu() for tensor in images)
    pixel_values, labels, confidence, thresholds = TaughtImages(*first)
    confident = labels.where(confidence >= (threshold if thresholds is None else thresholds), IGNORE_INDEX)
    rows: list[tuple[Any, Any, Any]] = []
    for image, found, kept in zip(pixel_values.float(), labels, confident, strict=True):
        mean, std = (image.new_tensor(values)[:, None, None] for values in (colors.mean, colors.std))
        shown = torch.empty_like(image)
        shown[list(colors.order)] = (image * std + mean) * colors.white  # channels in the order of the image
        values = shown.permute(1, 2, 0).contiguous()
        if colors.white == WHITE:
            values = values.round().clamp(0, WHITE).to(torch.uint8)
        rows.append((values.numpy(), found.numpy(), kept.numpy()))
    return contact_sheet(rows, spec.palette, spec.classes, titles=_TITLES)
