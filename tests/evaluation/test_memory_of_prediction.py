"""Memory of the prediction of large images, measured in a process of its own."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from msctr_hf import MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.evaluation import image_preparation
from msctr_hf.evaluation.predictor import Predictor
from msctr_hf.evaluation.settings import InferenceSettings

PROGRAM = """
import sys, warnings
from pathlib import Path
from types import SimpleNamespace
import torch
from msctr_hf import MsctrImageProcessor
from msctr_hf.evaluation.prediction import predict_files
from msctr_hf.evaluation.predictor import Predictor
from msctr_hf.evaluation.settings import InferenceSettings

class Network(torch.nn.Module):
    config = SimpleNamespace(num_labels=4, id2label={label: f"class {label}" for label in range(4)})
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 32, stride=32)
    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.layer(pixel_values))

warnings.simplefilter("ignore")
settings = InferenceSettings(window_size=(1024, 1024), window_stride=(1024, 1024))
predict_files(Predictor(Network().eval(), MsctrImageProcessor(), settings), sys.argv[1], sys.argv[2])
# not ru_maxrss, which a program takes over from the process that starts it
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak memory of a process on Linux only")
@pytest.mark.parametrize(
    ("size", "most"),
    [
        pytest.param((6000, 4500), 1.5, marks=pytest.mark.slow),
        pytest.param((12_000, 9000), 3, marks=pytest.mark.long),
    ],
)
def test_two_large_images_are_predicted_in_windows_within_a_stated_memory(tmp_path, size, most):
    (tmp_path / "images").mkdir()
    for name in "ab":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).save(tmp_path / f"images/{name}.jpg")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "images", tmp_path / "maps"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "maps").iterdir())) == 4
    assert int(done.stdout.split()[-1]) / 2**20 < most  # GiB


def test_an_image_prepared_in_strips_equals_the_one_prepared_at_once(tiny_config, monkeypatch):
    model = MsctrForSemanticSegmentation(tiny_config())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 41, 3), dtype=np.uint8))
    whole = Predictor(model, MsctrImageProcessor(size_divisor=32)).prepare([image, image])
    monkeypatch.setattr(image_preparation, "PREPARED_ROWS", 16)
    strips = Predictor(model, MsctrImageProcessor(size_divisor=32)).prepare([image, image])
    assert torch.equal(whole, strips)


@pytest.mark.parametrize("flip", [False, True])
def test_windows_of_large_images_are_prepared_one_row_after_another_to_the_same_labels(tiny_config, monkeypatch, flip):
    model = MsctrForSemanticSegmentation(tiny_config()).eval()
    images = [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (90, 70, 3), dtype=np.uint8)) for n in range(3)
    ]
    settings = InferenceSettings(window_size=(32, 32), window_stride=(24, 24), flip=flip, batch_size=2)
    predictor = Predictor(model, MsctrImageProcessor(), settings)
    whole = list(predictor(images))
    monkeypatch.setattr(image_preparation, "PREPARED_ROWS", 40)
    prepared = []
    monkeypatch.setattr(Predictor, "prepare", lambda *_: pytest.fail("whole images were prepared"))
    of_images = image_preparation.ImagePreparation.__call__
    monkeypatch.setattr(
        image_preparation.ImagePreparation,
        "__call__",
        lambda self, images, device: prepared.append(images[0].size) or of_images(self, images, device),
    )
    assert len(np.unique(whole)) > 1
    assert all(map(np.array_equal, predictor(images), whole))
    assert set(prepared) == {(70, 32)}
