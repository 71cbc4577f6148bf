"""Benchmark training and prediction of images of 12,000 x 9,000 pixels: memory of all processes, and speed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from msctr_hf.data.labels import IGNORE_INDEX
from msctr_hf.data.synthetic import SYNTHETIC_CLASSES, draw_scene
from msctr_hf.errors import UsageError

MORE_MEGABYTES = 500.0  # that training on large images may take in addition to training on images of one crop
PREDICTION_MEGABYTES = 3072.0
SMALL, SCENE = 512, (750, 1000)  # side of a small image; height and width of the scenes in a large one
SMALL_IMAGES = 16
TILE, OVERLAP, STORED_TILE, TIFF_TILE = 1024, 128, 512, 512
BETWEEN_SAMPLES = 0.25  # seconds; reading the memory of a process holds it up
_NOTHING_MEASURED = {"images/s ratio": None, "limited MB": None, "limit": None, "limit target": None}
NETWORK = (
    "--backbone", "tf_efficientnet_lite0", "--backbone_weights", "none", "--decode_head", "upernet",
    "--hidden_size", "64", "--auxiliary_hidden_size", "64", "--channels_last", "true",
)  # fmt: skip


def large_images(size: Sequence[int], steps: int, device: torch.device) -> list[dict]:
    """Train on and predict a large PNG, from its copy in tiles, and a large TIFF in tiles and in strips.

    Every row has the highest sum of the proportional set sizes (PSS) of all processes of a command, in MB. Validation
    images are small, so that a row takes minutes.

    Args:
        size (`Sequence[int]`): Height and width of the large images, in pixels.
        steps (`int`): Number of training steps, of two crops of 512x512 each.
        device (`torch.device`): The CPU, on which this is measured.
    """
    if device.type != "cpu":
        raise UsageError("`large_images` is measured on the CPU: leave --device out.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = _trained(folder, f"{SMALL}x{SMALL} PNG", _write_small(folder / "small"), [], steps)
        training, prediction = [base], []
        for kind, (data_dir, image) in _write_large(folder, size).items():
            tiles = ["--tile_size", str(TILE), str(TILE), "--tile_overlap", str(OVERLAP)]
            training.append(_trained(folder, kind, data_dir, tiles, steps))
            prediction.append(_predicted(folder, kind, image, folder / "runs/0/last"))
    for row in training:
        row["images/s ratio"] = row["images/s"] / base["images/s"]
        if row is not base:
            _add_limit(row, row["peak MB"] - base["peak MB"], MORE_MEGABYTES)
    for row in prediction:
        _add_limit(row, row["peak MB"], PREDICTION_MEGABYTES)
    return training + prediction


def _add_limit(row: dict[str, Any], megabytes: float, limit: float) -> None:
    """Add how many times the memory fits into its limit, which must be at least once."""
    row |= {"limited MB": megabytes, "limit": limit / max(megabytes, 1.0), "limit target": 1.0}


def _trained(folder: Path, kind: str, data_dir: Path, options: Sequence[str], steps: int) -> dict[str, Any]:
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    output_dir = runs / str(len(list(runs.iterdir())))
    every = str(max(1, steps // 2))
    command = [
        "train", "--dataset", "folder", "--data_dir", str(data_dir), "--output_dir", str(output_dir), *NETWORK,
        "--crop_size", "512", "512", "--batch_size", "2", "--num_workers", "2", "--max_steps", str(steps),
        "--validation_steps", str(steps), "--checkpointing_steps", str(steps), "--logging_steps", every,
        "--report_to", "none", *options,
    ]  # fmt: skip
    peak, _ = peak_of_processes(command)
    log = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    speeds = [line["images_per_second"] for line in log if "images_per_second" in line]
    return {"command": "train", "images": kind, "peak MB": peak, "images/s": speeds[-1], **_NOTHING_MEASURED}


def _predicted(folder: Path, kind: str, image: Path, model: Path) -> dict[str, Any]:
    command = [
        "predict", "--model", str(model), "--input", str(image), "--output_dir", str(folder / f"maps_{image.stem}"),
        "--window_size", "512", "512", "--window_stride", "448", "448", "--batch_size", "2",
    ]  # fmt: skip
    peak, seconds = peak_of_processes(command)
    row = {"command": "predict", "images": kind, "peak MB": peak, "images/s": 1 / seconds}
    return {**row, **_NOTHING_MEASURED}


def peak_of_processes(arguments: Sequence[str]) -> tuple[float, float]:
    """Run a command of msctr, and measure the highest sum of the PSS of its processes in MB, and its seconds."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "msctr_hf", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        peaks = [0.0]
        watch = threading.Thread(target=_watch, args=(process, peaks))
        watch.start()
        output = process.communicate()[0]
        watch.join()
    if process.returncode != 0:
        raise RuntimeError(f"msctr {' '.join(arguments)} failed:\n{output}")
    return max(peaks), time.perf_counter() - start


