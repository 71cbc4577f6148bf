"""Data sets of colored boxes, and a network that knows the colors: an oracle for what is done with embeddings."""

from types import SimpleNamespace

import numpy as np
import torch
import yaml
from conftest import TIMM_TINY
from PIL import Image
from torch import nn

from msctr_hf import MsctrConfig, MsctrImageProcessor
from msctr_hf.data.loading import load_segmentation_dataset
from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.predictor import Predictor
from msctr_hf.evaluation.settings import InferenceSettings

CLASSES = ("ground", "tree", "car")
COLORS = ((200, 60, 60), (40, 200, 40), (40, 40, 200))
SIZE = (64, 96)
BOX = (slice(16, 40), slice(24, 56))  # of the object in every image


class ColorNetwork(nn.Module):
    """Network whose embeddings are mean colors of blocks of 4 x 4 pixels, and which predicts the nearest class."""

    def __init__(self):
        super().__init__()
        self.config = MsctrConfig(backbone_config=TIMM_TINY, id2label=dict(enumerate(CLASSES)))
        self.colors = nn.Parameter(torch.tensor(COLORS) / 255, requires_grad=False)

    def embedding_stages(self, features="projection", stage=None):
        return [1]

    def embed(self, pixel_values, features="projection", stage=None):
        return nn.functional.normalize(nn.functional.avg_pool2d(pixel_values, 4), dim=1)

    def forward(self, pixel_values):
        blocks = nn.functional.avg_pool2d(pixel_values, 4)
        distances = (blocks[:, None] - self.colors[None, :, :, None, None]).square().sum(dim=2)
        return SimpleNamespace(logits=-20 * distances)


def color_embedder(window_size=None):
    processor = MsctrImageProcessor(image_mean=[0, 0, 0], image_std=[1, 1, 1], size_divisor=4)
    return Embedder(Predictor(ColorNetwork().eval(), processor, InferenceSettings(window_size=window_size)))


def write_boxes(root, objects, **description):
    """Write a folder data set with one box in every image.

    `objects` maps names of images to the color of the box and its label; labels are raw values, ten times the class.
    """
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / "train" / kind).mkdir(parents=True)
    for name, (color, label) in objects.items():
        pixels = np.full((*SIZE, 3), COLORS[0])
        pixels[BOX] = color
        pixels = pixels + random.integers(-5, 6, pixels.shape)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"train/images/{name}.png")
        labels = np.zeros(SIZE, dtype=np.uint8)
        labels[BOX] = 10 * label
        labels[:4] = 255
        Image.fromarray(labels).save(root / f"train/labels/{name}.png")
    default = {
        "classes": list(CLASSES),
        "label_values": {0: "ground", 10: "tree", 20: "car"},
        "ignored": [255],
        "splits": {"train": {"images": "train/images", "labels": "train/labels"}},
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump({**default, **description}))
    return load_segmentation_dataset("folder", "train", root)
