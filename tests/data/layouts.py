"""Small data sets on disk, in the layouts users have."""

import numpy as np
import yaml
from PIL import Image


def write_picture(path, size=(24, 32), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_labels(path, labels, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    if palette is not None:
        picture = picture.convert("P")
        picture.putdata(labels.ravel().tolist())
        picture.putpalette(palette)
    picture.save(path)


def write_folder(root, num_train=4, num_validation=2, size=(40, 56), description=None):
    """A generic folder with three classes; returns its path."""
    for split, count in (("train", num_train), ("val", num_validation)):
        for number in range(count):
            write_picture(root / split / "images" / f"{number}.jpg", size, seed=number)
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
