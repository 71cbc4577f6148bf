"""Benchmark loading and augmentation: from files on disk to training samples, on one core."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as tvF

from msctr_hf.data.augmentation import CROP_TRIES, TrainingAugmentation
from msctr_hf.data.color_jitter import HUE_RANGE, JITTER_RANGE
from msctr_hf.data.labels import IGNORE_INDEX
from msctr_hf.data.loaders import AugmentedDataset
from msctr_hf.data.loading import get_dataset_spec, load_segmentation_dataset
from msctr_hf.data.predecoded import write_predecoded
from msctr_hf.data.synthetic import SYNTHETIC_CLASSES, draw_scene
from msctr_hf.errors import UsageError

from .measuring import add_targets, compare, median_seconds, per_second

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAMPLES, DRAWS = 4, 12  # images on disk; crops per round, enough to average over random scales
CASES: dict[str, dict[str, Any]] = {
    "PNG as Cityscapes": {
        "size": (1024, 2048), "crop": (512, 1024), "suffix": "png", "options": {}, "target": 1.7, "cache target": 10.0
    },
    "JPEG as ADE20K": {
        "size": (512, 683), "crop": (512, 512), "suffix": "jpg", "options": {"quality": 92}, "target": 2.5,
        "cache target": None,
    },
}  # fmt: skip


def data(repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare samples from files and from a pre-decoded copy with the released code's order of work."""
    rows = []
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            ways = _ways(Path(folder), case)
            steps = {way: over_draws(sample) for way, sample in ways.items()}
            seconds = {way: total / DRAWS for way, total in median_seconds(steps, repetitions or 5, device).items()}
        for way, target in (("files", case["target"]), ("pre-decoded", case["cache target"])):
            row: dict[str, Any] = {"images": name, "ours from": way}
            row |= compare({"released order": seconds["released"], "ours": seconds[way]})
            row["ours images/s"] = per_second(1, row["ours ms"])
            add_targets(row, device, speed=target)
            rows.append(row)
    return rows


def seconds_per_crop(folder: Path, crop: Sequence[int], repetitions: int) -> float:
    """Measure the seconds that one worker needs for a training crop from a PNG like those of Cityscapes."""
    case = {**CASES["PNG as Cityscapes"], "crop": tuple(crop)}
    write_images(folder, case)
    crops = _crops(folder, case)
    return median_seconds({"crops": over_draws(crops)}, repetitions, torch.device("cpu"))["crops"] / DRAWS


def _crops(folder: Path, case: dict[str, Any]) -> Callable[[int], Any]:
    samples = AugmentedDataset(
        load_segmentation_dataset("folder", "train", folder), TrainingAugmentation(case["crop"], MEAN, STD), seed=0
    )
    return lambda draw: samples[0, draw % SAMPLES, draw]


def _ways(folder: Path, case: dict[str, Any]) -> dict[str, Callable[[int], Any]]:
    """Map the name of every implementation to its function, which takes a number and makes that random sample."""
    write_images(folder, case)
    files = load_segmentation_dataset("folder", "train", folder)
    copy = folder / "copy"
    classes = get_dataset_spec("folder", folder).classes
    for _ in write_predecoded(files, "train", copy, name="folder", classes=classes):
        pass
    (copy / "dataset.yaml").write_text((folder / "dataset.yaml").read_text())
    return {
        "released": lambda draw: released_order(folder, case["suffix"], draw, case["crop"]),
        "files": _crops(folder, case),
        "pre-decoded": _crops(copy, case),
    }


def write_images(folder: Path, case: dict[str, Any]) -> None:
    """Write drawn images and labels as files of a data set in a folder."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number in range(SAMPLES):
        image, label = draw_scene((0, number), case["size"])
        image = image.filter(ImageFilter.GaussianBlur(0.9))  # so that a PNG takes 2.3 MB, as in Cityscapes
        image.save(folder / f"images/{number}.{case['suffix']}", **case["options"])
        label.save(folder / f"labels/{number}.png")
    description = {
        "classes": list(SYNTHETIC_CLASSES),
        "ignored": [IGNORE_INDEX],
        "splits": {"train": {"images": "images", "labels": "labels"}},
    }
    (folder / "dataset.yaml").write_text(json.dumps(description))


def over_draws(sample: Callable[[int], Any]) -> Callable[[], None]:
    """Build a step that makes `DRAWS` random samples, each from its number."""

    def step() -> None:
        for draw in range(DRAWS):
            sample(draw)

    return step


def released_order(folder: Path, suffix: str, draw: int, crop: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment in the released code's order of work: everything on the whole image, then the crop.

    It decodes, maps labels, mirrors, resizes, pads and crops with OpenCV, then jitters, scales and normalizes with
    torchvision on Pillow images. This code was written for the comparison.
    """
    cv2 = _opencv()
    random = np.random.default_rng(draw)
    name = str(draw % SAMPLES)
    image = cv2.cvtColor(cv2.imread(str(folder / f"images/{name}.{suffix}")), cv2.COLOR_BGR2RGB)
    labels = np.arange(256, dtype=np.uint8)[cv2.imread(str(folder / f"labels/{name}.png"), cv2.IMREAD_UNCHANGED)]
    if random.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    scale, aspect = random.uniform(0.5, 2.0), random.uniform(0.9, 1.1)
    height, width = (
        round(image.shape[0] * scale / math.sqrt(aspect)),
        round(image.shape[1] * scale * math.sqrt(aspect)),
    )
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    rows, columns = max(crop[0] - height, 0), max(crop[1] - width, 0)
    top, left = int(random.integers(rows + 1)), int(random.integers(columns + 1))
    border = (top, rows - top, left, columns - left, cv2.BORDER_CONSTANT)
    image = cv2.copyMakeBorder(image, *border, value=[round(255 * mean) for mean in MEAN])
    labels = cv2.copyMakeBorder(labels, *border, value=IGNORE_INDEX)
    for _ in range(CROP_TRIES):
        y, x = (int(random.integers(side - of + 1)) for side, of in zip(labels.shape, crop, strict=True))
        window = labels[y : y + crop[0], x : x + crop[1]]
        values, counts = np.unique(window, return_counts=True)
        counts = counts[values != IGNORE_INDEX]
        if len(counts) and counts.max() < 0.75 * counts.sum():
            break
    jitter = ColorJitter(JITTER_RANGE, JITTER_RANGE, JITTER_RANGE, HUE_RANGE)
    jittered = jitter(Image.fromarray(np.ascontiguousarray(image[y : y + crop[0], x : x + crop[1]])))
    pixel_values = tvF.normalize(tvF.to_tensor(jittered), MEAN, STD)
    return pixel_values, torch.from_numpy(np.ascontiguousarray(window)).long()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise UsageError(
            "The released order of work, with which `data` compares, needs OpenCV: pip install opencv-python-headless."
        ) from None
    cv2.setNumThreads(torch.get_num_threads())
    return cv2
