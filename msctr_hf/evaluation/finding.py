"""Search of images for what is like some pixels, or a box, of one image: a ranked list with masks."""

from __future__ import annotations

import csv
import hashlib
import heapq
import html
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..data.channels import Channels, size_of
from ..data.images import read_image
from ..errors import UsageError, as_usage_error, first_line
from ..models.decode_heads import resize
from ..progress import progress
from .boundary_iou import near_outline
from .embedding_bank import describe_embedder
from .embedding_maps import Embedder, EmbeddingTile
from .finite import naming_the_image
from .settings import Size
from .visualization import OUTLINE_COLOR, PHOTO_COMPRESSION, overlay, viewable

PAGE = "find.html"
_CHANNELS = 32  # converted to float32 at a time, which stay in the cache: six times as fast as all 1024
_RANKED_FILE = re.compile(r"\d{3,}(_mask)?\.png")
_UNFINISHED = '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<p>This search was not finished.</p>\n'
_OPACITY = 0.3  # so that the color of what was found is still seen
_SHOWN_SIZE = 300  # pixels of a figure on the page, at which a line must be seen
_STYLE = (
    "body{font-family:sans-serif;margin:1em}main{display:grid;gap:1em;"
    "grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr))}"
    "figure{margin:0}img{width:100%}figcaption{overflow-wrap:anywhere}"
)


