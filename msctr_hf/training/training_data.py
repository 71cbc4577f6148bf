"""Batches of the training set of a run, with sampling, augmentation and epochs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader

from ..data.augmentation import TrainingAugmentation
from ..data.loaders import ShuffledSampler, training_loader
from ..data.repeat_factors import repeat_factors
from ..data.settings import DataSettings
from ..data.strong_view import StrongView
from ..data.unlabeled import UnlabeledAugmentation, unlabeled_seed
from ..data.user_transform import UserTransform
from ..errors import UsageError
from ..evaluation.image_preparation import ImagePreparation
from ..models.image_processing_msctr import MsctrImageProcessor
from .class_weights import ClassPixels
from .duration import Epochs
from .settings import TrainingSettings

Batch = TypeVar("Batch")


class Position(Protocol):
    """Position in the data, which a checkpoint keeps."""

    epoch: int
    images_in_epoch: int


@dataclass
class UnlabeledPosition:
    """Position in the images without labels, which have epochs of their own."""

    epoch: int = 0
    images_in_epoch: int = 0  # images of this epoch that were trained on, in all processes

    def state_dict(self) -> dict[str, int]:
        """Return the values for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the values of a checkpoint."""
        self.epoch, self.images_in_epoch = state["epoch"], state["images_in_epoch"]


def build_loader(
    train_set: Dataset | IterableDataset,
    data_arguments: DataSettings,
    arguments: TrainingSettings,
    image_processor: MsctrImageProcessor,
    class_pixels: ClassPixels,
    accelerator: Accelerator,
) -> tuple[DataLoader, Epochs | None]:
    """Build the loader of the training set, and its epochs (`None` for a stream).

    Raises:
        UsageError: If there are too few images, or a setting does not work with a stream.
    """
    is_stream = isinstance(train_set, IterableDataset)
    if is_stream and arguments.schedule == "exponential":
        raise UsageError("`schedule='exponential'` counts epochs, which a stream does not have; use poly.")
    if is_stream and data_arguments.repeat_factor_threshold is not None:
        raise UsageError("`repeat_factor_threshold` needs all labels before training; leave `streaming` out.")
    threshold = data_arguments.repeat_factor_threshold
    loader = training_loader(
        train_set,
        _augmentation(data_arguments, image_processor),
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        num_workers=data_arguments.num_workers,
        repeats=None if threshold is None else repeat_factors(class_pixels.of_images > 0, threshold),
    )
    if is_stream:
        return loader, None
    sampler: Any = loader.sampler
    epochs = Epochs(sampler, arguments.batch_size, arguments.gradient_accumulation_steps, accelerator.num_processes)
    if epochs.batches(0) == 0:
        raise UsageError(
            f"{len(train_set)} training images do not fill one batch of {arguments.batch_size} on "
            f"{accelerator.num_processes} process(es); lower `batch_size`."
        )
    return loader, epochs


def build_unlabeled_loader(
    unlabeled_set: Dataset | IterableDataset,
    data_arguments: DataSettings,
    arguments: TrainingSettings,
    image_processor: MsctrImageProcessor,
    accelerator: Accelerator,
) -> DataLoader:
    """Build the loader of the images without labels, of which every batch has two views.

    Raises:
        UsageError: If there are too few images.
    """
    training = _augmentation(data_arguments, image_processor)
    channels = ImagePreparation(image_processor).channels
    has_colors = channels is None or channels.are_colors
    batch_size = arguments.unlabeled_images_per_batch
    num_images_of_step = batch_size * accelerator.num_processes
    if not isinstance(unlabeled_set, IterableDataset) and len(unlabeled_set) < num_images_of_step:
        raise UsageError(
            f"{len(unlabeled_set)} images without labels do not fill one batch of {batch_size} on "
            f"{accelerator.num_processes} process(es); lower `unlabeled_batch_size`."
        )
    augmentation = UnlabeledAugmentation(
        # the first crop, since no class is known that could cover too much of it
        replace(training, max_class_share=math.inf),
        StrongView(data_arguments.unlabeled_strength, has_colors, training.white),
        len(data_arguments.spec.classes),
    )
    return training_loader(
        unlabeled_set,
        augmentation,
        batch_size=batch_size,
        seed=unlabeled_seed(arguments.seed),
        num_workers=data_arguments.num_workers,
    )


def endless_batches(
    accelerator: Accelerator,
    loader: DataLoader,
    progress: Position,
    images_per_batch: int,
    sampler: ShuffledSampler | None,
    setting: str = "batch_size",
) -> Generator[dict]:
    """Yield batches from the current position in the data, epoch after epoch, and count their images in `progress`.

    Images are counted when they are read. This is exact, because the position is saved only between steps, when all
    batches that were read have been trained on.

    Args:
        accelerator (`Accelerator`): Accelerator that prepared the loader.
        loader (`DataLoader`): Batches of this process.
        progress (`Position`): Position in the data.
        images_per_batch (`int`): Number of images in a batch of every process, together.
        sampler (`ShuffledSampler`, *optional*): Sampler of the loader; `None` for a stream.
        setting (`str`): Setting with the number of images in a batch of one process.

    Raises:
        UsageError: In all processes, if a stream does not fill one batch.
    """
    while True:
        batches: Any = loader
        if sampler is not None:
            # images, since batches of another size may not end where those before the interruption did
            sampler.start = progress.images_in_epoch
        elif progress.images_in_epoch:
            batches = accelerator.skip_first_batches(loader, progress.images_in_epoch // images_per_batch)
        batches.set_epoch(progress.epoch)  # otherwise a loader that skips batches would start at epoch 0
        try:
            of_epoch = without_advancing_random_state(batches)
        except (TypeError, ValueError) as error:
            # Accelerate tries to send a batch in any case; its exception depends on the number of processes
            if not getattr(batches, "_stop_iteration", False):
                raise
            raise UsageError(
                f"`streaming`: a stream has fewer than the {images_per_batch} images of one batch of all processes, "
                f"or its parts, of which every worker reads its own, do not fill one each; lower `{setting}` or "
                "`num_workers`."
            ) from error
        for batch in of_epoch:
            progress.images_in_epoch += images_per_batch
            yield batch
        progress.epoch += 1
        progress.images_in_epoch = 0


def without_advancing_random_state(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Start to iterate over batches without changing the state of torch's random numbers.

    Accelerate's loader of a stream draws random numbers when an iteration starts. A resumed run starts the iteration
    of its epoch a second time, and would draw other anchors and dropout than an uninterrupted run from then on.
    """
    iterator = iter(batches)
    with torch.random.fork_rng(devices=[]):
        first = list(itertools.islice(iterator, 1))
    return itertools.chain(first, iterator)


def num_images(dataset: Dataset | IterableDataset) -> int | None:
    """Count the images of a data set; return `None` for a stream."""
    return None if isinstance(dataset, IterableDataset) else len(dataset)


def _augmentation(arguments: DataSettings, image_processor: MsctrImageProcessor) -> TrainingAugmentation:
    preparation = ImagePreparation(image_processor)
    colors, channels = preparation.colors, preparation.channels
    transform = arguments.augmentation
    return TrainingAugmentation(
        crop_size=arguments.crop_size,
        image_mean=colors.mean,
        image_std=colors.std,
        channel_order=colors.order,
        white=colors.white,
        scale_range=arguments.scale_range,
        aspect_range=arguments.aspect_range,
        max_class_share=arguments.max_class_share,
        flip_probability=arguments.flip_probability,
        flip_vertical_probability=arguments.flip_vertical_probability,
        rotate90=arguments.rotate90,
        user_transform=None if transform is None else UserTransform(transform, len(arguments.spec.classes)),
        color_jitter=arguments.color_jitter and (channels is None or channels.are_colors),
        padding_mode=arguments.padding_mode,
    )
