"""Write CamVid at half its size, on which cross entropy comes to rest in minutes.

python scripts/half_size.py --data_dir CAMVID --output_dir CAMVID_180

A pixel is the mean of 2 x 2 pixels of the image, and has the label of one of them. Files that are there already are
not written again. The experiments camvid_46_unlabeled read the folder as `--data_dir`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from msctr_hf.commands.command_line import one_sentence
from msctr_hf.data.decoding import files_of
from msctr_hf.data.loading import load_segmentation_dataset
from msctr_hf.errors import UsageError

DATASET = "camvid"
FOLDERS = {"train": "train", "validation": "val", "test": "test"}  # of the splits


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser().parse_args(argv)
    with one_sentence():
        print(f"{write_half_size(options.data_dir, options.output_dir)} images in {options.output_dir}")


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole.add_argument("--data_dir", required=True, help="folder of CamVid")
    whole.add_argument("--output_dir", type=Path, required=True, help="folder of the small copy")
    return whole


def write_half_size(data_dir: str, output_dir: Path) -> int:
    """Write images and labels of all splits as PNG, and return the number of images.

    Args:
        data_dir (`str`): Folder of CamVid.
        output_dir (`Path`): Folder that is written, `{train,val,test}/{images,labels}/NAME.png`.

    Raises:
        UsageError: If the folder is not that of CamVid, or both are the same.
    """
    if output_dir.resolve() == Path(data_dir).resolve():
        raise UsageError(f"--output_dir must not be --data_dir, got {data_dir} for both.")
    count = 0
    for split, folder in FOLDERS.items():
        rows = load_segmentation_dataset(DATASET, split, data_dir)
        for column, kind, halve in (("image", "images", _means), ("label", "labels", _picked)):
            files = files_of(rows, column)
            if files is None:
                raise UsageError(
                    f"--data_dir must have the image and label files of CamVid, and {data_dir} is a copy."
                )
            for source in files:
                _write(halve, source, output_dir / folder / kind / f"{source.stem}.png")
        count += len(rows)
    return count


def _means(image: Image.Image) -> Image.Image:
    return image.reduce(2)  # `resize` would round twice


def _picked(labels: Image.Image) -> Image.Image:
    return labels.resize((labels.width // 2, labels.height // 2), Image.Resampling.NEAREST)


def _write(halve: Callable[[Image.Image], Image.Image], source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".partial_{target.name}")
    with Image.open(source) as image:
        halve(image).save(partial, format="PNG")
    partial.replace(target)  # a kill leaves no unfinished image