@dataclass(frozen=True)
class Query:
    """What is searched: pixels of an image, or a box in it.

    Args:
        image (`Image` or `np.ndarray` of shape `(H, W, N)`): Image, as the network takes it.
        pixels (`Sequence[int]`, *optional*): Row and column of every pixel, one after another.
        box (`Sequence[int]`, *optional*): First row and column of a box, and those after its last, instead of pixels.

    Raises:
        UsageError: If a pixel or the box is outside the image, or the box is empty.
    """

    image: Image.Image | np.ndarray
    pixels: Sequence[int] | None = None
    box: Sequence[int] | None = None

    def __post_init__(self):
        width, height = size_of(self.image)
        of_image = f"the image of {height} rows and {width} columns"
        for row, column in self.places:
            if not (0 <= row < height and 0 <= column < width):
                raise UsageError(f"`pixel` {row} {column} is outside {of_image}.")
        if self.box is not None:
            top, left, bottom, right = self.box
            if not (0 <= top < bottom <= height and 0 <= left < right <= width):
                raise UsageError(f"`box` {top} {left} {bottom} {right} is empty, or not inside {of_image}.")

    @property
    def places(self) -> list[tuple[int, int]]:
        """Rows and columns of the pixels."""
        pixels = self.pixels or []
        return list(zip(pixels[::2], pixels[1::2], strict=True))

    def cells(self, tile: EmbeddingTile) -> np.ndarray:
        """Return the places (Q,) of the searched cells in the flattened whole map of which a tile is given."""
        if self.box is None:
            rows, columns = (tile.cells_at(side, axis) for axis, side in enumerate(np.array(self.places).T))
            return rows * len(tile.pixel_columns) + columns
        top, left, bottom, right = self.box
        rows, columns = _cells_in(top, bottom, tile, 0), _cells_in(left, right, tile, 1)
        return (rows[:, None] * len(tile.pixel_columns) + columns).ravel()

    def marked(self) -> Image.Image:
        """Draw the pixels or the box into a copy of the image, in yellow between black lines."""
        shown = viewable(self.image).convert("RGB")
        draw = ImageDraw.Draw(shown)
        length, width = max(2, min(shown.size) // 40), max(2, max(shown.size) // _SHOWN_SIZE)
        for edge, color in ((width // 2, (0, 0, 0)), (0, OUTLINE_COLOR)):
            line, around = width + 2 * edge, length + edge
            for row, column in self.places:
                circle = [column - around, row - around, column + around, row + around]
                draw.ellipse(circle, outline=color, width=line)
            if self.box is not None:
                top, left, bottom, right = self.box
                rectangle = [left - edge, top - edge, right - 1 + edge, bottom - 1 + edge]
                draw.rectangle(rectangle, outline=color, width=line)
        return shown

    def in_words(self) -> str:
        """Name the pixels or the box by rows and columns."""
        if self.box is not None:
            top, left, bottom, right = self.box
            return f"box of rows {top} to {bottom - 1} and columns {left} to {right - 1}"
        return ", ".join(f"row {row} column {column}" for row, column in self.places)


class UnreadableImageError(UsageError):
    """Mistake of one image, without which a search goes on."""


class EmbeddedImage(NamedTuple):
    """Embeddings of an image.

    Args:
        embeddings (`torch.Tensor` of shape `(D, h, w)`, float16): Unit vectors.
        size (`tuple[int, int]`): Height and width of the image.
        extent (`tuple[int, int]`): Rows and columns of pixels that the cells cover, as in `EmbeddingTile`.
    """

    embeddings: torch.Tensor
    size: Size
    extent: Size


@dataclass(frozen=True)
class Compared:
    """Image with the cosines of its pixels.

    Args:
        path (`Path`): File of the image.
        size, extent (`tuple[int, int]`): Those of its `EmbeddedImage`.
        cosines (`torch.Tensor` of shape `(h, w)`): Largest cosine of every cell with one of the queries.
    """

    path: Path
    size: Size
    extent: Size
    cosines: torch.Tensor

    @property
    def score(self) -> float:
        """Cosine of the most similar pixel."""
        return float(self.cosines.max())

    def mask(self, threshold: float) -> np.ndarray:
        """Return where the interpolated cosine reaches a threshold, (H, W), bool."""
        return (cosines_of_pixels(self.cosines[None], self.size, self.extent)[0] >= threshold).numpy()


@dataclass(frozen=True)
class Found(Compared):
    """Image that a search lists.

    Args:
        area (`float`): Share of the image whose cosine reaches the threshold.
    """

    area: float


class EmbeddedImages:
    """Embeddings of image files, which a folder may keep for the next search.

    A file of the folder is used again if network, image processor, features, windows, and the size and the time of the
    image are the same; otherwise it is written anew. Embeddings have float16, in a new file and in a kept one.

    Args:
        embedder (`Embedder`): Network and features.
        cache_dir (`str` or `Path`, *optional*): The folder.
    """

    def __init__(self, embedder: Embedder, cache_dir: str | Path | None = None):
        self.embedder = embedder
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self._described = None if cache_dir is None else describe_embedder(embedder)

    def __call__(self, path: Path) -> EmbeddedImage:
        """Return the embeddings of an image.

        Raises:
            UnreadableImageError: If the image cannot be read.
            UsageError: If the folder cannot be written, or the features of the network are not finite.
        """
        if self.cache_dir is None:
            return self._embed(path)
        try:
            file, facts = path.resolve(), path.stat()
        except OSError as error:
            raise UnreadableImageError(f"{path} cannot be read: {first_line(error)}") from error
        described = json.dumps([self._described, str(file), facts.st_size, facts.st_mtime_ns])
        kept = self.cache_dir / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.safetensors"
        if (known := _read_kept(kept, described)) is not None:
            return known
        made = self._embed(path)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")  # another search may keep the same image
        try:
            with as_usage_error(OSError, prefix=f"`cache_dir`: {self.cache_dir} cannot be written: "):
                self.cache_dir.mkdir(parents=True, exist_ok=True)
                metadata = {"image": described, "size": json.dumps(made.size), "extent": json.dumps(made.extent)}
                partial.write_bytes(save({"embeddings": made.embeddings.contiguous()}, metadata))
                partial.replace(kept)
        finally:
            with suppress(OSError):  # nothing was written where the folder cannot be
                partial.unlink()
        return made

    def _embed(self, path: Path) -> EmbeddedImage:
        try:
            image = read_image(path, self.embedder.predictor.channels)
        except UsageError as error:
            raise UnreadableImageError(str(error)) from error
        return embed_image(self.embedder, image)


def embed_image(embedder: Embedder, image: Image.Image | np.ndarray) -> EmbeddedImage:
    """Embed an image that is searched; its map is filled window by window, in float16 and on the CPU."""
    (width, height), whole = size_of(image), embedder.whole(image, dtype=torch.float16, device="cpu")
    return EmbeddedImage(whole.embeddings, (height, width), whole.extent)


def embed_query(embedder: Embedder, query: Query) -> torch.Tensor:
    """Return the unit vectors that are searched, (Q, D): one for every pixel, or the mean of the box."""
    embeddings = torch.from_numpy(embedder.embed_cells(query.image, query.cells)[0])
    if query.box is not None:
        embeddings = embeddings.mean(dim=0, keepdim=True)
    return torch.nn.functional.normalize(embeddings, dim=1)


def find_alike(
    images: EmbeddedImages, paths: Iterable[Path], queries: torch.Tensor, *, threshold: float, top: int
) -> tuple[list[Found], list[str]]:
    """Search images for pixels that are like one of the queries.

    Args:
        images (`EmbeddedImages`): Embeddings of the images.
        paths (`Iterable[Path]`): Files of the images.
        queries (`torch.Tensor` of shape `(Q, D)`): Unit vectors.
        threshold (`float`): Smallest cosine in a mask.
        top (`int`): Number of images that are returned.

    Returns:
        `tuple[list[Found], list[str]]`: the images with the most similar pixels, the best first, and a sentence for
        every image that cannot be read.

    Raises:
        UsageError: If the folder of the embeddings cannot be written, or the features of the network are not finite.
    """
    best: list[tuple[float, int, Found]] = []
    unreadable = []
    for place, path in enumerate(progress(list(paths), title="searching", unit="image")):
        try:
            with naming_the_image(path):
                image = images(path)
        except UnreadableImageError as error:
            unreadable.append(str(error))
            continue
        compared = compare(path, image, queries)
        found = Found(**vars(compared), area=float(compared.mask(threshold).mean()))
        heapq.heappush(best, (found.score, -place, found))  # of equal scores, the first image is kept
        if len(best) > top:
            heapq.heappop(best)
    return [found for *_, found in sorted(best, reverse=True)], unreadable


def compare(path: Path, image: EmbeddedImage, queries: torch.Tensor) -> Compared:
    """Compute the cosines of all pixels of an image with the queries, unit vectors (Q, D)."""
    return Compared(path, image.size, image.extent, _largest_cosines(queries, image.embeddings))


def cosines_of_pixels(cosines: torch.Tensor, size: Size, extent: Size) -> torch.Tensor:
    """Interpolate the cosines of cells (Q, h, w) to the pixels of their image, (Q, H, W); see `EmbeddedImage`."""
    pixels = resize(cosines[:, None], extent, align_corners=False)[:, 0]
    return pixels[:, : size[0], : size[1]]  # without the parts of the last cells that are beyond the image


def refuse_other_folders(output_dir: str | Path) -> None:
    """Refuse a folder that has files, but not those of an earlier search.

    Raises:
        UsageError: If a search must not be written there.
    """
    output_dir = Path(output_dir)
    if output_dir.is_file():
        raise UsageError(f"`output_dir`: {output_dir} is a file.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (output_dir / PAGE).exists():
        raise UsageError(f"`output_dir`: {output_dir} is not empty and has no {PAGE}; choose another folder.")


def write_found(
    found: Sequence[Found],
    query: Query,
    output_dir: str | Path,
    threshold: float,
    channels: Channels | None = None,
    *,
    origin: str = "",
) -> None:
    """Write find.html, matches.csv, query.png and, for every image, NNN.png and NNN_mask.png.

    An earlier search in the folder is replaced. `channels` are those of the images, RGB by default. The page shows
    `origin`, which names the searched image and the network.

    Raises:
        UsageError: If the folder has other files.
    """
    output_dir = Path(output_dir)
    refuse_other_folders(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    # an earlier page would show the images of this search under its own captions
    (output_dir / PAGE).write_text(_UNFINISHED, encoding="utf-8")
    for path in output_dir.iterdir():
        if _RANKED_FILE.fullmatch(path.name):
            path.unlink()
    query.marked().save(output_dir / "query.png", compress_level=PHOTO_COMPRESSION)
    figures = [_figure("query.png", f"searched: {query.in_words()}")]
    with (output_dir / "matches.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["rank", "image", "cosine", "area"])
        for rank, each in enumerate(progress(found, title="drawing", unit="image"), start=1):
            mask = each.mask(threshold)
            Image.fromarray(mask.astype(np.uint8) * 255).save(output_dir / f"{rank:03d}_mask.png")
            drawn = draw_mask(viewable(read_image(each.path, channels)), mask)
            drawn.save(output_dir / f"{rank:03d}.png", compress_level=PHOTO_COMPRESSION)
            table.writerow([rank, each.path, f"{each.score:.4f}", f"{each.area:.4f}"])
            figures.append(_figure(f"{rank:03d}.png", caption(rank, str(each.path), each.score, each.area)))
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Found pixels</title>\n<style>{_STYLE}</style>\n"
        f"{f'<p>{html.escape(origin)}</p>' if origin else ''}\n"
        f"<p>The most similar images first; yellow where the cosine is at least {threshold:g}.</p>\n"
        f"<main>\n{chr(10).join(figures)}\n</main>\n</html>\n"
    )
    (output_dir / PAGE).write_text(page, encoding="utf-8")


def caption(rank: int, name: str, score: float, area: float) -> str:
    """Say what was found in an image: its rank, its largest cosine, and the share of it that is in the mask."""
    return f"{rank}. {name}: cosine {score:.2f}, {100 * area:.1f} % of the image"


def draw_mask(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Draw a mask (H, W), bool, over its image: thin yellow, with an outline within it of a yellow and a black line.

    One of the two lines is seen on an image of any color.
    """
    labels, width = mask.astype(np.uint8), max(1, max(image.size) // _SHOWN_SIZE)
    tinted = overlay(image, labels, [(0, 0, 0), OUTLINE_COLOR], opacity=_OPACITY)
    drawn = Image.composite(tinted, image.convert("RGB"), Image.fromarray(mask))
    for distance, color in ((2 * width, (0, 0, 0)), (width, OUTLINE_COLOR)):
        drawn.paste(color, mask=Image.fromarray(near_outline(labels, distance) & mask))
    return drawn


def _figure(file: str, text: str) -> str:
    escaped = html.escape(text)
    image = f'<img src="{file}" alt="{escaped}" loading="lazy">'
    return f'<figure><a href="{file}">{image}</a><figcaption>{escaped}</figcaption></figure>'


def _largest_cosines(queries: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Compute the largest cosine of every cell with one of the queries, (h, w), from (Q, D) and (D, h, w)."""
    parts = zip(queries.split(_CHANNELS, dim=1), embeddings.flatten(1).split(_CHANNELS), strict=True)
    cosines = sum(of_queries @ channels.float() for of_queries, channels in parts)
    return cosines.amax(dim=0).unflatten(0, embeddings.shape[1:])


def _cells_in(first: int, stop: int, tile: EmbeddingTile, axis: int) -> np.ndarray:
    """Return the cells with a center in a range of pixels or, if there is none, that in the middle of the range."""
    centers = (tile.pixel_rows, tile.pixel_columns)[axis]
    inside = np.flatnonzero((centers >= first) & (centers < stop))
    return inside if len(inside) else tile.cells_at([(first + stop) // 2], axis)


def _read_kept(path: Path, described: str) -> EmbeddedImage | None:
    """Read embeddings that were kept, or return `None` if there are none of this image by this network."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("image") != described:
                return None
            size, extent = (tuple(json.loads(metadata[name])) for name in ("size", "extent"))
            return EmbeddedImage(file.get_tensor("embeddings"), size, extent)
    except (OSError, SafetensorError):  # missing or damaged: it is written anew
        return None
