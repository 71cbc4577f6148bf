"""Figures of label maps: colors, overlays with a legend, contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IGNORED_COLOR = (0, 0, 0)
OUTLINE_COLOR = (255, 255, 0)
MAX_ASPECT = 3  # height / width of an image in a figure; higher images are shown narrower
MAX_NAMES = 256  # entries of a legend
PHOTO_COMPRESSION = 1  # of zlib: four times as fast as its default of 6, for files that are a fifth larger
_STRETCHED = (2, 98)  # percentiles of the values that become black and white
_SAMPLED_SIDE = 1000  # rows and columns, at most, of the pixels of which the percentiles are
_SWATCH, _MARGIN, _LINE = 14, 6, 20
_ROWS = 512  # stretched or blended at a time, so that an overlay takes little more memory than the image


def colorize(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """Draw a class map (H, W) as an RGB image; values beyond the palette are black."""
    labels = np.asarray(labels)
    return Image.fromarray(_color_table(palette, int(labels.max(initial=0)))[labels])


def _color_table(palette: Sequence[Sequence[int]], largest: int) -> np.ndarray:
    """Return the RGB colors of all values up to the largest, (N, 3) uint8."""
    table = np.full((max(len(palette), largest + 1), 3), IGNORED_COLOR, dtype=np.uint8)
    table[: len(palette)] = palette
    return table


def viewable(image: Image.Image | np.ndarray) -> Image.Image:
    """Return an image that can be shown.

    Of an array (H, W, N) the first three channels are red, green and blue, or the first alone is gray. Values of other
    types than uint8 are stretched, of every channel from the 2nd to the 98th percentile of the pixels that have data.
    """
    if isinstance(image, Image.Image):
        return image
    shown = image[..., : 3 if image.shape[2] >= 3 else 1]
    if shown.dtype != np.uint8:
        shown = _stretch(shown)
    if shown.shape[2] == 1:
        shown = shown.repeat(3, axis=2)
    return Image.fromarray(np.ascontiguousarray(shown))


def _stretch(image: np.ndarray) -> np.ndarray:
    """Stretch every channel of an image (H, W, N) to 8 bits; what is not a number is black."""
    low, high = _black_and_white(image)
    kind = np.result_type(image.dtype, np.float32)  # float64 for int32, whose values float32 cannot tell apart
    scale = (255 / np.where(high > low, high - low, np.inf)).astype(kind)
    low, high = low.astype(kind), high.astype(kind)
    stretched = np.empty(image.shape, dtype=np.uint8)
    for top in range(0, len(image), _ROWS):
        rows = image[top : top + _ROWS].astype(kind)
        np.clip(rows, low, high, out=rows)
        rows -= low
        rows *= scale
        stretched[top : top + _ROWS] = np.nan_to_num(np.rint(rows, out=rows), copy=False)
    return stretched


def _black_and_white(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the values (N,) of the channels of an image (H, W, N) that become black, and those that become white.

    Pixels without data are left out: those with a value that is not finite, and those all of whose channels have the
    smallest value of the image, or all the largest, if that is farther from the percentiles of the other pixels than
    these are from each other. Otherwise it could take more than half of the gray levels, as -9999 beside values in
    [0, 1] does. A pixel that is left out by mistake is black or white in any case.
    """
    rows, columns = (-(-side // _SAMPLED_SIDE) for side in image.shape[:2])
    pixels = image[::rows, ::columns].reshape(-1, image.shape[2])
    pixels = pixels[np.isfinite(pixels).all(axis=1)]
    if not len(pixels):
        return np.zeros(image.shape[2]), np.zeros(image.shape[2])
    extremes = pixels.min(), pixels.max()
    is_smallest, is_largest = ((pixels == extreme).all(axis=1) for extreme in extremes)
    others = pixels[~(is_smallest | is_largest)]
    if len(others):
        low, high = np.percentile(others, _STRETCHED, axis=0)
        differ, between = high > low, high - low
        if (differ & (low - extremes[0] > between)).any():
            pixels, is_largest = pixels[~is_smallest], is_largest[~is_smallest]
        if (differ & (extremes[1] - high > between)).any():
            pixels = pixels[~is_largest]
    low, high = np.percentile(pixels, _STRETCHED, axis=0)
    rarely = high <= low  # such as a mask with few pixels
    return np.where(rarely, pixels.min(axis=0), low), np.where(rarely, pixels.max(axis=0), high)


def overlay(
    image: Image.Image | np.ndarray,
    labels: np.ndarray,
    palette: Sequence[Sequence[int]],
    class_names: Sequence[str] | None = None,
    opacity: float = 0.55,
) -> Image.Image:
    """Blend the colors of a class map over its image.

    Args:
        image (`Image` or `np.ndarray` of shape `(H, W, N)`): Image, shown as by `viewable`.
        labels (`np.ndarray` of shape `(H, W)`): Classes, at the size of the image.
        palette (`Sequence`): RGB color of every class.
        class_names (`Sequence[str]`, *optional*): Names for a legend, below the image, of the classes in it; no legend
            by default.
        opacity (`float`): Opacity of the colors, in [0, 1].
    """
    image = viewable(image)
    if class_names is None:
        sheet = Image.new("RGB", image.size)
    else:
        present = [label for label in np.unique(labels) if label < len(class_names)]
        key = legend([class_names[label] for label in present], [palette[label] for label in present], image.width)
        sheet = Image.new("RGB", (image.width, image.height + key.height), "white")
        sheet.paste(key, (0, image.height))
    table = _color_table(palette, int(labels.max(initial=0)))
    for top in range(0, image.height, _ROWS):
        rows = slice(top, min(top + _ROWS, image.height))
        shown = image.crop((0, rows.start, image.width, rows.stop)).convert("RGB")
        sheet.paste(Image.blend(shown, Image.fromarray(table[labels[rows]]), opacity), (0, top))
    return sheet


def legend(names: Sequence[str], colors: Sequence[Sequence[int]], width: int) -> Image.Image:
    """Draw a legend of at most `MAX_NAMES` names next to their colors, wrapped to `width` pixels."""
    if len(names) > MAX_NAMES:
        names = [*names[: MAX_NAMES - 1], f"and {len(names) - MAX_NAMES + 1} more"]
        colors = [*colors[: MAX_NAMES - 1], (255, 255, 255)]
    font = ImageFont.load_default(size=12)
    positions, left, line = [], _MARGIN, 0
    for name in names:
        length = _SWATCH + 4 + int(font.getlength(name)) + 2 * _MARGIN
        if left + length > width and left > _MARGIN:
            left, line = _MARGIN, line + 1
        positions.append((left, _MARGIN + line * _LINE))
        left += length
    key = Image.new("RGB", (width, 2 * _MARGIN + (line + 1) * _LINE if names else 0), "white")
    draw = ImageDraw.Draw(key)
    for (x, y), name, color in zip(positions, names, colors, strict=True):
        draw.rectangle([x, y, x + _SWATCH, y + _SWATCH], fill=tuple(color), outline="black")
        draw.text((x + _SWATCH + 4, y), name, fill="black", font=font)
    return key


def contact_sheet(
    rows: Sequence[tuple[Image.Image | np.ndarray, np.ndarray, np.ndarray]],
    palette: Sequence[Sequence[int]],
    class_names: Sequence[str],
    cell_width: int = 320,
    titles: Sequence[str] = ("image", "labels", "prediction"),
) -> Image.Image:
    """Draw image, labels and prediction side by side, one row per sample, with a legend of all classes.

    Args:
        rows (`Sequence[tuple[Image, np.ndarray, np.ndarray]]`): Image, labels (H, W), prediction (H, W).
        palette (`Sequence`): RGB colors of the classes.
        class_names (`Sequence[str]`): Names of the classes.
        cell_width (`int`): Width of one image on the sheet, in pixels.
        titles (`Sequence[str]`): Titles of the three columns.
    """
    cells = [
        (viewable(image), colorize(labels, palette), colorize(prediction, palette))
        for image, labels, prediction in rows
    ]
    strips = [[_fit(image, cell_width) for image in row] for row in cells]
    width = 3 * cell_width + 2 * _MARGIN
    heads = legend_titles(titles, cell_width)
    key = legend(list(class_names), palette, width)
    height = heads.height + sum(strip[0].height + _MARGIN for strip in strips) + key.height
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(heads, (0, 0))
    top = heads.height
    for strip in strips:
        for column, cell in enumerate(strip):
            sheet.paste(cell, (column * (cell_width + _MARGIN), top))
        top += strip[0].height + _MARGIN
    sheet.paste(key, (0, top))
    return sheet


def legend_titles(titles: Sequence[str], cell_width: int) -> Image.Image:
    """Draw a line of column titles."""
    line = Image.new("RGB", (len(titles) * (cell_width + _MARGIN) - _MARGIN, _LINE + 2), "white")
    draw = ImageDraw.Draw(line)
    for column, title in enumerate(titles):
        draw.text((column * (cell_width + _MARGIN) + 2, 3), title, fill="black", font=ImageFont.load_default(size=12))
    return line


def fitted_size(size: tuple[int, int], width: int) -> tuple[int, int]:
    """Return the width and height at which a figure shows an image: `width`, or less if it would be very high."""
    height = max(1, round(size[1] * width / size[0]))
    if height <= MAX_ASPECT * width:
        return width, height
    return max(1, round(size[0] * MAX_ASPECT * width / size[1])), MAX_ASPECT * width


def _fit(image: Image.Image, width: int) -> Image.Image:
    size = fitted_size(image.size, width)
    return image.resize(size, Image.Resampling.NEAREST if image.width < width else Image.Resampling.BILINEAR)
