"""Labeling image files: class maps and overlays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..data.file_source import IMAGE_SUFFIXES
from ..data.images import read_image
from ..data.specs import DatasetSpec
from ..errors import UsageError
from .predictor import Predictor
from .visualization import overlay


def predict_files(
    predictor: Predictor,
    source: str | Path,
    output_dir: str | Path,
    *,
    opacity: float = 0.55,
    submission_for: DatasetSpec | None = None,
) -> int:
    """Label one image or all images of a folder; write NAME.png (train ids) and NAME_overlay.png for each.

    Args:
        predictor (`Predictor`): The network.
        source (`str` or `Path`): An image, or a folder; its sub-folders are kept in the output.
        output_dir (`str` or `Path`): Where to write.
        opacity (`float`): Of the colors in overlays.
        submission_for (`DatasetSpec`, *optional*): Write only what the test server of this data set takes: raw label
            values, one file an image, side by side under the official names.

    Returns:
        `int`: number of images labeled.

    Raises:
        UsageError: If there is nothing to label, or images cannot be read (the others are labeled all the same).
    """
    targets = _plan_outputs(Path(source), Path(output_dir), submission_for)
    names, palette = predictor.class_names, predictor.palette
    raw_values = _raw_values(submission_for, len(names)) if submission_for is not None else None
    unreadable = []
    for path, target in tqdm(targets.items(), desc="predicting", unit="image", disable=len(targets) < 2):
        try:
            image = read_image(path)
        except UsageError as error:
            unreadable.append(str(error))
            continue
        labels = next(predictor([image]))
        target.parent.mkdir(parents=True, exist_ok=True)
        if raw_values is not None:
            Image.fromarray(raw_values[labels]).save(target.with_name(f"{target.name}.png"))
            continue
        Image.fromarray(labels).save(target.with_name(f"{target.name}.png"))
        overlay(image, labels, palette, names, opacity).save(target.with_name(f"{target.name}_overlay.png"))
    if unreadable:
        raise UsageError(f"{len(unreadable)} of {len(targets)} images cannot be read: {'; '.join(unreadable)}")
    return len(targets)


def _raw_values(spec: DatasetSpec, num_labels: int) -> np.ndarray:
    """Raw label value of every train id."""
    if num_labels != len(spec.classes):
        raise UsageError(f"`submission_for`: {spec.name} has {len(spec.classes)} classes, the model {num_labels}.")
    raw_values = spec.raw_values()
    return np.array([raw_values[label] for label in range(num_labels)], dtype=np.uint8)


def _plan_outputs(source: Path, output_dir: Path, submission_for: DatasetSpec | None) -> dict[Path, Path]:
    """Image -> path of its outputs without endings."""
    if not source.exists():
        raise UsageError(f"`source`: there is no file or folder {source}.")
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"`output_dir`: {output_dir} is a file.")
    images = [source]
    if source.is_dir():
        images = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise UsageError(f"`source`: {source} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    if submission_for is not None:
        targets = {path: output_dir / _official_name(path, submission_for) for path in images}
    else:
        root = source if source.is_dir() else source.parent
        targets = {path: output_dir / path.relative_to(root).with_suffix("") for path in images}
    if len(set(targets.values())) < len(targets):
        raise UsageError(f"`source`: {source} holds images whose names differ only in their endings.")
    inputs = {path.resolve() for path in images}
    for target in targets.values():
        if target.with_name(f"{target.name}.png").resolve() in inputs:
            raise UsageError(f"`output_dir`: {output_dir} would overwrite {target.name}.png; choose another folder.")
    return targets


def _official_name(path: Path, spec: DatasetSpec) -> str:
    """aachen_000000_000019_leftImg8bit.png -> aachen_000000_000019_pred_labelIds."""
    if spec.submission is None:
        raise UsageError(f"`submission_for`: {spec.name} has no test server that takes files.")
    stem = path.stem
    if not stem.endswith(spec.submission.image_suffix):
        raise UsageError(f"`submission_for`: the name of {path} does not end in {spec.submission.image_suffix}.")
    return stem.removesuffix(spec.submission.image_suffix) + spec.submission.label_suffix
