"""Write the network of examples/ from a finished run, two scenes to try it on, and the figure of the README.

msctr train --config example
python -m experiments.example_network runs/example examples --figure docs/images/example.png

The weights are stored in half precision, which halves their size; `from_pretrained` still loads them in float32,
so that every machine can predict. The folder holds no code, because it is part of this repository.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.utils import logging

from msctr_hf import MsctrForSemanticSegmentation
from msctr_hf.data.synthetic import SPLITS, draw_scene
from msctr_hf.evaluation.demo_page import segment_image, similarity_figures
from msctr_hf.evaluation.predictor import load_predictor
from msctr_hf.evaluation.visualization import legend, legend_titles, overlay
from msctr_hf.training.run_folder import read_json, share_permissions, write_json

NETWORK, IMAGES = "street_scenes", "images"
CELL, GAP = (320, 240), 6  # pixels: width and height of an image in the figure, and the gap between images
SCENES = (16, 32)  # of the test split: neither training nor the choice of the best step has seen them


def write_network(run: Path, folder: Path) -> None:
    """Write the best network of a run for `from_pretrained`, its weights in float16.

    Args:
        run (`Path`): Folder of a finished run.
        folder (`Path`): Where to write; files of these names are replaced.
    """
    model = MsctrForSemanticSegmentation.from_pretrained(run, dtype=torch.float32)
    image_processor = AutoImageProcessor.from_pretrained(run)
    # a separate state dict keeps the model in float32, the dtype that config.json then names and users get by default
    halved = {name: _in_half_precision(name, value) for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=halved)
    image_processor.save_pretrained(folder)
    _remove_code(folder)
    share_permissions(folder)


def _in_half_precision(name: str, value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    half = value.half()
    if not half.isfinite().all():
        raise ValueError(f"{name} holds values beyond the range of float16.")
    return half


def _remove_code(folder: Path) -> None:
    """Remove the code, and the references to it, that `save_pretrained` adds for users without this package."""
    for path in folder.glob("*.py"):
        path.unlink()
    for path in folder.glob("*.json"):
        settings = read_json(path)
        settings.pop("auto_map", None)
        write_json(path, settings)


def draw_images(folder: Path) -> None:
    """Draw the scenes that are shipped with the network."""
    folder.mkdir(parents=True, exist_ok=True)
    for position, number in enumerate(SCENES):
        image, _ = draw_scene((SPLITS["test"][0], number))
        image.save(folder / f"scene_{position}.png", optimize=True)


def draw_figure(folder: Path, path: Path) -> None:
    """Draw every shipped scene with its predicted classes and the similarity of all its pixels to one of a car.

    Args:
        folder (`Path`): Folder of the shipped network and images.
        path (`Path`): Image file to write.
    """
    predictor = load_predictor(str(folder / NETWORK), device="cpu")
    rows = []
    for image_path in sorted((folder / IMAGES).iterdir()):
        segmented = segment_image(predictor, image_path)
        row, column = _middle(segmented.labels == predictor.class_names.index("car"))
        classes = overlay(segmented.image, segmented.labels, predictor.palette)
        rows.append([segmented.image, classes, similarity_figures(segmented, column, row)[0]])
    titles = legend_titles(("image", "predicted classes", "similarity to the marked pixel"), CELL[0])
    key = legend(predictor.class_names, predictor.palette, titles.width)
    sheet = Image.new("RGB", (titles.width, titles.height + len(rows) * (CELL[1] + GAP) + key.height), "white")
    sheet.paste(titles)
    for index, cells in enumerate(rows):
        for place, cell in enumerate(cells):
            sheet.paste(cell.resize(CELL), (place * (CELL[0] + GAP), titles.height + index * (CELL[1] + GAP)))
    sheet.paste(key, (0, sheet.height - key.height))
    sheet.save(path, optimize=True)


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """Find the row and column of the pixel of a mask that is nearest to the middle of the mask."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin(np.hypot(rows - np.median(rows), columns - np.median(columns)))
    return int(rows[nearest]), int(columns[nearest])


def main(argv: Sequence[str] | None = None) -> None:
    """Write the network of a run, and the scenes, into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("output_dir", type=Path, help="folder that gets the network and the images")
    parser.add_argument("--figure", type=Path, help="also draw the figure of the README into this file")
    options = parser.parse_args(argv)
    logging.disable_progress_bar()
    write_network(options.run, options.output_dir / NETWORK)
    draw_images(options.output_dir / IMAGES)
    if options.figure is not None:
        draw_figure(options.output_dir, options.figure)


if __name__ == "__main__":
    main()
