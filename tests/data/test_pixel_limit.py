"""The limit on the pixels of an image can be raised and lowered for every place that opens images."""

import os
import subprocess
import sys

import numpy as np
import pytest
from layouts import write_folder, write_image
from PIL import Image
from torch.utils.data import DataLoader

from msctr_hf.data import pixel_limit
from msctr_hf.data.checking import check_rows
from msctr_hf.data.folder_spec import read_folder_spec
from msctr_hf.data.images import read_image
from msctr_hf.data.settings import DatasetSettings, DataSettings, PreparationSettings
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.settings import DemoSettings, EmbeddingSettings, PredictionSettings, ScoringSettings


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv(pixel_limit.VARIABLE, "1")  # so that it is restored
    monkeypatch.delenv(pixel_limit.VARIABLE)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_an_image_at_the_limit_is_read_and_one_pixel_more_is_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    write_image(path, (15, 21))
    pixel_limit.set_max_image_pixels(15 * 21)
    assert read_image(path).size == (21, 15)
    pixel_limit.set_max_image_pixels(15 * 21 - 1)
    with pytest.raises(UsageError, match=rf"image.{suffix} .*315 pixels.*314 pixels.*raise `max_image_pixels`"):
        read_image(path)


def test_every_command_that_opens_images_has_the_setting():
    for settings, required in (
        (DataSettings, {}),
        (PreparationSettings, {}),
        (ScoringSettings, {"model": "m"}),
        (EmbeddingSettings, {"model": "m"}),
        (PredictionSettings, {"model": "m", "input": ["i"]}),
        (DemoSettings, {"model": "m"}),
    ):
        pixel_limit.set_max_image_pixels(7)
        settings(**required, max_image_pixels=1001)
        assert 2 * Image.MAX_IMAGE_PIXELS == 1001
    with pytest.raises(UsageError, match="`max_image_pixels` must be at least 1"):
        DatasetSettings(max_image_pixels=0)


def test_settings_that_do_not_name_a_limit_leave_that_of_pillow_alone():
    before = Image.MAX_IMAGE_PIXELS
    DatasetSettings()
    assert before == Image.MAX_IMAGE_PIXELS
    assert pixel_limit.VARIABLE not in os.environ


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_labels_and_images_of_a_check_obey_the_limit_in_its_workers_too(tmp_path, num_workers):
    root = write_folder(tmp_path)
    spec = read_folder_spec(root)
    rows = spec.index("train", root)
    pixel_limit.set_max_image_pixels(40 * 56 - 1)
    report = check_rows(rows, spec.reader(), 3, num_workers=num_workers, title="check")
    assert len(report.broken) == 4
    assert all("raise `max_image_pixels`" in fault for fault in report.broken.values())
    pixel_limit.set_max_image_pixels(40 * 56)
    assert not check_rows(rows, spec.reader(), 3, num_workers=num_workers, title="check").broken


def _limit_of_a_worker(_):
    return 2 * Image.MAX_IMAGE_PIXELS


def test_processes_that_are_started_inherit_the_limit():
    pixel_limit.set_max_image_pixels(12345)
    loader = DataLoader([0], num_workers=1, multiprocessing_context="spawn", collate_fn=_limit_of_a_worker)
    assert list(loader) == [12345]


def test_a_limit_in_the_environment_that_is_no_number_is_refused():
    program = "import msctr_hf.data.pixel_limit"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, pixel_limit.VARIABLE: "many"},
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert "must be a number of pixels, at least 1, got 'many'" in done.stderr


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_more_pixels_than_pillow_allows_is_read_after_the_limit_was_raised(tmp_path):
    Image.fromarray(np.zeros((9000, 20000), np.uint8)).save(tmp_path / "large.png")
    with pytest.raises(UsageError, match="180000000 pixels.*178956970 pixels.*raise `max_image_pixels`"):
        read_image(tmp_path / "large.png")
    pixel_limit.set_max_image_pixels(180_000_000)
    assert read_image(tmp_path / "large.png").size == (20000, 9000)
