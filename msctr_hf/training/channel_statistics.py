"""Mean and standard deviation of the channels of the training images, with which `num_channels` normalizes images."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, IterableDataset

from ..data.channel_statistics import ChannelStatistics, measure_channels
from ..data.preparation import channels_of_check
from ..data.settings import DataSettings
from ..errors import UsageError
from .data_record import DATA_FILE
from .processes import on_main
from .run_folder import read_json

CHANNELS = "channels"  # key in the record of the data of a checkpoint


def choose_statistics(
    arguments: DataSettings, train_set: Dataset | IterableDataset, checkpoint: Path | None
) -> ChannelStatistics | None:
    """Read the statistics with which a run started, or those of the check that wrote a copy, or measure them.

    The main process reads all training images for all processes, which must call this together.

    Args:
        arguments (`DataSettings`): Settings of the data.
        train_set (`datasets.Dataset`): Training images.
        checkpoint (`Path`, *optional*): Checkpoint from which the run resumes.

    Returns:
        `ChannelStatistics`, *optional*: `None` without `num_channels`, for RGB images of 8 bits.

    Raises:
        UsageError: If the training set is a stream, an image cannot be read, or images have other channels or values
            of several types.
    """
    if arguments.num_channels is None:
        return None
    if isinstance(train_set, IterableDataset):
        raise UsageError("`num_channels` needs all images before training; leave `streaming` out.")
    if checkpoint is not None and (kept := read_json(checkpoint / DATA_FILE).get(CHANNELS)) is not None:
        return ChannelStatistics.from_dict(kept)

    def measure() -> ChannelStatistics:
        if arguments.data_dir is not None and arguments.dataset_name is None and arguments.train_split == "train":
            checked = channels_of_check(Path(arguments.data_dir), "train")
            if checked is not None and checked.channels.count == arguments.num_channels:
                return checked
        return measure_channels(train_set, arguments.num_workers)

    return on_main(measure)
