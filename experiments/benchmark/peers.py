"""Benchmarks beside other libraries: what people would install instead, on the same work.

Every row compares one library with this package; all sides take turns. Networks have random weights. Libraries
that are not dependencies of this package are those of the extra `peers`; without one of them its rows say so.

Where the work differs: SupConLoss divides by the sum over all other rows, positives included, while each positive of
`info_nce_loss` is compared with the negatives only. UPerNet of transformers computes its auxiliary head in prediction
too, and that of segmentation_models_pytorch has none. The augmentations of torchvision and albumentations keep the
aspect ratio and never draw a second crop.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import nn

from msctr_hf.commands.train import command_line
from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.data.color_jitter import HUE_RANGE, JITTER_RANGE
from msctr_hf.data.images import read_image
from msctr_hf.data.labels import IGNORE_INDEX
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.evaluation.inference import predict_labels
from msctr_hf.training.devices import FUSED_DEVICES
from msctr_hf.training.network import build_network

from .contrast import STRIDES, blob_labels, loss_step
from .data import CASES as IMAGES
from .data import DRAWS, MEAN, STD, over_draws, write_images
from .evaluation import CASES as LABEL_MAPS
from .evaluation import METRIC_IMAGES, metric_step
from .measuring import Step, add_targets, compare, median_seconds, peak_megabytes

CONFIG = Path(__file__).resolve().parents[2] / "configs/ade20k/upernet_swin_tiny.yaml"
NUM_LABELS = 150
REQUIREMENTS = {  # name of the row: the module that it needs
    "pytorch-metric-learning SupConLoss": "pytorch_metric_learning",
    "segmentation_models_pytorch UPerNet": "segmentation_models_pytorch",
    "torchmetrics": "torchmetrics",
    "albumentations": "albumentations",
}
COLUMNS = ("peer ms", "ours ms", "speed-up", "peer MB", "ours MB", "memory ratio")
PREDICTION_TARGET = 1 / 0.9  # of the time of transformers
NETWORK_ALONE = "msctr_hf, network alone"  # logits at a quarter of the size: no way to labels takes less time
WITHOUT_CONTRAST = "msctr_hf, cross entropy alone"
WITH_PRODUCTS = "msctr_hf, cross entropy, products of the projection head"  # no step with contrast takes less time
CONTRAST_TARGET = 1 / 1.03  # of the time of a step without contrast


class Sizes(NamedTuple):
    """Sizes of the work: anchors of a term, sides of square images in pixels."""

    anchors: Sequence[int] = (1000, 5000)
    image: int = 512
    training: int = 256


def peers(parts: Sequence[str], sizes: Sizes, repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare the named parts of this package with other libraries."""
    return [row for part in parts for row in PARTS[part](sizes, repetitions, device)]


def missing_peers() -> list[str]:
    """Return the names of the rows whose library is not installed."""
    return [name for name, module in REQUIREMENTS.items() if find_spec(module) is None]


def _rows(
    work: str,
    ways: Mapping[str, Callable[[], Step]],
    repetitions: int,
    device: torch.device,
    targets: Mapping[str, float] | None = None,
    memory: Callable[[str], float] | None = None,
    per_step: int = 1,
) -> list[dict]:
    """Measure all ways of some work in turns, and compare every other one with the last, which is ours.

    Args:
        work (`str`): What all sides do.
        ways (`Mapping[str, Callable]`): Builds the step of every library; only those that are installed are built.
        repetitions (`int`): Measured rounds.
        device (`torch.device`): Where the steps run.
        targets (`Mapping[str, float]`, *optional*): Speed-up over a library that ours should reach.
        memory (`Callable[[str], float]`, *optional*): Measures the peak memory of a way in MB.
        per_step (`int`): Number of times that a step does the work.
    """
    missing = missing_peers()
    installed = [way for way in ways if way not in missing]
    seconds = median_seconds({way: ways[way]() for way in installed}, repetitions, device)
    megabytes = {way: memory(way) if memory else None for way in installed}
    ours = installed[-1]
    rows = []
    for way in [way for way in ways if way != ours]:
        row: dict[str, Any] = {"work": work, "peer": way if way in installed else f"{way} (not installed)"}
        values: dict[str, Any] = dict.fromkeys(COLUMNS)
        if way in installed:
            times = {"peer": seconds[way] / per_step, "ours": seconds[ours] / per_step}
            space = {"peer": megabytes[way], "ours": megabytes[ours]} if memory else None
            values |= compare(times, space)
        rows.append(row | values)
        add_targets(rows[-1], device, speed=(targets or {}).get(way) if way in installed else None)
    return rows


