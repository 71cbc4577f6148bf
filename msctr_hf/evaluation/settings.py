"""Settings of evaluation and prediction: network, images, scales, mirror images and windows."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from ..data.settings import DatasetSettings, ImageSettings
from ..errors import UsageError
from ..models.pixel_embeddings import FORMER_FEATURES
from ..settings import Settings, default_workers, setting

Size = tuple[int, int]  # height, width

_ANY_MODEL = "Saved folder or Hub id of any AutoModelForSemanticSegmentation."
_CLASS_ORDER = (
    "How the classes of the network are matched with those of the data set: by their names in any order, or by their "
    "position if the same classes have other names."
)
_WINDOW_SIZE = "Height and width of a sliding window; whole images by default."
_WINDOW_STRIDE = "Stride of the window; by default two thirds of its size."
_FEATURES = (
    "Embeddings of the projection head, which the contrast trains, or of parts that a network without contrast also "
    "has: the pyramid of the decode head (UPerNet), or the stages of the backbone (of a model of transformers: its "
    "hidden states)."
)
_DEVICE = "cpu, cuda, cuda:1, ...; by default an accelerator, if there is one."


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of inference: scales, mirror images, windows, batch size and padding.

    Args:
        scales (`tuple[float, ...]`): Factors by which images are resized; their probabilities are averaged.
        flip (`bool`): Whether to also predict mirror images.
        window_size (`tuple[int, int]`, *optional*): Height and width of a sliding window; whole images by default.
            Overlapping logits are averaged; smaller images are padded to one window.
        window_stride (`tuple[int, int]`, *optional*): Stride of the window; two thirds of the window by default. The
            last window is shifted inside the image.
        batch_size (`int`): Number of images, or windows, in one forward pass.
        size_divisor (`int`): Whole images are padded at the right and the bottom to a multiple of this, and the
            padding is removed afterwards.
        padding_mode (`str`): `"constant"`, which pads zeros, or `"reflect"`.

    Raises:
        UsageError: If a size, a stride, a scale or the batch size is not valid.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window_size: Size | None = None
    window_stride: Size | None = None
    batch_size: int = 1
    size_divisor: int = 1
    padding_mode: str = "constant"

    def __post_init__(self):
        scales = _as_tuple(self.scales, Real)
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise UsageError(f"`scales` must be a list of positive numbers, got {self.scales!r}.")
        sizes = {name: getattr(self, name) for name in ("window_size", "window_stride")}
        for name, size in sizes.items():
            if size is not None and len(_as_tuple(size, Integral) or ()) != 2:
                raise UsageError(f"`{name}` must be a height and a width, two integers, got {size!r}.")
        for name in ("batch_size", "size_divisor"):
            number = getattr(self, name)
            if not isinstance(number, Integral):
                raise UsageError(f"`{name}` must be an integer, got {number!r}.")
            if number < 1:
                raise UsageError(f"`{name}` must be at least 1, got {number}.")
        # a frozen dataclass, which is compared and hashed
        object.__setattr__(self, "scales", scales)
        for name, size in sizes.items():
            object.__setattr__(self, name, None if size is None else tuple(map(int, size)))
        if self.window_size is None:
            if self.window_stride is not None:
                raise UsageError("`window_stride` needs `window_size`.")
            return
        sides = zip(self.stride, self.window_size, strict=True)
        if min(self.window_size) < 1 or any(not 1 <= step <= side for step, side in sides):
            raise UsageError(
                f"`window_stride` must be between 1 and `window_size`, {self.window_size}, got {self.stride}."
            )

    @property
    def stride(self) -> Size:
        """Stride of the window, by default two thirds of the window."""
        if self.window_stride is not None:
            return self.window_stride
        height, width = self.window_size
        return max(1, 2 * height // 3), max(1, 2 * width // 3)


@dataclass
class EvaluationSettings(Settings):
    """Settings of inference for commands: scales, mirror images, windows, batch size, device and precision."""

    _argument_group_name = "inference"

    scales: list[float] = setting([1.0], help="Scales whose probabilities are averaged.", above=0)
    flip: bool = setting(False, help="Average the probabilities with those of the mirror image.")
    window_size: list[int] | None = setting(None, help=_WINDOW_SIZE, length=2, above=0)
    window_stride: list[int] | None = setting(None, help=_WINDOW_STRIDE, length=2, above=0)
    batch_size: int = setting(1, help="Number of images, or windows, in one forward pass.", at_least=1)
    device: str | None = setting(None, help=_DEVICE)
    dtype: Literal["float32", "float16", "bfloat16"] = setting("float32", help="Precision of the network.")

    @property
    def inference(self) -> InferenceSettings:
        """Settings of inference without those of the machine, device and precision."""
        return InferenceSettings(
            scales=tuple(self.scales),
            flip=self.flip,
            window_size=_as_size(self.window_size),
            window_stride=_as_size(self.window_stride),
            batch_size=self.batch_size,
        )


@dataclass(kw_only=True)
class ScoringSettings(DatasetSettings):
    """Settings of an evaluation: network, data set and report."""

    _argument_group_name = "network and data set"

    model: str = setting(help=_ANY_MODEL)
    split: str = setting("validation", help="train, validation or test.")
    class_order: Literal["names", "position"] = setting("names", help=_CLASS_ORDER)
    output_dir: str | None = setting(
        None,
        help="Folder for results.json, report.md and figures; by default the scores are only printed.",
        is_path=True,
    )
    boundary_iou: bool = setting(False, help="Also compute the boundary IoU (Cheng et al., CVPR 2021).")
    worst: int = setting(8, help="Number of images with the lowest mean IoU to show in worst.png.", at_least=0)
    num_workers: int = setting(
        default_workers(2), help="Number of worker processes that load data, per process.", at_least=0
    )


@dataclass
class PredictionSettings(ImageSettings):
    """Settings of a prediction: network, images and output."""

    _argument_group_name = "network and images"

    model: str = setting(help=_ANY_MODEL)
    input: list[str] = setting(
        help="Images, folders that are searched for images, or quoted patterns such as 'day_*/*.png'."
    )
    output_dir: str = setting(
        "predictions", help="Folder for NAME.png (train ids) and NAME_overlay.png.", is_path=True
    )
    palette: bool = setting(
        True, help="Store the class colors in NAME.png, whose values are train ids with and without colors."
    )
    opacity: float = setting(0.55, help="Opacity of the colors in overlays.", at_least=0, at_most=1)
    submission_for: str | None = setting(
        None,
        help="Write files for the test server of this data set (cityscapes, ade20k) instead: raw label values, in "
        "gray, under official names.",
    )
    class_order: Literal["names", "position"] = setting("names", help=f"With submission_for: {_CLASS_ORDER}")

    def __post_init__(self):
        super().__post_init__()
        if not self.input:
            raise UsageError("Name the images to label: `input='IMAGE, FOLDER or PATTERN'`.")


@dataclass(kw_only=True)
class EmbeddingSettings(DatasetSettings):
    """Settings of figures of embeddings: network, images, pixels and layout."""

    _argument_group_name = "network and images"

    model: str = setting(help=_ANY_MODEL)
    features: Literal["projection", "decode_head", "backbone"] = setting(
        "projection", help=_FEATURES, former_values=FORMER_FEATURES
    )
    split: str = setting("validation", help="train, validation or test.")
    output_dir: str = setting("embeddings", help="Folder for embeddings.png and similarity.png.", is_path=True)
    num_images: int = setting(24, help="Number of images whose pixels are shown.", at_least=1, former=("pictures",))
    pixels_per_class: int = setting(100, help="Number of pixels of every class and stage that are shown.", at_least=1)
    method: Literal["tsne", "umap"] = setting(
        "tsne", help="Layout of the pixels in the plane: t-SNE, or UMAP if it is installed."
    )
    image: str | None = setting(
        None, help="Image id of the image in similarity.png; by default the first.", former=("picture",)
    )
    pixel: list[int] | None = setting(
        None, help="Row and column of the pixel that all others are compared with; by default the center.", length=2
    )
    click: bool = setting(False, help="Choose the pixel by clicking on the image.")
    seed: int = setting(0, help="Seed of the choice of pixels and of their layout.", at_least=0)
    device: str | None = setting(None, help=_DEVICE)

    def __post_init__(self):
        super().__post_init__()
        if self.streaming:
            raise UsageError("`streaming`: embeddings need random access to the images; leave it out.")


@dataclass(kw_only=True)
class EmbedderSettings(Settings):
    """Settings of embeddings of pixels: network, features, windows, device."""

    _argument_group_name = "network and embeddings"

    model: str = setting(help=_ANY_MODEL)
    features: Literal["projection", "decode_head", "backbone"] = setting(
        "projection", help=_FEATURES, former_values=FORMER_FEATURES
    )
    stage: int | None = setting(None, help="Stage, from 1, the finest; by default all stages together.", at_least=1)
    window_size: list[int] | None = setting(None, help=_WINDOW_SIZE, length=2, above=0)
    window_stride: list[int] | None = setting(None, help=_WINDOW_STRIDE, length=2, above=0)
    batch_size: int = setting(1, help="Number of windows in one forward pass.", at_least=1)
    device: str | None = setting(None, help=_DEVICE)

    @property
    def inference(self) -> InferenceSettings:
        """Windows and batches of the images."""
        return InferenceSettings(
            window_size=_as_size(self.window_size),
            window_stride=_as_size(self.window_stride),
            batch_size=self.batch_size,
        )


@dataclass(kw_only=True)
class IndexSettings(DatasetSettings):
    """Settings of a bank of embeddings: labeled images, and what is kept of them."""

    bank: str = setting("bank.safetensors", help="File of the bank; an older bank there is replaced.", is_path=True)
    split: str = setting("train", help="train, validation or test; 'train+validation' is both.")
    prototypes_per_class: int = setting(8, help="Number of prototypes (k-means) of every class.", at_least=1)
    pixels_per_class: int = setting(1000, help="Largest number of pixels of every class that are kept.", at_least=1)
    seed: int = setting(0, help="Seed of the choice of pixels and of the prototypes.", at_least=0)


@dataclass(kw_only=True)
class LabelCheckSettings(DatasetSettings):
    """Settings of a check of labels: images and their groups, what counts as suspicious, and the report."""

    split: str = setting("train", help="train, validation or test; 'train+validation' is both.")
    class_order: Literal["names", "position"] = setting("names", help=_CLASS_ORDER)
    output_dir: str = setting(
        "suspects",
        help="Folder for check_labels.html and suspects.csv; a check that was stopped continues there.",
        is_path=True,
    )
    group_pattern: str | None = setting(
        None,
        help="Regular expression that is searched in every image id; what its first group (...) matches, or all of "
        "it, names the group of the image, such as its video: images of one group do not vouch for each other. By "
        "default, at most eight blocks of consecutive images.",
    )
    neighbors: int = setting(20, help="Number of most similar pixels of other groups that vote.", at_least=1)
    boundary_width: int = setting(
        1,
        help="Width of the boundaries of labels, in cells of the map of embeddings; regions within them are not "
        "reported. 0 reports them too.",
        at_least=0,
    )
    min_area: int = setting(200, help="Smallest number of pixels of a region.", at_least=1)
    top: int = setting(500, help="Number of regions in the report, the most suspicious ones.", at_least=1)
    pixels_per_class: int = setting(1000, help="Largest number of pixels of every class that may vote.", at_least=1)
    seed: int = setting(0, help="Seed of the choice of these pixels.", at_least=0)
    write_labels: str | None = setting(
        None,
        help="Instead of a check, write to this new folder the label files of images with accepted regions, and "
        "corrections.csv for --corrections.",
        is_path=True,
    )
    accepted: str | None = setting(
        None, help="With write_labels: list of accepted regions that the report downloaded.", is_path=True
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.write_labels is None) != (self.accepted is None):
            raise UsageError(
                "`write_labels`, a new folder, and `accepted`, the list that the report downloaded, need each other."
            )
        if self.streaming:
            raise UsageError("`streaming`: a check of labels needs random access to the images; leave it out.")


@dataclass(kw_only=True)
class FindSettings(ImageSettings):
    """Settings of a search: what is shown, where it is searched, and what counts as alike."""

    _argument_group_name = "search"

    image: str = setting(help="Image that shows what is searched.")
    pixel: list[int] | None = setting(
        None, help="Row and column of a pixel of it, or of several: '150 60 170 64' is two.", at_least=0
    )
    box: list[int] | None = setting(
        None,
        help="Instead of pixels, the first row and column of a box, and those after its last.",
        length=4,
        at_least=0,
    )
    input: list[str] = setting(help="Images, folders that are searched for images, or quoted patterns.")
    output_dir: str = setting("found", help="Folder for find.html, matches.csv, masks and overlays.", is_path=True)
    cache_dir: str | None = setting(
        None,
        help="Folder in which the embeddings of searched images are kept, so that the next search is fast.",
        is_path=True,
    )
    threshold: float = setting(0.8, help="Smallest cosine in a mask.", at_least=-1, at_most=1)
    top: int = setting(50, help="Number of images in the list, the most similar ones.", at_least=1)

    def __post_init__(self):
        super().__post_init__()
        if (self.pixel is None) == (self.box is None):
            raise UsageError("Show what is searched: either `pixel` or `box`.")
        if self.pixel is not None and (not self.pixel or len(self.pixel) % 2):
            raise UsageError(f"`pixel` needs a row and a column of every pixel, got {self.pixel}.")
        if not self.input:
            raise UsageError("Name the images to search: `input='IMAGE, FOLDER or PATTERN'`.")


@dataclass
class DemoSettings(ImageSettings):
    """Settings of the demo: network, example images and port."""

    model: str = setting(
        os.environ.get("MSCTR_MODEL", ""),
        help="Saved folder or Hub id of any AutoModelForSemanticSegmentation; or set MSCTR_MODEL.",
    )
    examples: str | None = setting(None, help="Folder with example images.", is_path=True)
    port: int = setting(7860, help="Port of the page.", at_least=0, at_most=65535)
    device: str | None = setting(None, help=_DEVICE)

    def __post_init__(self):
        super().__post_init__()
        if not self.model:
            raise UsageError("Name the network: `model='FOLDER or Hub id'`.")


def _as_tuple(values: Any, kind: type) -> tuple | None:
    """Return a list, an array or a tuple of numbers as a tuple; `None` if it is something else."""
    try:
        entries = tuple(values)
    except TypeError:
        return None
    return entries if all(isinstance(each, kind) for each in entries) else None


def _as_size(values: list[int] | None) -> Size | None:
    return None if values is None else (values[0], values[1])