def _watch(process: subprocess.Popen, peaks: list[float]) -> None:
    while process.poll() is None:
        peaks.append(_pss_megabytes(process.pid))
        time.sleep(BETWEEN_SAMPLES)


def _pss_megabytes(pid: int) -> float:
    """Sum the proportional set sizes of a process and all that it started, in MB."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:  # it ended between two samples
        return 0.0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, OSError):
            continue
    return total / 2**20


def _write_small(folder: Path) -> Path:
    for split, first, count in (("train", 0, SMALL_IMAGES), ("validation", SMALL_IMAGES, 4)):
        for number in range(first, first + count):
            image, label = draw_scene((0, number), (SMALL, SMALL))
            for kind, one in (("images", image), ("labels", label)):
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                one.save(folder / split / kind / f"{number}.png")
    return _describe(folder)


def _describe(folder: Path) -> Path:
    splits = {split: {kind: f"{split}/{kind}" for kind in ("images", "labels")} for split in ("train", "validation")}
    description = {"classes": list(SYNTHETIC_CLASSES), "ignored": [IGNORE_INDEX], "splits": splits}
    (folder / "dataset.yaml").write_text(json.dumps(description))
    return folder


def _write_large(folder: Path, size: Sequence[int]) -> dict[str, tuple[Path, Path]]:
    """Write a large training image in every format; return the folder to train on and the image."""
    rasterio = _rasterio()
    for kind, pixels in zip(("images", "labels"), _mosaic(size), strict=True):
        for name in ("png", "tiles", "strips"):
            (folder / name / "train" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"png/train/{kind}/0.png", compress_level=1)
        Image.fromarray(pixels).save(folder / f"strips/train/{kind}/0.tif", compression="tiff_lzw", tiffinfo={278: 16})
        bands = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
        with rasterio.open(
            folder / f"tiles/train/{kind}/0.tif", "w", driver="GTiff", dtype="uint8", count=len(bands),
            height=size[0], width=size[1], compress="deflate", predictor=2, tiled=True, blockxsize=TIFF_TILE,
            blockysize=TIFF_TILE, interleave="pixel", **({"photometric": "rgb"} if len(bands) == 3 else {}),
        ) as file:  # fmt: skip
            file.write(bands)
    for name in ("png", "tiles", "strips"):
        shutil.copytree(folder / "small/validation", folder / name / "validation")
        _describe(folder / name)
    peak_of_processes(
        ["prepare", "--dataset", "folder", "--data_dir", str(folder / "png"), "--predecode", "--tile_size",
         str(STORED_TILE), str(STORED_TILE), "--output_dir", str(folder / "copy"), "--num_workers", "1"]
    )  # fmt: skip
    return {
        "PNG, copied in tiles": (folder / "copy", folder / "png/train/images/0.png"),
        "TIFF in tiles": (folder / "tiles", folder / "tiles/train/images/0.tif"),
        "TIFF in strips": (folder / "strips", folder / "strips/train/images/0.tif"),
    }


def _mosaic(size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw a large image of many scenes, and its labels."""
    image, label = np.empty((*size, 3), np.uint8), np.empty(size, np.uint8)
    scenes = [draw_scene((1, number), SCENE) for number in range(8)]
    for row, top in enumerate(range(0, size[0], SCENE[0])):
        for column, left in enumerate(range(0, size[1], SCENE[1])):
            for pixels, scene in zip((image, label), scenes[(3 * row + column) % len(scenes)], strict=True):
                place = pixels[top : top + SCENE[0], left : left + SCENE[1]]
                place[:] = np.asarray(scene)[: place.shape[0], : place.shape[1]]
    return image, label


def _rasterio() -> Any:
    try:
        import rasterio
    except ImportError:
        raise UsageError(
            'Writing a TIFF in tiles, which `large_images` reads, needs rasterio: pip install ".[geo]".'
        ) from None
    return rasterio
