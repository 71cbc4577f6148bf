"""Settings of data: the choice of the data set, its augmentation and its copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ..errors import UsageError
from ..settings import Settings, as_mapping, changed, default_workers, defaults, setting
from .pixel_limit import set_max_image_pixels

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from .channels import Channels
    from .saved_source import SavedDataset
    from .specs import DatasetSpec


REST = "rest"  # value of `unlabeled`: the images that `train_images` leaves out
_OF_IMAGES_ALONE = {"unlabeled_dir", "num_channels", "max_image_pixels", "num_workers"}  # settings of their check


def is_about_unlabeled(name: str) -> bool:
    """Return whether the setting of this name is about images without labels."""
    return "unlabeled" in name or "pseudo" in name


@dataclass(kw_only=True)
class ImageSettings(Settings):
    """Settings of reading image files."""

    max_image_pixels: int | None = setting(
        None,
        help="Width times height of the largest image that is read, against files that would fill the memory; "
        "178,956,970 by default.",
        at_least=1,
        on_resume="free",
        in_card=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_image_pixels is not None:
            set_max_image_pixels(self.max_image_pixels)


@dataclass(kw_only=True)
class DatasetSettings(ImageSettings):
    """Settings of the choice and the location of a data set."""

    _argument_group_name = "data set"

    dataset: str = setting("synthetic_scenes", help="Name of the data set: its classes and label values.")
    data_dir: str | None = setting(
        None,
        help="Folder of the data set: official layout, parquet files, result of save_to_disk, or a pre-decoded copy.",
        on_resume="free",
        in_card=False,
        is_path=True,
    )
    dataset_name: str | None = setting(
        None,
        help="Hub id, USER/NAME or USER/NAME:CONFIGURATION, or folder of parquet files, to read instead of data_dir.",
        is_path=True,
    )
    dataset_revision: str | None = setting(None, help="Branch, tag or commit of the Hub id.")
    image_column: str = setting("image", help="Column of a copy with the images.")
    label_column: str = setting("label", help="Column of a copy with the labels.")
    id_map: str | None = setting(
        None,
        help="Raw label values -> train ids, for a copy with other values than the official files: '{7: 0, 8: 1}'; "
        "all other values are ignored.",
    )
    reduce_zero_label: bool = setting(False, help="Count label values from 1, and ignore 0.")
    streaming: bool = setting(False, help="Read a copy as a stream, without storing it on this disk.")
    corrections: str | None = setting(
        None,
        help="CSV file with the columns image_id and label: images to leave out (no label) or to relabel from a file.",
        is_path=True,
    )

    @property
    def channels(self) -> Channels | None:
        """Channels of the images; `None` is RGB of 8 bits."""
        return None

    def load(
        self, split: str, channels: Channels | None = None, *, with_labels: bool = True
    ) -> Dataset | IterableDataset:
        """Load one split of this data set, or several joined by `+`; see `load_segmentation_dataset`.

        `channels` are those of a network, instead of those of the settings.
        """
        from .loading import load_segmentation_dataset

        channels = channels or self.channels
        return load_segmentation_dataset(
            self.dataset,
            split,
            self.data_dir,
            dataset_name=self.dataset_name,
            revision=self.dataset_revision,
            image_column=self.image_column,
            label_column=self.label_column,
            id_map=_read_id_map(self.id_map),
            reduce_zero_label=self.reduce_zero_label,
            streaming=self.streaming,
            corrections=self.corrections,
            num_channels=None if channels is None else channels.count,
            value_type=None if channels is None else channels.value_type,
            with_labels=with_labels,
        )

    @property
    def spec(self) -> DatasetSpec:
        """Description of the data set, with raw label values from `id_map` or `reduce_zero_label` if given."""
        from .loading import get_dataset_spec, replace_channels, replace_label_values

        spec = replace_channels(get_dataset_spec(self.dataset, self.data_dir), self.channels)
        return replace_label_values(spec, _read_id_map(self.id_map), self.reduce_zero_label)

    @property
    def saved(self) -> SavedDataset:
        """Location of the copy that is read instead of the official files, if any."""
        from .saved_source import SavedDataset

        return SavedDataset(
            self.dataset_name, self.dataset_revision, self.image_column, self.label_column, streaming=self.streaming
        )


def _read_id_map(text: str | None) -> dict[int, int] | None:
    """Parse a string such as '{7: 0, 8: 1}'; return `None` for `None`."""
    if text is None:
        return None
    try:
        id_map = yaml.safe_load(text)
        return {int(str(raw)): int(str(train_id)) for raw, train_id in id_map.items()}  # not 1.5, nor True
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        raise UsageError(f"`id_map` must look like '{{7: 0, 8: 1}}', got {text!r}.") from None


@dataclass(kw_only=True)
class ChannelSettings(DatasetSettings):
    """Settings of a data set whose images need not be RGB."""

    num_channels: int | None = setting(
        None,
        help="Number of channels of the images, whose values keep the type of the files: TIFF, .npy (H, W, N), 16 "
        "bits, int32 and float; means and standard deviations are those of the training split. RGB of 8 bits by "
        "default.",
        at_least=1,
        at_most=16,
    )

    @property
    def channels(self) -> Channels | None:
        """Channels of the images; `None` is RGB of 8 bits."""
        from .channels import Channels

        return None if self.num_channels is None else Channels(self.num_channels)


@dataclass(kw_only=True)
class DataSettings(ChannelSettings):
    """Settings of the training images and their augmentation, by default the recipe of the paper."""

    _argument_group_name = "data set and augmentation"

    train_split: str = setting("train", help="Split to train on; 'train+validation' is both.")
    train_images: int | None = setting(
        None,
        help="Number of images to train on, drawn at random, as if only these were labeled; by default all.",
        at_least=1,
    )
    subset_seed: int | None = setting(
        None,
        help="Seed that draws `train_images`; by default that of the run. With one seed, fewer images are among more.",
        at_least=0,
        below=2**32,
        follows="seed",
    )
    unlabeled: str | None = setting(
        None,
        help="Images to train on without labels, by a mean teacher: 'rest', those that `train_images` leaves out, or "
        "a split, whose labels are not read; by default none.",
        instead_of=("unlabeled_dir",),
    )
    unlabeled_dir: str | None = setting(
        None,
        help="Folder with the images to train on without labels, instead of `unlabeled`; its subfolders are searched "
        "too.",
        on_resume="free",
        in_card=False,
        is_path=True,
        instead_of=("unlabeled",),
    )
    unlabeled_mix: Literal["cutmix", "classmix", "none"] = setting(
        "cutmix",
        help="Mixing of two neighboring images without labels: a box with half of the pixels (cutmix), half of the "
        "classes that the teacher finds (classmix), or none.",
    )
    unlabeled_strength: float = setting(
        1.0,
        help="Strength of the color changes and the blur of images without labels; 1 as published, 0 for none.",
        at_least=0,
        at_most=1,
    )
    repeat_factor_threshold: float | None = setting(
        None,
        help="Repeat images with classes that occur in less than this share of the images (CaDIS: 0.15).",
        above=0,
        at_most=1,
    )
    tile_size: list[int] | None = setting(
        None,
        help="Height and width of the tiles into which larger images are divided: every tile is a sample, so that an "
        "epoch shows all of them once, and its crop is drawn from it; by default a crop is drawn from a whole image.",
        length=2,
        above=0,
    )
    tile_overlap: int = setting(
        0, help="Number of pixels that neighboring tiles of training images share.", at_least=0
    )
    crop_size: list[int] = setting(
        [512, 1024], help="Height and width of a training crop, in pixels.", length=2, above=0
    )
    scale_range: list[float] = setting(
        [0.5, 2.0], help="Smallest and largest random scale.", length=2, above=0, ascending=True
    )
    aspect_range: list[float] = setting(
        [0.9, 1.1],
        help="Smallest and largest random factor of the aspect ratio (width / height); the area stays the same.",
        length=2,
        above=0,
        ascending=True,
    )
    max_class_share: float = setting(
        0.75,
        help="Draw another crop, at most 9 times, while one class covers at least this share of its valid pixels.",
        at_least=0,
        at_most=1,
    )
    flip_probability: float = setting(
        0.5, help="Probability of mirroring an image left and right.", at_least=0, at_most=1
    )
    flip_vertical_probability: float = setting(
        0.0,
        help="Probability of mirroring an image top and bottom, for images without an up: from the air, or of a "
        "microscope.",
        at_least=0,
        at_most=1,
    )
    rotate90: bool = setting(
        False, help="Rotate an image by 0, 90, 180 or 270 degrees, with equal probability, for images without an up."
    )
    augmentation: str | None = setting(
        None,
        help="Function of your own, 'module:function', that changes every crop and its labels; the module may be in "
        "the current folder.",
    )
    color_jitter: bool = setting(True, help="Jitter brightness, contrast, saturation and hue of RGB images.")
    resize_shorter_side: int | None = setting(
        None, help="Resize the shorter side of validation images to this many pixels.", at_least=1
    )
    size_divisor: int = setting(
        1, help="Pad validation images at the right and the bottom to a multiple of this many pixels.", at_least=1
    )
    padding_mode: Literal["constant", "reflect"] = setting(
        "constant",
        help="Padding of images in training and validation: mean color or reflection; labels are ignored there.",
    )
    num_workers: int = setting(
        default_workers(4),
        help="Number of worker processes that load data, per process; by default 4, or the number of cores if there "
        "are fewer.",
        at_least=0,
        aliases=("dataloader_num_workers",),
        on_resume="free",
        in_card=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subset_seed is not None and self.train_images is None:
            raise UsageError(
                f"`subset_seed` is {self.subset_seed}, but all images are trained on; give their number in "
                "`train_images`, or leave it out."
            )
        if self.unlabeled is not None and self.unlabeled_dir is not None:
            raise UsageError(
                f"`unlabeled` and `unlabeled_dir` both name images without labels, got {self.unlabeled!r} and "
                f"{self.unlabeled_dir}; give one of them."
            )
        if self.unlabeled == REST and self.train_images is None:
            raise UsageError(
                f"`unlabeled={REST!r}` takes the images that `train_images` leaves out; give `train_images`, or name "
                "the images by `unlabeled_dir`."
            )
        if self.streaming and self.unlabeled is not None:  # images of a stream are not compared
            splits = [{part.strip() for part in split.split("+")} for split in (self.unlabeled, self.train_split)]
            if splits[0] & splits[1]:
                raise UsageError(
                    f"`unlabeled={self.unlabeled!r}` has images of `train_split={self.train_split!r}`, whose labels "
                    "are trained on: name another split, or a folder by `unlabeled_dir`."
                )
        if self.tile_size is None:
            if self.tile_overlap:
                raise UsageError("`tile_overlap` needs `tile_size`.")
            return
        if self.tile_overlap >= min(self.tile_size):
            raise UsageError(
                f"`tile_overlap` must be smaller than the sides of `tile_size`, {self.tile_size}, got "
                f"{self.tile_overlap}."
            )
        if self.streaming:
            raise UsageError("`tile_size` needs random access to the images; leave `streaming` out.")
        if self.resize_shorter_side is not None:
            raise UsageError(
                f"`resize_shorter_side={self.resize_shorter_side}` would resize every tile of `tile_size` alone, and "
                "validation would see other scales than the images have: leave it out, or resize the images first."
            )

    def load_training(self, seed: int) -> tuple[Dataset | IterableDataset, dict[str, Any] | None]:
        """Load the training images, of which `train_images` are drawn if that is given.

        Args:
            seed (`int`): Seed of the run, which draws them unless there is a `subset_seed`.

        Returns:
            `tuple`: the images, and a description of the drawn ones as from `draw_images`, or `None` if all are used.

        Raises:
            UsageError: If there are fewer images, or their number is not known.
        """
        from .subset import draw_images

        dataset = self.load(self.train_split)
        if self.train_images is None:
            return dataset, None
        return draw_images(dataset, self.train_images, seed if self.subset_seed is None else self.subset_seed)

    @property
    def has_unlabeled(self) -> bool:
        """Whether there are images to train on without labels."""
        return self.unlabeled is not None or self.unlabeled_dir is not None

    def load_unlabeled(self, seed: int) -> Dataset | IterableDataset | None:
        """Load the images to train on without labels, of which no label is read; `None` if there are none.

        Args:
            seed (`int`): Seed of the run, as for `load_training`.

        Raises:
            UsageError: If the folder, the split or the rest has no images.
        """
        from .decoding import rows_without_labels
        from .subset import images_left_out
        from .unlabeled import index_folder

        if self.unlabeled_dir is not None:
            return index_folder(self.unlabeled_dir, self.channels)
        if self.unlabeled != REST:
            return None if self.unlabeled is None else self.load(self.unlabeled, with_labels=False)
        dataset = self.load(self.train_split)  # not a stream, of which `load_training` draws no images
        rest = images_left_out(dataset, self.train_images, seed if self.subset_seed is None else self.subset_seed)
        if not len(rest):
            raise UsageError(
                f"`unlabeled={REST!r}`: `train_images={self.train_images}` leaves no image out; lower it, or name "
                "other images by `unlabeled_dir`."
            )
        return rows_without_labels(rest)


@dataclass(kw_only=True)
class PreparationSettings(ChannelSettings):
    """Settings of the check and the copy of a data set."""

    unlabeled_dir: str | None = setting(
        None,
        help="Folder of images to train on without labels, which is checked instead of a data set, with all of its "
        "subfolders.",
        is_path=True,
    )
    splits: list[str] | None = setting(
        None, help="Splits to check and to convert; by default train, validation, and test if the data set has one."
    )
    output_dir: str | None = setting(
        None, help="Folder for the copy; by default the data set is only checked.", is_path=True
    )
    predecode: bool = setting(False, help="Write raw pixels, which are memory-mapped, instead of parquet.")
    tile_size: list[int] | None = setting(
        None,
        help="With predecode: height and width of the tiles in which larger images are stored, so that a crop reads "
        "few places of the disk.",
        length=2,
        above=0,
    )
    skip_broken: bool = setting(False, help="Leave broken images out of the copy instead of refusing the data set.")
    num_workers: int = setting(default_workers(2), help="Number of worker processes of the check.", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unlabeled_dir is None:
            return
        others = set(changed(defaults(PreparationSettings), as_mapping(self))) - _OF_IMAGES_ALONE
        if others:
            names = ", ".join(f"`{name}`" for name in sorted(others))
            raise UsageError(
                f"`unlabeled_dir` is checked alone, since its images belong to no data set; leave {names} out."
            )
