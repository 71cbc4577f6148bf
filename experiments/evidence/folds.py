"""Folds of a selection: folders that hold only the images that a fold names, and none of the test split."""

from __future__ import annotations

from pathlib import Path

import yaml

from msctr_hf.data.folder_spec import DESCRIPTION
from msctr_hf.data.loading import get_dataset_spec, load_segmentation_dataset
from msctr_hf.errors import UsageError
from msctr_hf.training.run_folder import replace_file

from .plan import Fold

POOL = "train+validation"  # what folds are made of


def write_fold(fold: Fold, dataset: str, data_dir: str, folder: Path) -> None:
    """Write a folder data set whose splits are links to the images that two lists name.

    Args:
        fold (`Fold`): Files with the names of the images.
        dataset (`str`): Name of the data set of which the lists name images.
        data_dir (`str`): Its folder.
        folder (`Path`): Folder that is written; links that are there already follow the data set.

    Raises:
        UsageError: If a list cannot be read, or names an image that is neither in training nor in validation.
    """
    spec = get_dataset_spec(dataset, data_dir)
    if spec.ignored is None:
        raise UsageError(f"{dataset} ignores all values that it does not list, which a folder cannot describe.")
    rows = load_segmentation_dataset(dataset, POOL, data_dir).with_format(None)
    files = {row["image_id"]: [row[kind]["path"] for kind in ("image", "label")] for row in rows}
    for split, path in fold._asdict().items():
        try:
            names = path.read_text().split()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
        for name in names:
            if name not in files:
                raise UsageError(f"{path} names {name}, which is not an image of {dataset} {POOL}.")
            for kind, file in zip(("images", "labels"), files[name], strict=True):
                link = folder / split / kind / f"{name}{Path(file).suffix}"
                link.parent.mkdir(parents=True, exist_ok=True)
                target = Path(file).resolve()
                if link.is_symlink() and link.readlink() != target:  # the data set was moved since an earlier start
                    link.unlink()
                if not link.is_symlink():
                    link.symlink_to(target)
    raw = {key if isinstance(key, int) else ",".join(map(str, key)): label for key, label in spec.label_values.items()}
    is_colored = any(isinstance(key, str) for key in raw)
    description = {
        "classes": list(spec.classes),
        "label_colors" if is_colored else "label_values": {key: spec.classes[label] for key, label in raw.items()},
        "ignored": [key if isinstance(key, int) else ",".join(map(str, key)) for key in sorted(spec.ignored)],
        "palette": {name: list(color) for name, color in zip(spec.classes, spec.palette, strict=True)},
        "splits": {split: {kind: f"{split}/{kind}" for kind in ("images", "labels")} for split in fold._fields},
    }
    replace_file(folder / DESCRIPTION, yaml.safe_dump(description, sort_keys=False))
