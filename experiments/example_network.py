"""Write the network of examples/ from a finished run, with two scenes to try it on.

msctr train --config example
python -m experiments.example_network runs/example examples

The weights are stored in half precision, which halves their size; `from_pretrained` still loads them in float32,
so that every machine can predict. The folder holds no code, because whoever has the folder has this repository.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoImageProcessor
from transformers.utils import logging

from msctr_hf import MsctrForSemanticSegmentation
from msctr_hf.data.synthetic import SPLITS, draw_scene
from msctr_hf.training.run_folder import read_json, share_permissions, write_json

NETWORK, IMAGES = "street_scenes", "images"
SCENES = (16, 32)  # of the test split: neither training nor the choice of the best step has seen them


def write_network(run: Path, folder: Path) -> None:
    """Write the best network of a run for `from_pretrained`, its weights in float16.

    Args:
        run (`Path`): Folder of a finished run.
        folder (`Path`): Where to write; files of these names are replaced.
    """
    model = MsctrForSemanticSegmentation.from_pretrained(run, dtype=torch.float32)
    image_processor = AutoImageProcessor.from_pretrained(run)
    # passed apart from the model, whose own dtype goes into config.json: users get float32 by default
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
    """Remove what `save_pretrained` adds for users without this package: its code, and the pointers to it."""
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


def main(argv: Sequence[str] | None = None) -> None:
    """Write the network of a run, and the scenes, into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("output_dir", type=Path, help="folder that gets the network and the images")
    options = parser.parse_args(argv)
    logging.disable_progress_bar()
    write_network(options.run, options.output_dir / NETWORK)
    draw_images(options.output_dir / IMAGES)


if __name__ == "__main__":
    main()
