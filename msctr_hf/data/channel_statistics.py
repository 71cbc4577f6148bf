"""Mean and standard deviation of every channel of the images of a data set."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..errors import UsageError
from ..progress import progress
from .channels import VALUE_TYPES, Channels
from .decoding import reader_of

_PIXELS_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of every channel over all pixels of some images that have data.

    Args:
        value_type (`str`): Type of the values, one of `VALUE_TYPES`.
        pixels (`tuple[int, ...]`): Number of pixels of every channel.
        means (`tuple[float, ...]`): Mean of every channel, in the units of the files; 0 of no pixels.
        variances (`tuple[float, ...]`): Mean square of the differences from the mean.
    """

    value_type: str
    pixels: tuple[int, ...]
    means: tuple[float, ...]
    variances: tuple[float, ...]

    @classmethod
    def of_image(cls, image: np.ndarray, missing: np.ndarray | None = None) -> ChannelStatistics:
        """Compute the statistics of one image (H, W, N), of which a part at a time is copied to float64.

        Values where `missing` (H, W, N) is true are left out.
        """
        values = np.ma.array(image, mask=np.ma.nomask if missing is None else missing).reshape(-1, image.shape[2])
        parts = (values[start : start + _PIXELS_AT_A_TIME] for start in range(0, len(values), _PIXELS_AT_A_TIME))
        return functools.reduce(operator.add, map(cls._of_pixels, parts))

    @classmethod
    def _of_pixels(cls, values: np.ma.MaskedArray) -> ChannelStatistics:
        means, variances = (
            np.ma.filled(compute(axis=0, dtype=np.float64), 0.0).tolist() for compute in (values.mean, values.var)
        )
        return cls(str(values.dtype), tuple(values.count(axis=0).tolist()), tuple(means), tuple(variances))

    def __add__(self, other: ChannelStatistics) -> ChannelStatistics:
        """Compute the statistics of all pixels of both; sums of squares would lose digits (Chan et al., 1979)."""
        pixels = np.array(self.pixels) + other.pixels
        share = np.array(other.pixels) / np.maximum(pixels, 1)
        difference = np.array(other.means) - self.means
        means = self.means + share * difference
        variances = (1 - share) * np.array(self.variances) + share * np.array(other.variances)
        variances += share * (1 - share) * difference**2
        return ChannelStatistics(
            self.value_type, tuple(pixels.tolist()), tuple(means.tolist()), tuple(variances.tolist())
        )

    @property
    def channels(self) -> Channels:
        """Number of channels and type of the values."""
        return Channels(len(self.means), self.value_type)

    @property
    def white(self) -> float:
        """Value that counts as 1 in `image_mean` and `image_std`."""
        return VALUE_TYPES[self.value_type]

    @property
    def image_mean(self) -> list[float]:
        """Mean of every channel, for values of which white is 1."""
        return [mean / self.white for mean in self.means]

    @property
    def image_std(self) -> list[float]:
        """Standard deviation of every channel, for values of which white is 1; 1 if all values are equal."""
        return [variance**0.5 / self.white if variance > 0 else 1.0 for variance in self.variances]

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {
            "value_type": self.value_type,
            "pixels": list(self.pixels),
            "means": list(self.means),
            "variances": list(self.variances),
        }

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> ChannelStatistics:
        """Build statistics from the result of `as_dict`."""
        means, variances = (tuple(map(float, entries[name])) for name in ("means", "variances"))
        pixels = np.broadcast_to(entries["pixels"], len(means))  # one number in copies and runs of older versions
        return cls(str(entries["value_type"]), tuple(pixels.tolist()), means, variances)

    def __str__(self) -> str:
        numbers = zip(self.means, self.variances, strict=True)
        return ", ".join(f"{mean:.4g} ± {variance**0.5:.4g}" for mean, variance in numbers)


def measure_channels(dataset: Dataset, num_workers: int) -> ChannelStatistics:
    """Read all images of a data set, and compute the statistics of their channels.

    Args:
        dataset (`datasets.Dataset`): Samples whose images are arrays (H, W, N).
        num_workers (`int`): Number of worker processes that read images.

    Raises:
        UsageError: If an image cannot be read, has another number of channels or values of another type.
    """
    total, first = None, ""
    loader = DataLoader(_Measured(dataset), batch_size=None, num_workers=num_workers, collate_fn=_unchanged)
    for image_id, measured in progress(loader, title="measuring channels", unit="image"):
        if isinstance(measured, str):  # a worker process would add its traceback to an error
            raise UsageError(measured)
        if total is not None and total.value_type != measured.value_type:
            raise UsageError(other_type(image_id, measured, first, total))
        first = first or image_id
        total = measured if total is None else total + measured
    return total


def other_type(image_id: str, measured: ChannelStatistics, first: str, total: ChannelStatistics) -> str:
    """Say that images have values of two types."""
    return (
        f"{image_id} has values of type {measured.value_type}, but {first} has {total.value_type}; save all images "
        "with one type."
    )


class _Measured(TorchDataset):
    """Statistics, or the sentence of an error, of every image of a data set."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset.with_transform(reader_of(dataset).images_only())  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[str, ChannelStatistics | str]:
        try:
            sample = self.dataset[index]
        except UsageError as error:
            return "", str(error)
        return sample["image_id"], ChannelStatistics.of_image(sample["image"], sample.get("missing"))


def _unchanged(sample: Any) -> Any:
    return sample
