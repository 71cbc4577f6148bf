"""Georeference and no-data values of GeoTIFF files, read and written by rasterio, an optional package."""

from __future__ import annotations

import functools
import os
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags

from ..errors import as_usage_error, warn_caller
from .orientation import Size, known_orientation, turned, turned_back, turned_size
from .tiff_blocks import SUFFIXES
from .tiff_tags import NO_DATA_TAG, read_tags

_GEOREFERENCE = (33550, 33922, 34264, 34735)  # tags of GeoTIFF: pixel scale, tie points, transformation, keys
_INSTALL = '`pip install "msctr_hf[geo]"` installs rasterio.'


@dataclass(frozen=True)
class NoData:
    """Pixels of a file that have no data: those whose channels all have the no-data value.

    Args:
        name (`str`): Name of the file, for messages.
        file (`str` or `bytes`): Its path or its contents.
        orientation (`int`): EXIF orientation, 1 for upright; GDAL reads files as they are stored.
    """

    name: str
    file: str | bytes
    orientation: int = 1

    def mask(self, rows: slice, columns: slice, size: Size | None = None) -> np.ndarray:
        """Return where a region has no data, (height, width) bool.

        Args:
            rows, columns (`slice`): Region of the image as viewers show it.
            size (`tuple[int, int]`, *optional*): Width and height of the image of which it is a region, if this may be
                the image as stored: labels may have been drawn on it.

        Raises:
            UsageError: If the file cannot be read; the message names it.
        """
        # labels are read without their image, too, so that nothing else may have found out that it is damaged
        errors = _rasterio().errors.RasterioError
        with (
            as_usage_error(OSError, errors, prefix=f"The no-data value of {self.name} cannot be read: "),
            _opened(self.file) as file,
        ):
            shown = turned_size((file.width, file.height), self.orientation)
            if self.orientation == 1 or size not in (None, shown):
                window = ((rows.start, rows.stop), (columns.start, columns.stop))
                return file.dataset_mask(window=window) == 0
            return turned(file.dataset_mask() == 0, self.orientation)[rows, columns]


def no_data_of(file: Any) -> NoData | None:
    """Return the pixels without data of an image; `None` if its file states no such value, or rasterio is missing.

    Args:
        file: Dict with `path` and `bytes`.
    """
    stored = (file.get("bytes") or file.get("path")) if file else None
    if not stored or NO_DATA_TAG not in _tags_of(stored):
        return None
    if _rasterio() is None:
        warn_caller(f"The no-data value of a GeoTIFF is not read, so all of its pixels count as valid; {_INSTALL}")
        return None
    return NoData(str(file.get("path") or "a file without a name"), stored, _orientation_of(stored))


def is_georeferenced(path: Path) -> bool:
    """Return whether a file is a GeoTIFF whose georeference can be kept, for which rasterio is needed."""
    if not any(tag in _tags_of(str(path)) for tag in _GEOREFERENCE):
        return False
    has_rasterio = _rasterio() is not None
    if not has_rasterio:
        warn_caller(f"The georeference of a GeoTIFF is not kept, since rasterio is missing; {_INSTALL}")
    return has_rasterio


def save_like(
    source: Path,
    labels: np.ndarray,
    target: Path,
    palette: Sequence[Sequence[int]] | None = None,
    no_data: int | None = None,
) -> None:
    """Write a class map (H, W) as a GeoTIFF with the georeference of its image, of which it has the order of pixels.

    Args:
        source (`Path`): GeoTIFF file of the image.
        labels (`np.ndarray` of shape `(H, W)`, uint8 or uint16): Classes of the image as viewers show it.
        target (`Path`): File to write.
        palette (`Sequence`, *optional*): RGB colors of the classes, of 8 bits.
        no_data (`int`, *optional*): Value of the pixels that have no data, which the file then states.
    """
    labels = turned_back(labels, _orientation_of(str(source)))
    with _opened(str(source)) as image:
        profile = {"crs": image.crs, "transform": image.transform}
        points, points_crs = image.gcps
        if points:
            profile = {"crs": points_crs, "gcps": points}
    with _rasterio().open(
        target, "w", driver="GTiff", height=labels.shape[0], width=labels.shape[1], count=1, dtype=labels.dtype,
        nodata=no_data, compress="deflate", **profile,
    ) as file:  # fmt: skip
        file.write(labels, 1)
        if palette is not None and labels.dtype == np.uint8:
            file.write_colormap(1, {label: tuple(color) for label, color in enumerate(palette[: 1 << 8])})


def _opened(file: str | bytes) -> Any:
    with warnings.catch_warnings():  # rasterio warns about images that have a no-data value but no georeference
        warnings.simplefilter("ignore")
        return _rasterio().open(BytesIO(file) if isinstance(file, bytes) else file)


def _rasterio() -> Any:
    """Import rasterio, which brings GDAL; return `None` if it is not installed."""
    try:
        import rasterio
        import rasterio.errors
    except ImportError:
        return None
    return rasterio


def _orientation_of(file: str | bytes) -> int:
    return known_orientation(_tags_of(file).get(ExifTags.Base.Orientation))


def _tags_of(file: str | bytes) -> Mapping[int, Any]:
    """Read the tags of a TIFF file, of which the path or the contents are given; none of other files."""
    try:
        if isinstance(file, bytes):
            return read_tags(BytesIO(file))
        if not file.lower().endswith(SUFFIXES):
            return {}
        status = os.stat(file)
        return _tags_in(file, status.st_mtime_ns, status.st_size)
    except (OSError, OverflowError, struct.error):  # of a damaged file, which is refused when it is decoded
        return {}


@functools.lru_cache(maxsize=1024)
def _tags_in(path: str, changed: int, length: int) -> Mapping[int, Any]:
    with open(path, "rb") as file:
        return read_tags(file)
