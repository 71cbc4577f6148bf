"""What a data set is: its classes, its raw label values and its folders, as data.

To add one, write a `DatasetSpec` and put it into `DATASETS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .file_source import FileSource, PairedFiles
from .labels import IGNORE_INDEX, Color
from .synthetic import SYNTHETIC_CLASSES, SYNTHETIC_PALETTE, SyntheticSource

if TYPE_CHECKING:
    from datasets import Dataset


class Source(Protocol):
    """Where the samples of a data set come from."""

    def load(self, spec: DatasetSpec, split: str, data_dir: Path | None) -> Dataset:
        """Return a dataset with `image`, `label` and `image_id`."""


@dataclass(frozen=True)
class DatasetSpec:
    """Facts about a data set.

    Args:
        name (`str`): The name users type.
        classes (`Sequence[str]`): Class names; their positions are the train ids.
        palette (`Sequence[Color]`): RGB colour of every class.
        source (`Source`, *optional*): Where samples come from; `None` while a data set cannot be read yet.
        label_values (`Mapping`): Raw label value, or RGB colour, -> train id.
        ignored (`frozenset`): Raw values that are ignored; `None` ignores every value not listed.
        homepage (`str`): Where to get it.
    """

    name: str
    classes: Sequence[str]
    palette: Sequence[Color]
    source: Source | None
    label_values: Mapping[int | Color, int]
    ignored: frozenset[int | Color] | None = frozenset()
    homepage: str = ""

    @property
    def id2label(self) -> dict[int, str]:
        """Train id -> class name."""
        return dict(enumerate(self.classes))


def generated_palette(num_classes: int) -> list[Color]:
    """Distinct RGB colours by spreading the bits of the class number, as in PASCAL VOC."""
    palette = []
    for label in range(1, num_classes + 1):
        red = green = blue = 0
        for bit in range(8):
            red |= (label >> (3 * bit) & 1) << (7 - bit)
            green |= (label >> (3 * bit + 1) & 1) << (7 - bit)
            blue |= (label >> (3 * bit + 2) & 1) << (7 - bit)
        palette.append((red, green, blue))
    return palette


def _identity(num_classes: int) -> dict[int | Color, int]:
    return {label: label for label in range(num_classes)}


def _from_one(num_classes: int) -> dict[int | Color, int]:
    return {label + 1: label for label in range(num_classes)}


def _build_specs() -> dict[str, DatasetSpec]:
    """All named data sets; `folder` is described by the user's own `dataset.yaml` instead (see loading.py)."""
    cityscapes = FileSource(
        {
            split: PairedFiles(
                f"leftImg8bit/{folder}", f"gtFine/{folder}", ("_leftImg8bit.png",), "_gtFine_labelIds.png"
            )
            for split, folder in (("train", "train"), ("validation", "val"), ("test", "test"))
        }
    )
    ade20k = FileSource(
        {
            split: PairedFiles(f"images/{split_folder}", f"annotations/{split_folder}", (".jpg",), ".png")
            for split, split_folder in (("train", "training"), ("validation", "validation"))
        },
        root="ADEChallengeData2016",
    )
    camvid = FileSource(
        {
            split: PairedFiles(f"{folder}/images", f"{folder}/labels", (".jpg", ".png"), ".png")
            for split, folder in (("train", "train"), ("validation", "val"), ("test", "test"))
        }
    )
    specs = [
        DatasetSpec(
            "synthetic_scenes",
            SYNTHETIC_CLASSES,
            SYNTHETIC_PALETTE,
            SyntheticSource(),
            _identity(len(SYNTHETIC_CLASSES)),
            frozenset({IGNORE_INDEX}),
        ),
        DatasetSpec(
            "cityscapes",
            CITYSCAPES_CLASSES,
            CITYSCAPES_PALETTE,
            cityscapes,
            {raw: label for label, raw in enumerate(CITYSCAPES_LABEL_IDS)},
            ignored=None,
            homepage="https://www.cityscapes-dataset.com (registration)",
        ),
        DatasetSpec(
            "ade20k",
            ADE20K_CLASSES,
            generated_palette(150),
            ade20k,
            _from_one(150),
            frozenset({0}),
            homepage="http://sceneparsing.csail.mit.edu",
        ),
        DatasetSpec(
            "camvid",
            CAMVID_CLASSES,
            CAMVID_PALETTE,
            camvid,
            _identity(len(CAMVID_CLASSES)),
            frozenset({11, IGNORE_INDEX}),
            homepage="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid",
        ),
        DatasetSpec(
            "pascal_context",
            PASCAL_CONTEXT_CLASSES,
            generated_palette(59),
            None,
            _from_one(59),
            frozenset({0}),
            homepage="https://cs.stanford.edu/~roozbeh/pascal-context",
        ),
        *(
            DatasetSpec(
                f"cadis_task{task}",
                classes,
                generated_palette(len(classes)),
                None,
                {raw: label for label, raws in enumerate(groups) for raw in raws},
                frozenset(set(range(36)) - {raw for raws in groups for raw in raws}),
                homepage="https://cataracts.grand-challenge.org/CaDIS (access form)",
            )
            for task, classes, groups in CADIS_TASKS
        ),
    ]
    return {spec.name: spec for spec in specs}


CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip

CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CAMVID_PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip

ADE20K_CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
    "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
    "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path",
    "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase",
    "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus", "towel", "light",
    "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television receiver", "airplane",
    "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster",
    "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool",
    "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank",
    "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture",
    "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor",
    "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip

# In the alphabetical order of the 59-class label files.
PASCAL_CONTEXT_CLASSES = (
    "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle", "building", "bus",
    "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain", "dog", "door",
    "fence", "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike", "mountain",
    "mouse", "person", "plate", "platform", "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign",
    "sky", "snow", "sofa", "table", "track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window",
    "wood",
)  # fmt: skip

_CADIS_RAW = (
    "Pupil", "Surgical Tape", "Hand", "Eye Retractors", "Iris", "Skin", "Cornea", "Hydrodissection Cannula",
    "Viscoelastic Cannula", "Capsulorhexis Cystotome", "Rycroft Cannula", "Bonn Forceps", "Primary Knife",
    "Phacoemulsifier Handpiece", "Lens Injector", "I/A Handpiece", "Secondary Knife", "Micromanipulator",
    "I/A Handpiece Handle", "Capsulorhexis Forceps", "Rycroft Cannula Handle", "Phacoemulsifier Handpiece Handle",
    "Capsulorhexis Cystotome Handle", "Secondary Knife Handle", "Lens Injector Handle",
)  # fmt: skip
_ANATOMY = tuple((raw,) for raw in range(7))
# (task, class names, raw ids of every class); all raw ids not named are ignored
CADIS_TASKS = (
    (1, (*_CADIS_RAW[:7], "Instrument"), (*_ANATOMY, tuple(range(7, 36)))),
    (
        2,
        (
            *_CADIS_RAW[:7], "Cannula", "Cystotome", "Tissue Forceps", "Primary Knife", "Phacoemulsifier Handpiece",
            "Lens Injector", "I/A Handpiece", "Secondary Knife", "Micromanipulator", "Capsulorhexis Forceps",
        ),
        (
            *_ANATOMY, (7, 8, 10, 20, 27, 32), (9, 22), (11, 33), (12, 28), (13, 21), (14, 24), (15, 18), (16, 23),
            (17,), (19,),
        ),
    ),
    (3, _CADIS_RAW, tuple((raw,) for raw in range(25))),
)  # fmt: skip

DATASETS = _build_specs()
