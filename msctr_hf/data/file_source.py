"""Samples that lie in folders as pairs of a picture and a label file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from .labels import LabelMapping, read_sample

if TYPE_CHECKING:
    from .specs import DatasetSpec

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class PairedFiles:
    """Folders of one split. A picture and its label share the path below them, without the suffixes.

    Args:
        images, labels (`str`): Folders below that of the data set; sub-folders are searched too.
        image_suffixes (`tuple[str, ...]`): Ends of picture names; other files are not looked at.
        label_suffix (`str`, *optional*): End of label names; `None` takes any picture format without loss.
    """

    images: str
    labels: str
    image_suffixes: tuple[str, ...] = PICTURE_SUFFIXES
    label_suffix: str | None = None


@dataclass(frozen=True)
class FileSource:
    """Reads pairs of files.

    Args:
        splits (`Mapping[str, PairedFiles]`): train, validation, test.
        root (`str`, *optional*): Folder that may lie between `data_dir` and the splits.
    """

    splits: Mapping[str, PairedFiles]
    root: str | None = None

    def load(self, spec: DatasetSpec, split: str, data_dir: Path | None) -> Dataset:
        """Pairs of one split; files are decoded when they are read, labels mapped to train ids.

        Raises:
            ValueError: If folders, pictures or labels are missing; the message says which.
        """
        if split not in self.splits:
            raise ValueError(f"{spec.name} has the splits {list(self.splits)}, not {split!r}.")
        where_to_get = f" Get it from {spec.homepage}." if spec.homepage else ""
        if data_dir is None:
            raise ValueError(f"{spec.name} needs --data_dir, the folder that holds it.{where_to_get}")
        if not data_dir.is_dir():
            raise ValueError(f"--data_dir: there is no folder {data_dir}.{where_to_get}")
        root = data_dir / self.root if self.root and (data_dir / self.root).is_dir() else data_dir
        pairs = _pair_files(root, self.splits[split])
        dataset = Dataset.from_dict(
            {
                "image": [str(image) for image, _, _ in pairs],
                "label": [str(label) for _, label, _ in pairs],
                "image_id": [image_id for _, _, image_id in pairs],
            },
            features=Features(
                {"image": ImageFeature(decode=False), "label": ImageFeature(decode=False), "image_id": Value("string")}
            ),
        )
        return dataset.with_transform(_ReadSamples(LabelMapping(spec.label_values, spec.ignored)))


class _ReadSamples:
    def __init__(self, mapping: LabelMapping):
        self.mapping = mapping

    def __call__(self, batch: dict[str, list]) -> dict[str, list[Any]]:
        samples = [read_sample(*files, self.mapping) for files in zip(batch["image"], batch["label"], strict=True)]
        return {
            "image": [image for image, _ in samples],
            "label": [label for _, label in samples],
            "image_id": batch["image_id"],
        }


def _pair_files(root: Path, files: PairedFiles) -> list[tuple[Path, Path, str]]:
    """(picture, label, image id) of a split, sorted by id."""
    images = _index_folder(root / files.images, files.image_suffixes)
    labels = _index_folder(root / files.labels, (files.label_suffix,) if files.label_suffix else LABEL_SUFFIXES)
    if not images:
        raise ValueError(f"{root / files.images} holds no picture that ends in {', '.join(files.image_suffixes)}.")
    without_label = sorted(set(images) - set(labels))
    if without_label:
        shown = ", ".join(str(images[image_id]) for image_id in without_label[:_NAMES_SHOWN])
        raise ValueError(
            f"{len(without_label)} of {len(images)} pictures have no label in {root / files.labels}: {shown}"
            f"{', ...' if len(without_label) > _NAMES_SHOWN else ''}"
        )
    return [(images[image_id], labels[image_id], image_id) for image_id in sorted(images)]


def _index_folder(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Path below the folder without suffix -> file."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    index: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix.lower())), None)
        if suffix is None or path.name.startswith(".") or not path.is_file():
            continue
        image_id = path.relative_to(folder).as_posix()[: -len(suffix)]
        if image_id in index:
            raise ValueError(f"{index[image_id]} and {path} have the same name; one of them must go.")
        index[image_id] = path
    return index
