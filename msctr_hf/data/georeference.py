"""Georeference and no-data values of GeoTIFF files, read and written by rasterio, an optional package."""

from __future__ import annotations

import functools
import os
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import as_usage_error, warn_caller
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
    """

    name: str
    file: str | bytes

    def mask(self, rows: slice, columns: slice) -> np.ndarray:
        """Return where a region has no data, (height, width) bool.

        Raises:
            UsageError: If the file cannot be read; the message names it.
        """
        # labels are read without their image, too, so that nothing else may have found out that it is damaged
        errors = _rasterio().errors.RasterioError
        with (
            as_usage_error(OSError, errors, prefix=f"The no-data value of {self.name} cannot be read: "),
            _opened(self.file) as file,
        ):
            window = ((rows.start, rows.stop), (columns.start, columns.stop))
            return file.dataset_mask(window=window) == 0


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
    return NoData(str(file.get("path") or "a file without a name"), stored)


def is_georeferenced(path: Path) -> bool:
    """Return whether a file is a GeoTIFF whose georeference can be kept, for which rasterio is needed."""
    if not any(tag in _tags_of(str(path)) for tag in _GEOREFERENCE):
        return False
    has_rasterio = _rasterio() is not None
    if not has_rasterio:
        warn_caller(f"The georeference of a GeoTIFF is not kept, since rasterio is missing; {_INSTALL}")
    return has_rasterio


def save_like(
    source: Path, labels: np.ndarray, target: Path, palette: Sequence[Sequence[int]] | None, without_data: int
) -> None:
    """Write a class map (H, W) as a GeoTIFF with the georeference of its image.

    Args:
        source (`Path`): GeoTIFF file of the image.
        labels (`np.ndarray` of shape `(H, W)`, any integer type): Classes.
        target (`Path`): File to write.
        palette (`Sequence`, *optional*): RGB colors of the classes, of 8 bits.
        without_data (`int`): Value of the pixels that have no data in the image; above 255, values have 16 bits.
    """
    no_data = no_data_of({"path": str(source)})
    labels = labels.astype(np.uint8 if without_data <= np.iinfo(np.uint8).max else np.uint16, copy=False)
    if no_data is not None:
        without = no_data.mask(slice(0, labels.shape[0]), slice(0, labels.shape[1]))
        if without.shape == labels.shape:  # not of a TIFF that is turned by its orientation
            labels = np.where(without, labels.dtype.type(without_data), labels)
    with _opened(str(source)) as image:
        profile = {"crs": image.crs, "transform": image.transform}
        points, points_crs = image.gcps
        if points:
            profile = {"crs": points_crs, "gcps": points}
    with _rasterio().open(
        target, "w", driver="GTiff", height=labels.shape[0], width=labels.shape[1], count=1, dtype=labels.dtype,
        nodata=None if no_data is None else without_data, compress="deflate", **profile,
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


def _tags_of(file: str | bytes) -> frozenset[int]:
    """Return the tags of a TIFF file, of which the path or the contents are given; none of other files."""
    try:
        if isinstance(file, bytes):
            return frozenset(read_tags(BytesIO(file)))
        if not file.lower().endswith(SUFFIXES):
            return frozenset()
        status = os.stat(file)
        return _tags_in(file, status.st_mtime_ns, status.st_size)
    except (OSError, OverflowError, struct.error):  # of a damaged file, which is refused when it is decoded
        return frozenset()


@functools.lru_cache(maxsize=1024)
def _tags_in(path: str, changed: int, length: int) -> frozenset[int]:
    with open(path, "rb") as file:
        return frozenset(read_tags(file))
