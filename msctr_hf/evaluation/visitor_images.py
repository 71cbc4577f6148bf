"""Images that visitors of the demo page upload: which files are read, and what is said where something fails."""

from __future__ import annotations

import html
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.images import read_image
from ..errors import UsageError

LONGEST_SIDE = 1280  # pixels; larger images are downscaled
IMAGE_LIFETIME = 3600.0  # seconds that memory, and the folder of uploads, keep images of a visitor
# gradio's third button of images is left out: it sends an image of the visitor to a site of others
BUTTONS = ["download", "fullscreen"]


def uploaded_path(file: Mapping[str, Any], folder: str) -> str:
    """Return the path of a file that a request names, which must be in the folder of uploads.

    Raises:
        gradio.Error: If it is elsewhere on the server, without its path.
    """
    import gradio

    path = str(file["path"])
    # gradio looks only at paths that a request marks as files, and adds the mark where it is missing
    if not Path(path).resolve().is_relative_to(Path(folder).resolve()):
        raise gradio.Error("Upload the image; a request cannot name a file of the server.", print_exception=False)
    return path


def read_uploaded(path: str | Path) -> Image.Image:
    """Read an image, RGB, and downscale it to at most `LONGEST_SIDE`.

    Raises:
        UsageError: If the file is not an image.
    """
    image = read_image(path)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


def describe_fault(error: Exception, path: str) -> str:
    """Format an error as HTML for the visitor, and log the traceback of a bug on the server."""
    sentence = html.escape(str(error).replace(path, Path(path).name))
    if not isinstance(error, UsageError):
        traceback.print_exception(error)
        sentence = "The network failed on this image; the log of the server shows where."
    return f'<p class="fault">{sentence}</p>'
