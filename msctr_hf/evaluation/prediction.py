"""Prediction of image files, for which class maps and overlays are written."""

from __future__ import annotations

import fnmatch
import glob
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.channels import Channels
from ..data.georeference import is_georeferenced, no_data_of, save_like
from ..data.image_files import IMAGE_SUFFIXES, files_below, is_image, passes_a_circle, readable_suffixes
from ..data.images import read_image
from ..data.specs import DatasetSpec
from ..errors import UsageError
from ..progress import progress, say
from .class_order import ByNamesOrPosition, match_classes
from .finite import NotFiniteError
from .predictor import Predictor
from .visualization import PHOTO_COMPRESSION, overlay

PALETTE_COLORS = 256  # the most a PNG can hold
MAX_VALUES = 1 << 16  # of the widest PNG of one channel
NO_DATA, WIDE_NO_DATA = 255, 65535  # values of pixels without data: of 8 bits, and where these are all classes
GEOTIFF_SUFFIX = ".tif"
Waiting = tuple[Any, Path, Path]  # image, its file, path of its output files without suffix


def predict_files(
    predictor: Predictor,
    sources: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    opacity: float = 0.55,
    palette: bool = True,
    submission_for: DatasetSpec | None = None,
    class_order: ByNamesOrPosition = "names",
) -> int:
    """Label the images that paths, folders and patterns name; write NAME.png (train ids) and NAME_overlay.png.

    The labels of a GeoTIFF become a GeoTIFF with its georeference, NAME.tif, if rasterio is installed. Where a TIFF
    states that it has no data, the value is 255 (65,535 with more than 255 classes), which NAME.tif states too; only a
    test server gets a class of every pixel.

    Consecutive images of one size share a batch of `predictor.settings.batch_size` images; no more than a batch is in
    memory.

    Args:
        predictor (`Predictor`): Network with its image processor.
        sources (`str`, `Path` or a sequence of them): Images; folders, and patterns such as `"day_*/*.png"`, whose
            subfolders are kept in the output. An image that is named twice is labeled once.
        output_dir (`str` or `Path`): Folder of the output. If it is below a folder that is searched, images in it are
            left out, since they are the output of an earlier call.
        opacity (`float`): Opacity of the colors in overlays.
        palette (`bool`): Whether to store the colors of the classes in NAME.png, so that viewers show them; its values
            are train ids either way. With more than 256 classes, they are 16-bit gray values.
        submission_for (`DatasetSpec`, *optional*): Data set for whose test server the output is written instead: raw
            label values without a palette, one file per image, in one folder under the official names.
        class_order (`str`): How the classes of the network are matched with those of `submission_for`: by `"names"` or
            by `"position"`.

    Returns:
        `int`: number of images labeled.

    Raises:
        UsageError: If there is nothing to label, two images would be written to one file or an image would be
            overwritten (nothing is written then), or images cannot be read (the others are labeled).
        NotFiniteError: If the logits of an image are not finite; the images before it are labeled.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else sources
    suffixes = readable_suffixes(predictor.channels)
    targets = _plan_outputs(find_images(sources, Path(output_dir), suffixes), Path(output_dir), submission_for)
    names, colors = predictor.class_names, predictor.palette
    if len(names) > MAX_VALUES:
        raise UsageError(f"The network has {len(names)} classes, but a PNG stores at most {MAX_VALUES}.")
    raw_values = _raw_values(submission_for, names, class_order) if submission_for is not None else None
    unreadable: list[str] = []
    waiting: deque[Waiting] = deque()  # read, but not labeled yet
    for labels in _label_maps(predictor, targets, waiting, unreadable):
        source, target = waiting[0][1:]  # no name for the image: it must be freed before the next is read
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.with_name(f"{target.name}{_ending(source, submission_for)}")
        if raw_values is not None:
            save_labels(raw_values[labels], file)
        else:
            shown_colors = colors if palette else None
            labels, no_data = _with_no_data(labels, source, NO_DATA if len(names) <= NO_DATA else WIDE_NO_DATA)
            if file.suffix == GEOTIFF_SUFFIX:
                save_like(source, labels, file, shown_colors, no_data)
            else:
                save_labels(labels, file, shown_colors)
            figure = overlay(waiting[0][0], labels, colors, names, opacity)
            figure.save(target.with_name(f"{target.name}_overlay.png"), compress_level=PHOTO_COMPRESSION)
            del figure
        waiting.popleft()
        del labels  # a large image must be freed before the next is read
    if unreadable:
        raise UsageError(f"{len(unreadable)} of {len(targets)} images cannot be read: {'; '.join(unreadable)}")
    return len(targets)


def save_labels(labels: np.ndarray, path: Path, palette: Sequence[Sequence[int]] | None = None) -> None:
    """Write a class map (H, W) as a PNG whose values are the classes, 16 bits wide where 8 are not enough.

    Args:
        labels (`np.ndarray` of shape `(H, W)`, any integer type): Classes.
        path (`Path`): Path of the file.
        palette (`Sequence`, *optional*): RGB colors of the classes, for viewers; gray values by default.
    """
    wide = labels.dtype != np.uint8
    image = Image.fromarray(labels.astype(np.uint16) if wide else labels)
    if palette is not None and not wide:
        # all 256 entries: with fewer, Pillow stores fewer bits per pixel, which would corrupt values such as 255
        colors = np.zeros((PALETTE_COLORS, 3), np.uint8)
        colors[: len(palette)] = palette[:PALETTE_COLORS]
        image.putpalette(colors.tobytes())
    image.save(path)


def _label_maps(
    predictor: Predictor,
    targets: Mapping[Path, Path],
    waiting: deque[Waiting],
    unreadable: list[str],
) -> Iterator[np.ndarray]:
    """Yield the class maps of the images that can be read; an error of the network names the image."""
    try:
        yield from predictor(_readable(predictor.channels, targets, waiting, unreadable))
    except NotFiniteError as error:  # the name is known only then
        raise NotFiniteError(f"{waiting[0][2].name}: {error}") from error


def _readable(
    channels: Channels | None, targets: Mapping[Path, Path], waiting: deque[Waiting], unreadable: list[str]
) -> Iterator[Any]:
    """Yield the images that can be read, in order, and append each with its paths to `waiting`."""
    for path, target in progress(targets.items(), title="predicting", unit="image", shown=len(targets) > 1):
        try:
            image = read_image(path, channels)
        except UsageError as error:
            unreadable.append(str(error))
            continue
        waiting.append((image, path, target))
        yield image
        del image


def _with_no_data(labels: np.ndarray, source: Path, value: int) -> tuple[np.ndarray, int | None]:
    """Return a class map, uint8 or uint16, with a value where the file of its image states that it has no data.

    The value is `None` if the file states none.
    """
    labels = labels.astype(np.uint8 if labels.dtype == np.uint8 else np.uint16, copy=False)
    no_data = no_data_of({"path": str(source)})
    if no_data is None:
        return labels, None
    height, width = labels.shape
    without_data = no_data.mask(slice(0, height), slice(0, width))
    return np.where(without_data, np.min_scalar_type(value).type(value), labels), value


def _raw_values(spec: DatasetSpec, names: Sequence[str], class_order: ByNamesOrPosition) -> np.ndarray:
    """Return the raw label value of every class of the network."""
    if len(names) != len(spec.classes):
        raise UsageError(f"`submission_for`: {spec.name} has {len(spec.classes)} classes, the model {len(names)}.")
    matched = match_classes(names, spec.classes, spec.name, class_order)
    if matched.note is not None:
        say(matched.note, file=sys.stderr)
    raw_values = spec.raw_values()
    train_ids = matched.train_ids or range(len(names))
    values = np.array([raw_values[label] for label in train_ids])
    return values.astype(np.uint8 if values.max() < PALETTE_COLORS else np.uint16)


def find_images(
    sources: Sequence[str | Path], output_dir: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> dict[Path, Path]:
    """Map every image, once, to the path of its output files, relative to the output folder and without suffix."""
    output_dir = output_dir.resolve()
    images: dict[Path, Path] = {}
    seen: set[str] = set()
    for source in sources:
        path = Path(source)
        if path.is_dir():
            root, found = path, _images_below(path, suffixes)
        elif path.exists():
            root, found = path.parent, [path]
        else:
            root, found = _matches(str(source), suffixes)
        if not root.resolve().is_relative_to(output_dir):  # a second call must not label the files of the first
            found = [image for image in found if not _place(image).is_relative_to(output_dir)]
        if not found:
            raise UsageError(f"`sources`: {source} has no images ({', '.join(suffixes)}).")
        for image in found:
            if (place := os.path.abspath(image)) not in seen:
                seen.add(place)
                images[image] = image.relative_to(root).with_suffix("")
    if not images:
        raise UsageError("`sources`: name an image, a folder or a pattern.")
    return images


def _place(image: Path) -> Path:
    """Return the real folder of an image, or where a link leads that leads to no file yet."""
    return image.parent.resolve() if image.exists() else image.resolve()


def _images_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Find images in a folder, and links that lead to no file, which are reported as images that cannot be read."""
    below = files_below(folder)
    images = (path for path in below.files if is_image(path, suffixes))
    return sorted([*images, *below.broken_links])


