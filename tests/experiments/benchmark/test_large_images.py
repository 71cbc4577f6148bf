"""The benchmark of large images measures all processes, and compares with its limits."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.benchmark import large_images as benchmark
from experiments.benchmark.measuring import misses_target
from msctr_hf.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_scenes(monkeypatch):
    monkeypatch.setattr(benchmark, "SMALL", 64)
    monkeypatch.setattr(benchmark, "SCENE", (75, 100))


def test_rows_have_memory_and_speed_and_miss_their_target_above_the_limit(monkeypatch):
    peaks = {"small": 2000.0, "copy": 2500.0, "tiles": 2501.0, "strips": 1900.0}

    def run(command):
        settings = dict(zip(command[1::2], command[2::2], strict=False))
        if command[0] == "prepare":
            return 0.0, 1.0
        if command[0] == "predict":
            assert Path(settings["--input"]).is_file()
            return (3072.0 if settings["--input"].endswith("png") else 3073.0), 4.0
        data_dir = Path(settings["--data_dir"])
        output_dir = Path(settings["--output_dir"])
        output_dir.mkdir()
        speed = 3.0 if data_dir.name == "small" else 1.5
        lines = [{"images_per_second": 9.0}, {"images_per_second": speed}, {"validation/mean_iou": 0}]
        (output_dir / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return peaks[data_dir.name], 1.0

    monkeypatch.setattr(benchmark, "peak_of_processes", run)
    rows = benchmark.large_images((200, 220), 2, CPU)
    assert [row["command"] for row in rows] == ["train"] * 4 + ["predict"] * 3
    assert [row["limited MB"] for row in rows] == [None, 500, 501, -100, 3072, 3073, 3073]
    assert [misses_target(row) for row in rows] == [False, False, True, False, False, True, True]
    assert rows[1]["images/s ratio"] == 0.5
    assert rows[4]["images/s"] == 0.25


def test_the_large_image_is_the_same_in_every_format(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "peak_of_processes", lambda command: (0.0, 1.0))
    benchmark._write_small(tmp_path / "small")
    benchmark._write_large(tmp_path, (200, 220))
    image, label = benchmark._mosaic((200, 220))
    for name, suffix in (("png", "png"), ("tiles", "tif"), ("strips", "tif")):
        for kind, pixels in (("images", image), ("labels", label)):
            assert np.array_equal(np.asarray(Image.open(tmp_path / f"{name}/train/{kind}/0.{suffix}")), pixels)


def test_the_memory_of_processes_that_a_command_starts_is_counted():
    own = benchmark._pss_megabytes(os.getpid())
    assert own > 100
    assert benchmark._pss_megabytes(2**22 + 1) == 0


def test_missing_rasterio_and_a_gpu_are_reported_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(UsageError, match=r"needs rasterio: pip install"):
        benchmark._rasterio()
    with pytest.raises(UsageError, match="leave --device out"):
        benchmark.large_images((10, 10), 2, torch.device("cuda"))
