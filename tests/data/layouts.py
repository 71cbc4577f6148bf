"""Write small data sets to disk, in the layouts of the official files and of user folders."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image


def write_image(path, size=(24, 32), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_labels(path, labels, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if palette is not None:
        image = image.convert("P")
        image.putdata(labels.ravel().tolist())
        image.putpalette(palette)
    image.save(path)


def write_folder(root, num_train=4, num_validation=2, size=(40, 56), description=None):
    """Write a folder with a `dataset.yaml` of three classes, and return its path."""
    for split, count in (("train", num_train), ("val", num_validation)):
        for number in range(count):
            write_image(root / split / "images" / f"{number}.jpg", size, seed=number)
            labels = np.zeros(size, dtype=np.uint8)
            labels[size[0] // 2 :] = 1
            labels[: size[0] // 3, : size[1] // 3] = 2
            write_labels(root / split / "labels" / f"{number}.png", labels)
    default = {
        "classes": ["sky", "road", "car"],
        "splits": {
            "train": {"images": "train/images", "labels": "train/labels"},
            "validation": {"images": "val/images", "labels": "val/labels"},
        },
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump({**default, **(description or {})}))
    return root


@dataclass(frozen=True)
class Layout:
    """A data set in its official layout: file names of the training split, in which {} is a number."""

    dataset: str
    image: str
    label: str
    raw: tuple[int, ...]  # some raw label values
    train_ids: tuple[int, ...]  # train ids of these values
    unmapped: int  # a raw value that is neither a class nor ignored
    names: str | None = None  # file that lists the images
    ignores_unmapped: bool = False
    folders: tuple[str, ...] = ()  # further folders of the layout

    def pair(self, root, number=0):
        return Path(root) / self.image.format(number), Path(root) / self.label.format(number)

    def write(self, root, count=3, size=(12, 16)):
        """Write images, and labels whose rows cycle through the raw values; return the folder."""
        labels = np.resize(np.asarray(self.raw, dtype=np.uint8), (size[1], size[0])).T.copy()
        for number in range(count):
            image, label = self.pair(root, number)
            write_image(image, size, seed=number)
            write_labels(label, labels)
        for folder in self.folders:
            (Path(root) / folder).mkdir(parents=True, exist_ok=True)
        if self.names is not None:
            path = Path(root) / self.names
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{Path(self.image.format(number)).stem}\n" for number in range(count)))
        if self.dataset == "folder":
            (Path(root) / "dataset.yaml").write_text(yaml.safe_dump({
                "classes": ["sky", "road", "car"], "label_values": {0: "sky", 1: "road", 2: "car"}, "ignored": [255],
                "splits": {"train": {"images": "train/images", "labels": "train/labels"}},
            }))  # fmt: skip
        return Path(root)


_VOC = "VOCdevkit/VOC2010"
# videos of the training split of CaDIS
_VIDEOS = (1, 3, 4, 6, 8, 9, 10, 11, 13, 14, 15, 17, 18, 19, 20, 21, 23, 24, 25)
_PADDED, _PLAIN = (
    tuple(f"{name.format(number)}/{kind}" for number in _VIDEOS for kind in ("Images", "Labels"))
    for name in ("Video{:02d}", "Video{}")
)
_CITY = "train/aachen/aachen_00000{}_000019"
LAYOUTS = {
    "cityscapes": Layout(
        "cityscapes", f"leftImg8bit/{_CITY}_leftImg8bit.png", f"gtFine/{_CITY}_gtFine_labelIds.png",
        (7, 11, 33, 0), (0, 2, 18, 255), 200, ignores_unmapped=True,
    ),
    "ade20k": Layout(
        "ade20k", "ADEChallengeData2016/images/training/ADE_train_0000000{}.jpg",
        "ADEChallengeData2016/annotations/training/ADE_train_0000000{}.png", (0, 1, 150), (255, 0, 149), 151,
    ),
    "pascal_context": Layout(
        "pascal_context", _VOC + "/JPEGImages/2008_00000{}.jpg", _VOC + "/SegmentationClassContext/2008_00000{}.png",
        (0, 1, 2, 59), (255, 0, 1, 58), 60, names=_VOC + "/ImageSets/SegmentationContext/train.txt",
    ),
    "pascal_context_by_split": Layout(
        "pascal_context", "train/image/2008_00000{}.jpg", "train/label/2008_00000{}.png", (0, 1, 59), (255, 0, 58), 60
    ),
    "pascal_context_60": Layout(
        "pascal_context_60", "train/image/2008_00000{}.jpg", "train/label/2008_00000{}.png", (0, 1, 59), (0, 1, 59), 60
    ),
    "pascal_context_voc_order": Layout(
        "pascal_context_voc_order", "train/image/2008_00000{}.jpg", "train/label/2008_00000{}.png",
        (0, 1, 2, 21, 59), (255, 0, 5, 1, 58), 60,
    ),
    "cadis_task1": Layout(
        "cadis_task1", "Video01/Images/Video1_frame00000{}.png", "Video01/Labels/Video1_frame00000{}.png",
        (0, 6, 7, 35), (0, 6, 7, 7), 36, folders=_PADDED,
    ),
    "cadis_task2": Layout(
        "cadis_task2", "Video25/Images/Video25_frame00000{}.png", "Video25/Labels/Video25_frame00000{}.png",
        (6, 32, 19, 25), (6, 7, 16, 255), 40, folders=_PADDED,
    ),
    "cadis_task3": Layout(
        "cadis_task3", "Video3/Images/Video3_frame00000{}.png", "Video3/Labels/Video3_frame00000{}.png",
        (24, 25, 0), (24, 255, 0), 36, folders=_PLAIN,
    ),
    "camvid": Layout("camvid", "train/images/0001TP_00669{}.jpg", "train/labels/0001TP_00669{}.png",
                     (0, 10, 11), (0, 10, 255), 12),
    "camvid_of_segnet": Layout("camvid", "train/0001TP_00669{}.png", "trainannot/0001TP_00669{}.png",
                               (0, 10, 11), (0, 10, 255), 12),
    "folder": Layout("folder", "train/images/a/{}.jpg", "train/labels/a/{}.png", (0, 2, 255), (0, 2, 255), 3),
}  # fmt: skip
