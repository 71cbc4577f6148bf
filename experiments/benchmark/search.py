"""Benchmark a search by a click: ranking and masks of 100 images whose embeddings are kept."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from msctr_hf import MsctrConfig, MsctrForSemanticSegmentation, MsctrImageProcessor
from msctr_hf.data.synthetic import draw_scene
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.finding import EmbeddedImages, Query, embed_query, find_alike
from msctr_hf.evaluation.predictor import load_predictor

LIMIT = 3.0  # seconds
SIZE = (360, 480)
BACKBONE = {"model_type": "timm_backbone", "backbone": "tf_efficientnet_lite0", "out_indices": [1, 2, 3, 4]}
NETWORK = {"backbone_config": BACKBONE, "decode_head": "upernet", "hidden_size": 64, "auxiliary_hidden_size": 64}


def search(num_images: int, repetitions: int | None, device: torch.device) -> list[dict]:
    """Measure the wall time of `msctr find` without its start, the first pass of the network, and writing.

    Args:
        num_images (`int`): Number of images of 360x480.
        repetitions (`int`, *optional*): Number of searches for the median.
        device (`torch.device`): The CPU, on which this is measured.
    """
    if device.type != "cpu":
        raise UsageError("`search` is measured on the CPU: leave --device out.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = []
        for number in range(num_images):
            paths.append(folder / f"{number:03d}.png")
            draw_scene((number,), SIZE)[0].save(paths[-1])
        torch.manual_seed(0)
        MsctrForSemanticSegmentation(MsctrConfig(**NETWORK)).save_pretrained(folder / "model")
        MsctrImageProcessor().save_pretrained(folder / "model")
        predictor = load_predictor(str(folder / "model"))
        return [
            _searched(Embedder(predictor, features), paths, folder / features, repetitions or 5)
            for features in ("decode_head", "projection")
        ]


def _searched(embedder: Embedder, paths: list[Path], cache_dir: Path, repetitions: int) -> dict:
    query = embed_query(embedder, Query(Image.open(paths[0]).convert("RGB"), (SIZE[0] // 2, SIZE[1] // 2)))
    seconds = []
    for _ in range(repetitions + 1):  # the first makes the embeddings
        start = time.perf_counter()
        find_alike(EmbeddedImages(embedder, cache_dir), paths, query, threshold=0.8, top=len(paths))
        seconds.append(time.perf_counter() - start)
    found = statistics.median(seconds[1:])
    row = {"features": embedder.features, "channels": query.shape[1], "images": len(paths)}
    return {**row, "first s": seconds[0], "search s": found, "limit": LIMIT / found, "limit target": 1.0}
