"""Report of a check of labels: a page that works without a server, and figures of the regions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from jinja2 import Environment, StrictUndefined
from PIL import Image, ImageFilter

from .label_checking import Suspects
from .label_regions import Region
from .visualization import OUTLINE_COLOR, overlay, viewable

PAGE = "check_labels.html"
VIEWS = ("image", "label", "suggestion")
_FIGURES = "figures"
_FIGURE = re.compile(rf"\d{{4,}}_({'|'.join(VIEWS)})\.jpg")
_TEMPLATE = Path(__file__).with_name("label_report_template.html")
_MARGIN = 24  # least number of pixels around a region that its figures show
_LONGEST_SIDE, _LARGEST_SCALE = 480, 4  # of a figure
_OPACITY = 0.5


def write_report(
    suspects: Suspects,
    dataset: Dataset,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    output_dir: Path,
    title: str,
) -> None:
    """Write check_labels.html, and the figures that it shows, in place of those of an earlier call.

    Args:
        suspects (`Suspects`): The regions.
        dataset (`datasets.Dataset`): Rows {image, label, image_id} that were checked.
        classes (`Sequence[str]`): Names of the classes.
        palette (`Sequence`): RGB colors of the classes.
        output_dir (`Path`): Folder of the report.
        title (`str`): Name of the data set.
    """
    figures = output_dir / _FIGURES
    figures.mkdir(exist_ok=True)
    for path in figures.iterdir():
        if _FIGURE.fullmatch(path.name):
            path.unlink()
    sizes = _write_figures(suspects.regions, dataset, palette, figures)
    pairs = Counter((each.label, each.suggestion) for each in suspects.regions).most_common()
    place_of = {pair: place for place, (pair, _) in enumerate(pairs)}
    colors = ["#" + "".join(f"{int(value):02x}" for value in color) for color in palette]
    regions = [
        {
            "rank": rank,
            "image": each.image_id,
            "label": classes[each.label],
            "suggestion": classes[each.suggestion],
            "colors": (colors[each.label], colors[each.suggestion]),
            "score": each.score,
            "area": each.area,
            "row": each.top,
            "column": each.left,
            "pair": place_of[each.label, each.suggestion],
            "size": sizes[rank],
            "files": {view: f"{_FIGURES}/{_figure_name(rank, view)}" for view in VIEWS},
        }
        for rank, each in enumerate(suspects.regions, start=1)
    ]
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .from_string(_TEMPLATE.read_text(encoding="utf-8"))
        .render(
            title=title,
            key=suspects.key,
            regions=regions,
            pairs=[(classes[label], classes[suggestion], count) for (label, suggestion), count in pairs],
            notes=_notes(suspects),
        )
    )
    (output_dir / PAGE).write_text(page, encoding="utf-8")


def region_views(
    image: Image.Image, labels: np.ndarray, region: Region, palette: Sequence[Sequence[int]]
) -> list[Image.Image]:
    """Draw the surroundings of a region three times, with its outline: image, labels, and labels as suggested.

    Args:
        image (`Image`): Whole RGB image.
        labels (`np.ndarray` of shape `(H, W)`): Train ids of the whole image.
        region (`Region`): The region.
        palette (`Sequence`): RGB colors of the classes.
    """
    margin = max(_MARGIN, max(region.mask.shape) // 2)
    top, left, bottom, right = region.box
    rows = slice(max(0, top - margin), min(labels.shape[0], bottom + margin))
    columns = slice(max(0, left - margin), min(labels.shape[1], right + margin))
    mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=bool)
    mask[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start] = region.mask
    shown = image.crop((columns.start, rows.start, columns.stop, rows.stop)).convert("RGB")
    given = labels[rows, columns]
    suggested = np.where(mask, region.suggestion, given)
    views = [
        shown,
        overlay(shown, given, palette, opacity=_OPACITY),
        overlay(shown, suggested, palette, opacity=_OPACITY),
    ]
    scale = min(_LARGEST_SCALE, _LONGEST_SIDE / max(shown.size))
    size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
    enlarged = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    outer, inner = (enlarged.filter(kind(3)) for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    outline = Image.fromarray(np.asarray(outer) != np.asarray(inner))
    views = [view.resize(size, Image.Resampling.BILINEAR) for view in views]
    for view in views:
        view.paste(OUTLINE_COLOR, mask=outline)
    return views


def _write_figures(
    regions: Sequence[Region], dataset: Dataset, palette: Sequence[Sequence[int]], folder: Path
) -> dict[int, tuple[int, int]]:
    """Write the figures of all regions, reading every image once; return their widths and heights by rank."""
    sizes = {}
    ranks_of: dict[int, list[int]] = {}
    for rank, region in enumerate(regions, start=1):
        ranks_of.setdefault(region.place, []).append(rank)
    for place, ranks in sorted(ranks_of.items()):
        sample = dataset[place]
        image, labels = viewable(sample["image"]), np.asarray(sample["label"])
        for rank in ranks:
            views = region_views(image, labels, regions[rank - 1], palette)
            sizes[rank] = views[0].size
            for view, figure in zip(VIEWS, views, strict=True):
                figure.save(folder / _figure_name(rank, view), quality=85)
    return sizes


def _figure_name(rank: int, view: str) -> str:
    return f"{rank:04d}_{view}.jpg"


def _notes(suspects: Suspects) -> list[str]:
    """Say how the regions were found, and what that means for them."""
    state, number = suspects.state, len(suspects.groups)
    if state["group_pattern"] is None:
        groups = (
            f"Without --group_pattern, the images were divided into {number} blocks in their order. Similar images, "
            "such as those of a video, may be in two blocks and have vouched for each other's errors."
        )
    else:
        groups = (
            f"The images are of {number} groups, by the pattern {state['group_pattern']}; only images of other groups "
            "voted on an image."
        )
    stages = "all stages" if state["stage"] is None else f"stage {state['stage']}"
    return [
        "A region is listed where its label disagrees with the most similar pixels of other images and with the "
        f"network. {state['neighbors']} neighbors voted, by embeddings of {state['features']}, {stages}.",
        groups,
        "If the network was trained with these labels, it may have learned some of their errors, which are then "
        "missing here. The suggestions are not always right: look at every region before you accept it.",
    ]
