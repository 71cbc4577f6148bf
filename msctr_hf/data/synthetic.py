"""`synthetic_scenes`: street-like images with exact labels, drawn on demand, equal for equal seeds.

A horizon splits sky from ground; a road runs toward it, houses and trees stand behind pavements, vehicles, persons,
poles and signs stand on them. Objects near the horizon are a few pixels large, near ones up to half the image.
Every class has a color range and a texture, ranges overlap, light and noise vary, so that neither color nor place
alone determines a class.

`synthetic_scenes_nir` shows the same scenes with a fourth band, near infrared. Half of its trees are artificial: in
red, green and blue they are as real ones; only the fourth band, in which real ones are bright, tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image, ImageDraw, ImageFilter

from ..errors import UsageError
from .channels import Channels
from .labels import LabelMapping
from .regions import no_labels

SYNTHETIC_CLASSES = ("sky", "building", "road", "pavement", "tree", "car", "person", "pole", "sign")
SYNTHETIC_PALETTE = (
    (70, 130, 180), (70, 70, 70), (128, 64, 128), (244, 35, 232), (107, 142, 35), (0, 0, 142), (220, 20, 60),
    (153, 153, 153), (220, 220, 0),
)  # fmt: skip
SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, POLE, SIGN = range(len(SYNTHETIC_CLASSES))

# the classes of `synthetic_scenes_nir`, and their mean in near infrared
NIR_CLASSES = (*SYNTHETIC_CLASSES, "artificial tree")
NIR_PALETTE = (*SYNTHETIC_PALETTE, (0, 220, 170))
ARTIFICIAL_TREE = len(SYNTHETIC_CLASSES)
_NEAR_INFRARED = (40, 95, 60, 110, 190, 80, 120, 70, 100, 75)
_NIR_NOISE = 15

HEIGHT, WIDTH = 192, 256
SPLITS = {"train": (0, 400), "validation": (1, 60), "test": (2, 60)}  # first number of every seed, number of images

# (mean RGB, spread of the mean over objects) of every class.
_COLORS = {
    SKY: ((150, 185, 225), 25),
    BUILDING: ((150, 120, 105), 35),
    ROAD: ((95, 95, 100), 15),
    PAVEMENT: ((155, 150, 145), 18),
    TREE: ((70, 110, 55), 25),
    CAR: ((120, 60, 70), 60),
    PERSON: ((110, 80, 75), 50),
    POLE: ((90, 90, 95), 20),
    SIGN: ((210, 170, 60), 35),
}


@dataclass(frozen=True)
class SyntheticSource:
    """Source that draws scenes; nothing is read or written.

    Args:
        near_infrared (`bool`): Whether the scenes are those of `synthetic_scenes_nir`.
        channels (`Channels`, *optional*): Channels of the images, which are then arrays (H, W, N); RGB by default.
    """

    near_infrared: bool = False
    channels: Channels | None = None

    def reader(self, mapping: LabelMapping) -> DrawScenes:
        """Return the reader that draws the scene of a row."""
        return DrawScenes(self.near_infrared, self.channels)

    def index(
        self, split: str, data_dir: Path | None, corrections: Path | None = None, *, name: str, where_to_get: str = ""
    ) -> Dataset:
        """List the names of the scenes of one split; arguments about files are not used."""
        if split not in SPLITS:
            raise UsageError(f"{name} has the splits {sorted(SPLITS)}, not {split!r}.")
        return Dataset.from_dict({"image_id": [f"{split}_{number:04d}" for number in range(SPLITS[split][1])]})

    index_images = index  # scenes are drawn with their labels, which the reader leaves out


@dataclass(frozen=True)
class DrawScenes:
    """Reader that turns names of scenes into samples {image, label, image_id}.

    Args:
        near_infrared (`bool`): Whether the scenes are those of `synthetic_scenes_nir`.
        channels (`Channels`, *optional*): Channels of the images, which are then arrays (H, W, N); RGB by default.
        is_unlabeled (`bool`): Whether labels are replaced by `regions.no_labels`.
    """

    near_infrared: bool = False
    channels: Channels | None = None
    is_unlabeled: bool = False

    def __call__(self, batch: dict[str, list]) -> dict[str, list[Any]]:
        """Draw the scenes of a batch."""
        seeds = [(SPLITS[split][0], int(number)) for split, number in (name.split("_") for name in batch["image_id"])]
        scenes = list(map(self._draw, seeds))
        return {
            "image": [image for image, _ in scenes],
            "label": [no_labels(image) if self.is_unlabeled else label for image, label in scenes],
            "image_id": batch["image_id"],
        }

    def for_crops(self) -> DrawScenes:
        """Return this reader: a scene is always drawn whole."""
        return self

    def labels_only(self) -> DrawScenes:
        """Return this reader: labels are always drawn with their image."""
        return self

    def images_only(self) -> DrawScenes:
        """Return this reader: an image is always drawn with its labels."""
        return self

    def unlabeled(self) -> DrawScenes:
        """Return a reader whose samples have `no_labels`."""
        return replace(self, is_unlabeled=True)

    def with_channels(self, channels: Channels) -> DrawScenes:
        """Return a reader whose images have these channels."""
        return replace(self, channels=channels)

    def _draw(self, seed: tuple[int, ...]) -> tuple[Any, Image.Image]:
        if not self.near_infrared:
            image, label = draw_scene(seed)
            return (image if self.channels is None else self.channels.check(np.asarray(image), "A scene")), label
        bands, label = draw_bands(seed)
        if self.channels is None:
            return Image.fromarray(bands[..., :3]), label
        return self.channels.check(bands[..., :3] if self.channels.count == 3 else bands, "A scene"), label


def draw_scene(seed: tuple[int, ...], size: tuple[int, int] = (HEIGHT, WIDTH)) -> tuple[Image.Image, Image.Image]:
    """Draw one scene.

    Args:
        seed (`tuple[int, ...]`): Seed; the same seed yields the same scene.
        size (`tuple[int, int]`): Height and width, in pixels.

    Returns:
        `tuple[Image, Image]`: RGB image and labels (mode L): train ids, 255 in a few unlabeled patches.
    """
    return _draw_scene(_Canvas(np.random.default_rng(seed), *size))


def draw_bands(seed: tuple[int, ...], size: tuple[int, int] = (HEIGHT, WIDTH)) -> tuple[np.ndarray, Image.Image]:
    """Draw one scene of `synthetic_scenes_nir`.

    Args:
        seed (`tuple[int, ...]`): Seed; red, green and blue are those of `draw_scene` with this seed.
        size (`tuple[int, int]`): Height and width, in pixels.

    Returns:
        `tuple`: Red, green, blue and near infrared (H, W, 4), uint8, and labels (mode L): train ids, 255 in a few
        unlabeled patches.
    """
    # other random numbers, so that the choice of artificial trees does not change red, green and blue
    others = np.random.default_rng((*seed, ARTIFICIAL_TREE))
    canvas = _Canvas(np.random.default_rng(seed), *size, others)
    image, label = _draw_scene(canvas)
    near_infrared = np.array(_NEAR_INFRARED, dtype=np.float32)[np.asarray(canvas.label)]
    near_infrared += others.normal(0, _NIR_NOISE, near_infrared.shape)
    band = np.clip(near_infrared, 0, 255).astype(np.uint8)
    return np.dstack([np.asarray(image), band]), label


def _draw_scene(canvas: _Canvas) -> tuple[Image.Image, Image.Image]:
    _draw_background(canvas)
    for depth in np.sort(canvas.random.uniform(0.03, 1.0, canvas.random.integers(8, 15))):  # far to near
        _draw_object(canvas, float(depth))
    return canvas.finish()


class _Canvas:
    """Image and labels that are drawn together; `others` are random numbers that choose the artificial trees."""

    def __init__(
        self, random: np.random.Generator, height: int, width: int, others: np.random.Generator | None = None
    ):
        self.random, self.others = random, others
        self.height, self.width = height, width
        self.horizon = int(height * random.uniform(0.3, 0.5))
        self.image = Image.new("RGB", (width, height))
        self.label = Image.new("L", (width, height))
        self._image_draw = ImageDraw.Draw(self.image)
        self._label_draw = ImageDraw.Draw(self.label)

    def color(self, label: int) -> tuple[int, ...]:
        mean, spread = _COLORS[label]
        return tuple(int(c) for c in np.clip(self.random.normal(mean, spread * 0.6), 0, 255))

    def polygon(self, points: list[tuple[float, float]], label: int, color: tuple[int, ...] | None = None) -> None:
        self._image_draw.polygon(points, fill=color or self.color(label))
        self._label_draw.polygon(points, fill=label)

    def box(self, left: float, top: float, right: float, bottom: float, label: int, color=None) -> None:
        corners = [left, top, max(right, left + 1), max(bottom, top + 1)]
        self._image_draw.rectangle(corners, fill=color or self.color(label))
        self._label_draw.rectangle(corners, fill=label)

    def ellipse(self, left: float, top: float, right: float, bottom: float, label: int, color=None) -> None:
        corners = [left, top, max(right, left + 1), max(bottom, top + 1)]
        self._image_draw.ellipse(corners, fill=color or self.color(label))
        self._label_draw.ellipse(corners, fill=label)

    def ground(self, depth: float) -> float:
        """Return the row at which an object at `depth`, from 0 (horizon) to 1 (nearest), touches the ground."""
        return self.horizon + depth * (self.height - self.horizon)

    def finish(self) -> tuple[Image.Image, Image.Image]:
        labels = np.array(self.label)
        for _ in range(self.random.integers(0, 3)):  # unlabeled patches, as annotators leave some
            top, left = self.random.integers(0, self.height - 8), self.random.integers(0, self.width - 16)
            labels[top : top + 6, left : left + 14] = 255
        image = self.image.filter(ImageFilter.GaussianBlur(self.random.uniform(0.0, 0.8)))
        pixels = np.asarray(image, dtype=np.float32) * self.random.uniform(0.75, 1.2)
        pixels += _texture(labels, self.random)[..., None]
        pixels += self.random.normal(0, self.random.uniform(2, 8), pixels.shape)
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), Image.fromarray(labels)


def _texture(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Compute the brightness pattern (H, W) of windows, leaves and slabs."""
    rows, columns = np.indices(labels.shape)
    texture = np.zeros(labels.shape, dtype=np.float32)
    texture[(labels == BUILDING) & ((rows // 5) % 2 == 0) & ((columns // 4) % 2 == 0)] = -35
    texture[(labels == PAVEMENT) & ((rows % 8 == 0) | (columns % 12 == 0))] = -20
    leaves = (labels == TREE) | (labels == ARTIFICIAL_TREE)
    texture[leaves] = random.normal(0, 22, int(leaves.sum()))
    return texture


def _draw_background(canvas: _Canvas) -> None:
    random, width, height, horizon = canvas.random, canvas.width, canvas.height, canvas.horizon
    canvas.box(0, 0, width, horizon, SKY)
    canvas.box(0, horizon, width, height, PAVEMENT)
    vanishing = width * random.uniform(0.35, 0.65)
    near_left, near_right = width * random.uniform(-0.3, 0.2), width * random.uniform(0.8, 1.3)
    canvas.polygon(
        [(vanishing - 3, horizon), (vanishing + 3, horizon), (near_right, height), (near_left, height)], ROAD
    )
    left = -random.uniform(0, 30)
    while left < width:  # a row of houses and trees behind the pavement
        right = left + random.uniform(0.08, 0.3) * width
        top = horizon - random.uniform(0.1, 0.95) * horizon
        kind = random.choice([BUILDING, TREE, SKY], p=[0.55, 0.25, 0.2])
        if kind == BUILDING:
            canvas.box(left, top, right, horizon + random.uniform(0, 6), BUILDING)
        elif kind == TREE:
            _draw_tree(canvas, (left + right) / 2, horizon + 2, horizon - top)
        left = right


def _draw_object(canvas: _Canvas, depth: float) -> None:
    """Draw an object on the ground; its size depends on its depth."""
    random = canvas.random
    center, foot = random.uniform(0, canvas.width), canvas.ground(depth)
    scale = (canvas.height - canvas.horizon) * depth
    kind = random.choice([CAR, PERSON, POLE, SIGN, TREE], p=[0.35, 0.25, 0.12, 0.16, 0.12])
    if kind == CAR:
        _draw_car(canvas, center, foot, max(4.0, 0.75 * scale))
    elif kind == PERSON:
        _draw_person(canvas, center, foot, max(5.0, 0.6 * scale))
    elif kind == TREE:
        _draw_tree(canvas, center, foot, max(6.0, 1.1 * scale))
    else:
        _draw_pole(canvas, center, foot, max(8.0, 1.0 * scale), with_sign=kind == SIGN)


def _draw_car(canvas: _Canvas, center: float, foot: float, length: float) -> None:
    color = canvas.color(CAR)
    height = 0.45 * length
    dark = tuple(c // 3 for c in color)
    canvas.box(center - length / 2, foot - 0.65 * height, center + length / 2, foot - 0.1 * height, CAR, color)
    canvas.polygon(
        [
            (center - 0.33 * length, foot - 0.6 * height),
            (center - 0.2 * length, foot - height),
            (center + 0.2 * length, foot - height),
            (center + 0.33 * length, foot - 0.6 * height),
        ],
        CAR,
        tuple(min(255, c + 40) for c in color),
    )
    radius = 0.12 * length
    for wheel in (center - 0.3 * length, center + 0.3 * length):
        canvas.ellipse(wheel - radius, foot - 2 * radius, wheel + radius, foot, CAR, dark)


def _draw_person(canvas: _Canvas, center: float, foot: float, height: float) -> None:
    width = 0.28 * height
    skin = (205, 160, 130)
    canvas.box(center - width / 2, foot - 0.82 * height, center + width / 2, foot - 0.4 * height, PERSON)
    legs = canvas.color(PERSON)
    canvas.box(center - 0.4 * width, foot - 0.42 * height, center - 0.05 * width, foot, PERSON, legs)
    canvas.box(center + 0.05 * width, foot - 0.42 * height, center + 0.4 * width, foot, PERSON, legs)
    head = 0.1 * height
    canvas.ellipse(center - head, foot - height, center + head, foot - height + 2 * head, PERSON, skin)


def _draw_tree(canvas: _Canvas, center: float, foot: float, height: float) -> None:
    color = canvas.color(TREE)
    kind = ARTIFICIAL_TREE if canvas.others is not None and canvas.others.random() < 0.5 else TREE
    canvas.box(center - 0.05 * height, foot - 0.5 * height, center + 0.05 * height, foot, kind, (90, 65, 45))
    for _ in range(4):
        x, y = center + canvas.random.normal(0, 0.1) * height, foot - canvas.random.uniform(0.5, 0.8) * height
        radius = 0.22 * height
        canvas.ellipse(x - radius, y - radius, x + radius, y + radius, kind, color)


def _draw_pole(canvas: _Canvas, center: float, foot: float, height: float, *, with_sign: bool) -> None:
    half = max(1.0, 0.025 * height)
    canvas.box(center - half, foot - height, center + half, foot, POLE)
    if with_sign:
        radius = max(2.0, 0.16 * height)
        canvas.ellipse(center - radius, foot - height - radius, center + radius, foot - height + radius, SIGN)