def _matches(pattern: str, suffixes: Sequence[str]) -> tuple[Path, list[Path]]:
    """Return the folder above the first wildcard of a pattern, and the images that it, or a folder in it, matches."""
    if not glob.has_magic(pattern):
        raise UsageError(f"`sources`: {pattern} is neither a file nor a folder.")
    parts = Path(pattern).parts
    root = Path(*parts[: next(place for place, part in enumerate(parts) if glob.has_magic(part))])
    if "**" in parts:
        start = parts.index("**")
        files = _recursive_matches(parts[:start], parts[start:], suffixes)
    else:
        matches = [Path(match) for match in sorted(glob.glob(pattern))]
        files = [
            image for match in matches for image in (_images_below(match, suffixes) if match.is_dir() else [match])
        ]
    if not files:
        raise UsageError(f"`sources`: nothing matches {pattern!r}.")
    found = (path for path in dict.fromkeys(files) if is_image(path, suffixes) or not path.exists())
    return root, [path for path in found if not passes_a_circle(path, root)]


def _recursive_matches(start: Sequence[str], pattern: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """Find images that a pattern with `**` matches; `glob` would follow links that lead back again and again."""
    top = str(Path(*start))
    folders = [Path(match) for match in (sorted(glob.glob(top)) if glob.has_magic(top) else [top])]
    return [
        path
        for folder in folders
        if folder.is_dir()
        for path in _images_below(folder, suffixes)
        if _fits(path.relative_to(folder).parts, pattern)
    ]


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a pattern matches a path or a folder above it."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_fits(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _plan_outputs(
    images: Mapping[Path, Path], output_dir: Path, submission_for: DatasetSpec | None
) -> dict[Path, Path]:
    """Map every image to the path of its output files without suffix; refuse to overwrite outputs or images."""
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"`output_dir`: {output_dir} is a file.")
    if submission_for is not None:
        targets = {path: output_dir / _official_name(path, submission_for) for path in images}
    else:
        targets = {path: output_dir / name for path, name in images.items()}
    written: dict[Path, Path] = {}
    sources = {path.resolve() for path in images}
    for path, target in targets.items():
        overlays = () if submission_for is not None else ("_overlay.png",)
        for ending in (_ending(path, submission_for), *overlays):
            file = target.with_name(f"{target.name}{ending}")
            if (other := written.setdefault(file, path)) != path:
                raise UsageError(
                    f"`sources`: {other} and {path} would both be written to {file}; name a folder that contains "
                    "both, or a quoted pattern, whose subfolders are kept, or label them by separate commands."
                )
            if file.resolve() in sources:
                raise UsageError(f"`output_dir`: {output_dir} would overwrite {file.name}; choose another folder.")
    return targets


def _ending(image: Path, submission_for: DatasetSpec | None) -> str:
    """Return the ending of the file of the labels of an image."""
    return GEOTIFF_SUFFIX if submission_for is None and is_georeferenced(image) else ".png"


def _official_name(path: Path, spec: DatasetSpec) -> str:
    """Return the official name of an output: aachen_000000_000019_leftImg8bit.png -> ..._pred_labelIds."""
    if spec.submission is None:
        raise UsageError(f"`submission_for`: {spec.name} has no test server that accepts files.")
    stem = path.stem
    if not stem.endswith(spec.submission.image_suffix):
        raise UsageError(f"`submission_for`: the name of {path} does not end in {spec.submission.image_suffix}.")
    return stem.removesuffix(spec.submission.image_suffix) + spec.submission.label_suffix