def loss(sizes: Sizes, repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare losses on the same anchors, forward and backward."""
    rows = []
    for anchors in sizes.anchors:
        rows += _rows(
            f"loss within a scale, {anchors} anchors, gradients",
            {way: partial(build, anchors, device) for way, build in LOSSES.items()},
            repetitions or max(3, 20_000 // anchors),
            device,
            memory=partial(_memory_of_loss, anchors, device),
        )
    return rows


def _memory_of_loss(anchors: int, device: torch.device, way: str) -> float:
    return peak_megabytes(LOSSES[way], (anchors, device), (200, device), device)


def own_loss_step(anchors: int, device: torch.device) -> Step:
    """Build a forward and backward pass of `info_nce_loss` over random anchors of 19 classes."""
    return loss_step("ours", "within", anchors, 19, device)


def supcon_step(anchors: int, device: torch.device) -> Step:
    """Build the same with SupConLoss of pytorch-metric-learning."""
    from pytorch_metric_learning.losses import SupConLoss

    return loss_step(SupConLoss(temperature=0.1), "within", anchors, 19, device)


LOSSES = {"pytorch-metric-learning SupConLoss": supcon_step, "msctr_hf": own_loss_step}


def prediction(sizes: Sizes, repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare UPerNet on Swin-T from a normalized image to classes at its size, and what our network alone takes."""
    side = sizes.image
    *others, ours = NETWORKS
    return _rows(
        f"UPerNet Swin-T, image of {side}x{side} to labels, {NUM_LABELS} classes",
        {way: partial(prediction_step, way, side, device) for way in (*others, NETWORK_ALONE, ours)},
        repetitions or 5,
        device,
        targets={"transformers UPerNet": PREDICTION_TARGET},
        memory=lambda way: peak_megabytes(prediction_step, (way, side, device), (way, 64, device), device),
    )


def prediction_step(way: str, side: int, device: torch.device) -> Step:
    """Build a step that predicts the classes of one random image."""
    torch.manual_seed(0)
    network = NETWORKS["msctr_hf" if way == NETWORK_ALONE else way](side).to(device).eval()
    image = torch.randn(1, 3, side, side, device=device)
    if way == "msctr_hf":
        return lambda: predict_labels(network, image)

    @torch.no_grad()
    def step() -> torch.Tensor:
        output = network(image)
        logits = getattr(output, "logits", output)
        return logits if way == NETWORK_ALONE else logits.argmax(dim=1)

    return step


def training(sizes: Sizes, repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare training steps: cross entropy of two images, backward pass, AdamW."""
    side = sizes.training
    work = f"UPerNet Swin-T, training step on 2 images of {side}x{side}"
    ways = {way: partial(training_step, way, side, device) for way in NETWORKS}
    rows = _rows(work, ways, repetitions or 5, device)
    with_contrast = {
        WITHOUT_CONTRAST: partial(training_step, "msctr_hf", side, device),
        WITH_PRODUCTS: partial(step_with_products, side, device),
        "msctr_hf": partial(training_step, "msctr_hf", side, device, "ms_cs"),
    }
    # ways that differ by a few percent need more rounds than libraries
    targets = {WITHOUT_CONTRAST: CONTRAST_TARGET}
    return rows + _rows(f"{work}, ours with contrast", with_contrast, repetitions or 9, device, targets)


def training_step(way: str, side: int, device: torch.device, mode: str = "ce") -> Step:
    """Build a step of forward pass, loss, backward pass and update."""
    torch.manual_seed(0)
    network = (_own_network(side, mode) if way == "msctr_hf" else NETWORKS[way](side)).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=6e-5, fused=device.type in FUSED_DEVICES)
    images = torch.randn(2, 3, side, side, device=device)
    labels = blob_labels(2, (side, side), device, NUM_LABELS)

    def step() -> None:
        if way == "segmentation_models_pytorch UPerNet":
            value = F.cross_entropy(network(images), labels, ignore_index=IGNORE_INDEX)
        else:
            value = network(images, labels=labels).loss
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_with_products(side: int, device: torch.device) -> Step:
    """Build a step without contrast, and the least a step with it adds: three products a projected stage.

    They are the first convolution of the projection head and its two gradients, which BatchNorm needs at every pixel.
    """
    without_contrast = training_step("msctr_hf", side, device)
    head: Any = _own_network(side, "ms_cs").projection_head
    operands = []
    for layers, stride in zip(head.stages, STRIDES, strict=True):
        weight = layers.hidden[0].weight.detach().flatten(1).to(device)
        operands.append((torch.randn(2 * (side // stride) ** 2, weight.shape[1], device=device), weight))

    def step() -> None:
        without_contrast()
        for pixels, weight in operands:
            hidden = pixels @ weight.T
            _ = hidden @ weight, hidden.T @ pixels

    return step


def _transformers_network(side: int) -> nn.Module:
    from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = SwinConfig(**_backbone_of_recipe())
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, num_labels=NUM_LABELS))


def _smp_network(side: int) -> nn.Module:
    import segmentation_models_pytorch

    return segmentation_models_pytorch.UPerNet(
        encoder_name="tu-swin_tiny_patch4_window7_224",
        encoder_weights=None,
        decoder_channels=512,
        classes=NUM_LABELS,
        img_size=side,
        drop_path_rate=_backbone_of_recipe()["drop_path_rate"],
    )


def _own_network(side: int, mode: str = "ce") -> nn.Module:
    recipe = command_line().parse(["--config", str(CONFIG), "--backbone_weights", "none"])
    model_arguments, data_arguments, _, _, settings = recipe
    spec = get_dataset_spec(data_arguments.dataset, data_arguments.data_dir)
    return build_network(model_arguments, {**settings, "contrastive_mode": mode}, spec)


def _backbone_of_recipe() -> dict[str, Any]:
    backbone = yaml.safe_load(CONFIG.read_text())["backbone_config"]
    return {name: value for name, value in backbone.items() if name != "model_type"}


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "transformers UPerNet": _transformers_network,
    "segmentation_models_pytorch UPerNet": _smp_network,
    "msctr_hf": _own_network,
}


def metric(sizes: Sizes, repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare mean IoU from class maps in memory."""
    rows = []
    for name, (num_labels, _, size) in LABEL_MAPS.items():
        ways = {"torchmetrics": "torchmetrics", "evaluate mean_iou (our copy)": "stock", "msctr_hf": "ours"}
        rows += _rows(
            f"mean IoU at the size of {name}, {num_labels} classes, per image",
            {way: partial(metric_step, key, num_labels, size) for way, key in ways.items()},
            repetitions or 5,
            device,
            per_step=METRIC_IMAGES,
        )
    return rows


def augmentation(sizes: Sizes, repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare augmentation of decoded images: scale, crop, mirroring, color jitter, normalization."""
    rows = []
    for name, case in IMAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), case)
            image = np.asarray(Image.open(Path(folder) / f"images/0.{case['suffix']}").convert("RGB"))
            labels = np.asarray(Image.open(Path(folder) / "labels/0.png"))
        ways = {
            "torchvision v2": _torchvision_augmentation,
            "albumentations": _albumentations_augmentation,
            "msctr_hf": _own_augmentation,
        }
        size = "x".join(map(str, case["size"]))
        rows += _rows(
            f"augmentation of a decoded {name}, {size} to {'x'.join(map(str, case['crop']))}",
            {way: partial(_over_draws_of, build, image, labels, case["crop"]) for way, build in ways.items()},
            repetitions or 5,
            device,
            per_step=DRAWS,
        )
    return rows


def _over_draws_of(build: Callable, image: np.ndarray, labels: np.ndarray, crop: tuple[int, int]) -> Step:
    return over_draws(build(image, labels, crop))


def _own_augmentation(image: np.ndarray, labels: np.ndarray, crop: tuple[int, int]) -> Callable[[int], Any]:
    augment = TrainingAugmentation(crop, MEAN, STD)
    return lambda draw: augment(image, labels, np.random.default_rng(draw))


def _torchvision_augmentation(image: np.ndarray, labels: np.ndarray, crop: tuple[int, int]) -> Callable[[int], Any]:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    gray = [round(255 * mean) for mean in MEAN]
    augment = v2.Compose([
        v2.ScaleJitter(image.shape[:2], scale_range=(0.5, 2.0), antialias=True),
        v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: gray, tv_tensors.Mask: IGNORE_INDEX}),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(JITTER_RANGE, JITTER_RANGE, JITTER_RANGE, HUE_RANGE),
        v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
        v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    pixels = tv_tensors.Image(torch.tensor(image).permute(2, 0, 1).contiguous())
    mask = tv_tensors.Mask(torch.tensor(labels))

    def sample(draw: int) -> Any:
        torch.manual_seed(draw)
        return augment(pixels, mask)

    return sample


def _albumentations_augmentation(image: np.ndarray, labels: np.ndarray, crop: tuple[int, int]) -> Callable[[int], Any]:
    import albumentations
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    gray = [round(255 * mean) for mean in MEAN]
    augment = albumentations.Compose([
        albumentations.RandomScale(scale_limit=(-0.5, 1.0), p=1),
        albumentations.RandomCrop(*crop, pad_if_needed=True, pad_position="random", fill=gray, fill_mask=IGNORE_INDEX),
        albumentations.HorizontalFlip(),
        albumentations.ColorJitter(JITTER_RANGE, JITTER_RANGE, JITTER_RANGE, HUE_RANGE, p=1),
        albumentations.Normalize(MEAN, STD),
    ], seed=0)  # fmt: skip

    def sample(draw: int) -> Any:
        result = augment(image=image, mask=labels)
        pixels = torch.from_numpy(np.ascontiguousarray(result["image"].transpose(2, 0, 1)))
        return pixels, torch.from_numpy(result["mask"].astype(np.int64))

    return sample


def decoding(sizes: Sizes, repetitions: int | None, device: torch.device) -> list[dict]:
    """Compare reading an image file to an array (H, W, 3)."""
    from torchvision.io import ImageReadMode, decode_image

    ways: dict[str, Callable[[Path], Any]] = {
        "Pillow": lambda path: np.asarray(Image.open(path).convert("RGB")),
        "torchvision": lambda path: decode_image(str(path), ImageReadMode.RGB),
        "msctr_hf": lambda path: np.asarray(read_image(path)),
    }
    rows = []
    for name, case in IMAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), case)
            path = Path(folder) / f"images/0.{case['suffix']}"
            rows += _rows(
                f"decoding a {name}, {'x'.join(map(str, case['size']))}",
                {way: partial(partial, read, path) for way, read in ways.items()},
                repetitions or 15,
                device,
            )
    return rows


PARTS: dict[str, Callable[[Sizes, int | None, torch.device], list[dict]]] = {
    "loss": loss,
    "prediction": prediction,
    "training": training,
    "metric": metric,
    "augmentation": augmentation,
    "decoding": decoding,
}
