"""Conversion of an export to a folder data set: copies of its images, labels as PNGs, and a `dataset.yaml`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from PIL import Image

from ..data.folder_spec import DESCRIPTION, read_folder_spec
from ..data.image_files import name_some
from ..data.labels import IGNORE_INDEX, MAX_CLASSES
from ..data.preparation import prepare
from ..data.saved_source import SavedDataset
from ..errors import UsageError
from ..folder_lock import locked
from ..new_folder import refuse_used, written_whole
from ..progress import progress
from .export import Export, ExportedImage, composed, draw_labels
from .formats import find_format
from .splitting import divide

_FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def import_export(
    source: Path,
    output_dir: Path,
    format: str | None = None,
    *,
    image_dir: Path | None = None,
    unannotated_images: Literal["background", "ignore"] | None = None,
    crowd_regions: Literal["ignore", "class"] | None = None,
    ignored_classes: Sequence[str] = (),
    validation_share: float | None = None,
    seed: int = 0,
    group_pattern: str | None = None,
    num_workers: int = 0,
) -> None:
    """Write a folder data set from an export, check it as `msctr prepare` does, and print its contents.

    It gets its name, `output_dir`, when it has passed the check; after an error nothing is left.

    Args:
        source (`Path`): Folder, or file of annotations, of the export.
        output_dir (`Path`): Folder to write; it must be empty or missing.
        format (`str`, *optional*): Name in `FORMATS`; by default it is recognized.
        image_dir (`Path`, *optional*): Folder of the images, where the export does not contain them.
        unannotated_images (`str`, *optional*): Whether images without annotation show background or are ignored; by
            default they are refused, but those of test have no labels. Test images of which none is annotated have
            no labels in any case.
        crowd_regions (`str`, *optional*): Whether crowd regions of COCO are ignored or have their class; by default
            they are ignored, but refused if CVAT wrote them, which marks every mask as one.
        ignored_classes (`Sequence[str]`): Classes whose pixels are ignored.
        validation_share, seed, group_pattern: See `divide`.
        num_workers (`int`): Number of worker processes of the check.

    Raises:
        UsageError: If the export is not recognized, anything in it is wrong, or another process writes `output_dir`;
            the message names file and item.
    """
    _check_places(source, output_dir)
    kind = find_format(format, source)
    export = kind.read_export(source, image_dir, crowd_regions == "class")
    if not export.images:
        raise UsageError(f"{source} has no images.")
    if export.doubtful_crowds and crowd_regions is None:
        raise UsageError(
            f"{source} has {export.doubtful_crowds} crowd regions (iscrowd), as which CVAT writes every brush and SAM "
            "mask; say in `crowd_regions` whether they have their class or are to be ignored (class, ignore)."
        )
    images = divide(export.images, validation_share, seed, group_pattern)
    _refuse_same_names(images)
    if export.without_split and validation_share is None:
        raise UsageError(
            f"The split of {name_some(export.without_split)} is not known; put train, val or test in the names of all "
            "files, such as instances_train.json, or give `validation_share` to divide all but test images anew."
        )
    test_is_annotated = any(image.split == "test" and image.draw is not None for image in images)
    _refuse_unannotated(images, export, unannotated_images, test_is_annotated)
    table = _table(export, ignored_classes)
    fill = {"background": export.background, "ignore": IGNORE_INDEX, None: None}[unannotated_images]
    # refuses a used folder again: another process may have filled it while the export was read
    with locked(output_dir), written_whole(output_dir, "output_dir", last=DESCRIPTION) as folder:
        for image in progress(images, title=f"importing {kind.title}", unit="image"):
            _write_image(image, table, fill if test_is_annotated or image.split != "test" else None, folder)
        (folder / DESCRIPTION).write_text(_describe(export, ignored_classes, folder), encoding="utf-8")
        prepare(read_folder_spec(folder), None, folder, SavedDataset(), num_workers=num_workers)
    if export.left_over:
        names = name_some(export.left_over).encode(errors="backslashreplace").decode()  # those of no UTF-8
        print(f"warning: {len(export.left_over)} images that the export does not list are left out: {names}.")
    for note in export.notes:
        print(note)
    counts = {split: sum(image.split == split for image in images) for split in _FOLDERS}
    if counts["test"] and not test_is_annotated and unannotated_images is not None:
        print(
            f"The {counts['test']} images of test have no labels: none of them is annotated, so that "
            f"`{unannotated_images}` is for the other splits only."
        )
    listed = ", ".join(f"{count} of {split}" for split, count in counts.items())
    print(f"{len(images)} images ({listed}) are in {output_dir}; train with it as a data set `folder`.")


def _check_places(source: Path, output_dir: Path) -> None:
    if not source.exists():
        raise UsageError(f"`source`: {source} does not exist.")
    if source.suffix.lower() in (".zip", ".tar", ".gz", ".tgz"):
        raise UsageError(f"`source`: {source} is an archive; unpack it and name the folder.")
    refuse_used(output_dir, "output_dir")


def _refuse_same_names(images: Sequence[ExportedImage]) -> None:
    """Refuse images whose labels would have the same name, and names that lead out of the data set."""
    taken: dict[tuple[str | None, str], ExportedImage] = {}
    for image in images:
        name = Path(image.name)
        if name.is_absolute() or any(part.startswith(".") for part in name.parts):
            raise UsageError(f"{image.source}: the name {image.name!r} must lead to a file below a folder of images.")
        other = taken.setdefault((image.split, composed(name.with_suffix("").as_posix())), image)
        if other is not image and other.path == image.path:
            raise UsageError(
                f"The image {image.path} is listed twice in the split {image.split}: by {other.source} and by "
                f"{image.source}; remove one of them."
            )
        if other is not image:
            raise UsageError(
                f"{other.path} and {image.path} would have the same name in the split {image.split}; rename one of "
                "them in the labeling tool."
            )


def _refuse_unannotated(
    images: Sequence[ExportedImage],
    export: Export,
    unannotated: Literal["background", "ignore"] | None,
    test_is_annotated: bool,
) -> None:
    without = [image for image in images if image.draw is None and (test_is_annotated or image.split != "test")]
    if unannotated is None and (missing := [image.path for image in without if image.split != "test"]):
        raise UsageError(
            f"{len(missing)} of {len(images)} images have no annotation: {name_some(missing)}; say in "
            "`unannotated_images` whether they show only background or are to be ignored (background, ignore)."
        )
    if without and unannotated == "background" and export.background is None:
        raise UsageError(
            "`unannotated_images='background'`: the export has no class with the name background; its classes are "
            f"{', '.join(export.classes)}."
        )


def _table(export: Export, ignored: Sequence[str]) -> np.ndarray:
    """Return the labels to write for the positions of classes in the export, (256,) uint8."""
    if unknown := [name for name in ignored if name not in export.classes]:
        raise UsageError(
            f"`ignored_classes`: the export has no class {unknown[0]!r}; its classes are {', '.join(export.classes)}."
        )
    kept = _kept(export, ignored)
    if len(kept) > MAX_CLASSES or len(export.classes) > MAX_CLASSES:
        raise UsageError(f"The export has {len(export.classes)} classes, more than {MAX_CLASSES}.")
    if len(kept) < 2:
        raise UsageError(
            f"Two classes or more are needed, but {kept} is all that the export has besides ignored ones."
        )
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    for label, name in enumerate(kept):
        table[list(export.classes).index(name)] = label
    return table


def _kept(export: Export, ignored: Sequence[str]) -> list[str]:
    return [name for name in export.classes if name not in ignored]


def _write_image(image: ExportedImage, table: np.ndarray, unannotated: int | None, folder: Path) -> None:
    labels = draw_labels(image, unannotated)
    place = folder / _FOLDERS[str(image.split)]
    copy = place / "images" / image.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image.path, copy)
    if labels is not None:
        path = (place / "labels" / image.name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(table[labels]).save(path)


def _describe(export: Export, ignored: Sequence[str], folder: Path) -> str:
    """Describe the folder as `read_folder_spec` reads it."""
    classes = _kept(export, ignored)
    description: dict[str, Any] = {"classes": classes, "ignored": [IGNORE_INDEX]}
    if palette := {name: list(export.colors[name]) for name in classes if name in export.colors}:
        description["palette"] = palette
    description["splits"] = {
        split: {kind: f"{place}/{kind}" for kind in ("images", "labels") if (folder / place / kind).is_dir()}
        for split, place in _FOLDERS.items()
        if (folder / place).is_dir()
    }
    return yaml.safe_dump(description, sort_keys=False, allow_unicode=True, default_flow_style=None)
