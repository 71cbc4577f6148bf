"""Web page that shows the labels of an image, which pixels are similar, and what is like them in other images."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..data.channels import count_of
from ..data.image_files import IMAGE_SUFFIXES, files_below
from ..data.loading import load_segmentation_dataset
from ..data.synthetic import SYNTHETIC_CLASSES
from ..errors import UsageError
from .embedding_maps import EmbeddingTile
from .embeddings import similarity_maps, stage_features
from .find_tab import build_find_tab
from .predictor import Predictor, names_by_label
from .visitor_images import BUTTONS, IMAGE_LIFETIME, describe_fault, read_uploaded, uploaded_path
from .visualization import overlay

MAX_EXAMPLES = 8
_SECONDS_BETWEEN_DELETIONS = 600  # of files of visitors
_COLD, _EVEN, _WARM = (33, 102, 172), (247, 247, 247), (178, 24, 43)  # cosines -1, 0, 1
_STYLE = """
.areas { width: 100%; border-collapse: collapse; }
.areas tr, .areas td { padding: 2px 6px; border: none !important; }
.areas td:first-child { width: 32px; }
.areas .swatch { width: 18px; height: 18px; border: 1px solid #888; border-radius: 3px; }
.areas .share { text-align: right; font-variant-numeric: tabular-nums; }
.fault { color: #b21818; font-weight: 600; }
#found .grid-wrap { max-height: none !important; }
#found .caption-label { white-space: normal; max-width: 100%; }
@media (max-width: 640px) { #found .grid-container { grid-template-columns: 1fr !important; } }
footer { display: none !important; }
"""


@dataclass
class Segmented:
    """Image of a visitor with its labels and projections.

    Args:
        image (`Image`): RGB image.
        labels (`np.ndarray` of shape `(H, W)`): Predicted class of every pixel.
        projections (`dict[int, EmbeddingTile]`): Unit projections of every stage, float16, on the CPU, since they are
            kept for every visitor; empty without a projection head.
    """

    image: Image.Image
    labels: np.ndarray
    projections: dict[int, EmbeddingTile]


def segment_image(predictor: Predictor, path: str | Path) -> Segmented:
    """Read an image file and label it.

    Raises:
        UsageError: If the file is not an image.
    """
    image = read_uploaded(path)
    labels = next(predictor([image]))
    has_projections = getattr(predictor.model, "projection_head", None) is not None
    projections = stage_features(predictor, image) if has_projections else {}
    kept = {
        stage: tile._replace(embeddings=tile.embeddings.to("cpu", torch.float16))
        for stage, tile in projections.items()
    }
    return Segmented(image, labels, kept)


def similarity_figures(segmented: Segmented, column: int, row: int) -> list[Image.Image]:
    """Draw for every stage the cosine similarity to one pixel of the finest stage: blue -1, white 0, red 1."""
    size = (segmented.image.height, segmented.image.width)
    maps = similarity_maps(segmented.projections, (row, column), size)
    shown = []
    for cosines in maps.values():
        shading = Image.fromarray(_diverging(cosines))
        _mark(shading, column, row)
        shown.append(shading)
    return shown


def _diverging(cosines: np.ndarray) -> np.ndarray:
    """Convert values (h, w) in [-1, 1] to RGB colors (h, w, 3), uint8."""
    channels = [np.interp(cosines, (-1, 0, 1), anchors) for anchors in zip(_COLD, _EVEN, _WARM, strict=True)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _mark(figure: Image.Image, column: int, row: int) -> None:
    radius = max(4, min(figure.size) // 40)
    box = (column - radius, row - radius, column + radius, row + radius)
    ImageDraw.Draw(figure).ellipse(box, outline="black", width=max(2, radius // 3))


def area_table(labels: np.ndarray, names: Sequence[str], palette: Sequence[Sequence[int]]) -> str:
    """Format an HTML legend of the classes in an image, the largest first, with their shares of the image."""
    present, counts = np.unique(labels, return_counts=True)
    rows = [
        f'<tr><td><div class="swatch" style="background: rgb({", ".join(map(str, palette[label]))})"></div></td>'
        f'<td>{html.escape(names[label])}</td><td class="share">{100 * count / labels.size:.1f} %</td></tr>'
        for count, label in sorted(zip(counts.tolist(), present.tolist(), strict=True), reverse=True)
    ]
    return f'<table class="areas">{"".join(rows)}</table>'


def example_images(source: str | Path | None, config: Any, folder: str | Path) -> list[str]:
    """List example images: the first in a folder or, for a network of synthetic scenes, some that are drawn.

    Raises:
        UsageError: If it is not a folder or has no images.
    """
    if source is not None:
        if not Path(source).is_dir():
            raise UsageError(f"`source`: {source} is not a folder.")
        paths = files_below(Path(source)).images
        if not paths:
            raise UsageError(f"`source`: {source} has no images ({', '.join(IMAGE_SUFFIXES)}).")
        return [str(path) for path in paths[:MAX_EXAMPLES]]
    if names_by_label(config) != list(SYNTHETIC_CLASSES):
        return []
    drawn = load_segmentation_dataset("synthetic_scenes", "validation")
    paths = [Path(folder) / f"scene_{index}.png" for index in range(MAX_EXAMPLES // 2)]
    for index, path in enumerate(paths):
        drawn[index]["image"].save(path)
    return [str(path) for path in paths]


def launch(page: Any, port: int) -> None:
    """Serve a page until the process is interrupted.

    Raises:
        UsageError: If the port is in use.
    """
    import gradio

    # system fonts, since others would be fetched from a server
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        page.launch(server_port=port, css=_STYLE, theme=theme, quiet=False)
    except OSError as error:
        raise UsageError(f"`port={port}` cannot be used ({error}); choose another.") from error


def build_page(predictor: Predictor, name: str, examples: Sequence[str] = ()) -> Any:
    """Build the page as a `gradio.Blocks`.

    Args:
        predictor (`Predictor`): Network with its image processor.
        name (`str`): Name of the network on the page.
        examples (`Sequence[str]`): Paths of example images.

    Raises:
        UsageError: If gradio is not installed, or the network is not for RGB images of 8 bits.
    """
    if predictor.channels is not None:
        raise UsageError(
            f"The demo shows RGB images of 8 bits, but this network reads {count_of(predictor.num_channels)} of "
            f"{predictor.channels.value_type or 'any type'}; use `msctr predict`."
        )
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # the page must not report to third parties
    try:
        import gradio
    except ImportError:
        raise UsageError("The demo needs gradio: pip install 'msctr_hf[demo]'.") from None

    names = predictor.class_names
    # gradio deletes uploads and what it shows of them, but no example, and at the end what is left
    deletion = (_SECONDS_BETWEEN_DELETIONS, int(IMAGE_LIFETIME))
    with gradio.Blocks(title=f"{name}: semantic segmentation", delete_cache=deletion) as page:
        gradio.Markdown(f"## {name}\nSemantic segmentation into {len(names)} classes.")
        with gradio.Tab("Classes"):
            _build_class_tab(predictor, names, examples)
        with gradio.Tab("Find"):
            build_find_tab(predictor, examples)
    return page


def _build_class_tab(predictor: Predictor, names: Sequence[str], examples: Sequence[str]) -> None:
    import gradio

    model, palette = predictor.model, predictor.palette
    stages = list(model.config.projection_stages) if getattr(model, "projection_head", None) is not None else []

    def segment(file: dict[str, Any] | None, opacity: float) -> list:
        cleared = [None] * len(stages)
        if file is None:
            return [None, "", None, *cleared]
        path = uploaded_path(file, upload.GRADIO_CACHE)
        try:
            segmented = segment_image(predictor, path)
        except Exception as error:
            return [None, describe_fault(error, path), None, *cleared]
        return [shade(segmented, opacity), area_table(segmented.labels, names, palette), segmented, *cleared]

    def shade(segmented: Segmented | None, opacity: float) -> Image.Image | None:
        return None if segmented is None else overlay(segmented.image, segmented.labels, palette, opacity=opacity)

    def compare(segmented: Segmented | None, event: Any) -> list[Image.Image] | list[None] | Image.Image | None:
        if segmented is None:
            gradio.Warning("The server has deleted this image; pick it again.")
        figures = similarity_figures(segmented, *event.index) if segmented is not None else [None] * len(stages)
        return figures[0] if len(figures) == 1 else figures  # gradio takes a list as the value of a single panel

    # gradio needs the class, but `from __future__ import annotations` turns annotations into strings
    compare.__annotations__["event"] = gradio.SelectData

    shown: dict[str, Any] = {"interactive": False, "format": "png", "buttons": BUTTONS}
    segmented = gradio.State(time_to_live=IMAGE_LIFETIME)
    with gradio.Row():
        with gradio.Column(min_width=300):
            upload = gradio.Image(sources=["upload", "clipboard"], label="Image", height=320, elem_id="upload")
            if examples:
                gradio.Examples([[path] for path in examples], [upload], label="Or pick one")
            opacity = gradio.Slider(0, 1, 0.55, step=0.05, label="Opacity of the classes")
        with gradio.Column(min_width=300):
            title = "Classes: click a pixel" if stages else "Classes"
            shaded = gradio.Image(label=title, elem_id="classes", height=320, **shown)
            areas = gradio.HTML(elem_id="areas")
    similar = []
    if stages:
        gradio.Markdown("Cosine similarity to the clicked pixel, for every stage: red is similar, blue dissimilar.")
        with gradio.Row():
            similar = [
                gradio.Image(label=f"Stage {stage}", min_width=150, elem_classes="similar", **shown)
                for stage in stages
            ]
        shaded.select(compare, segmented, similar)
    # `preprocess=False` passes the file itself, since our messages about damaged images are better than gradio's
    upload.change(segment, [upload, opacity], [shaded, areas, segmented, *similar], preprocess=False)
    opacity.change(shade, [segmented, opacity], shaded)  # by mouse, keys, number and reset
