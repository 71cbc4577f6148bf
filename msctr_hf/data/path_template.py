"""Templates of paths, in which an asterisk stands for the text that the paths of an image and its labels share."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from .image_files import IMAGE_SUFFIXES

_WILDCARDS = {"**/": "(?:(.+)/)?", "**": "(.+)", "*": "([^/]+)"}


def is_template(path: str) -> bool:
    """Return whether a path is a template and not the path of a folder."""
    return "*" in path


@dataclass(frozen=True)
class PathTemplate:
    """Template of the paths of files below the folder of a data set.

    Args:
        text (`str`): Path with asterisks, such as `"photos/*.jpg"`: `*` stands for any text without a slash, `**/` for
            any number of folders. An ending that is not one of image files, or none, stands for any such ending.
    """

    text: str

    @property
    def folder(self) -> str:
        """Folder below which the files are, relative to that of the data set."""
        parts = PurePosixPath(self.text).parts
        return str(PurePosixPath(*parts[: next(place for place, part in enumerate(parts) if is_template(part))]))

    @property
    def ending(self) -> str:
        """Ending of the files, such as `".jpg"`; empty if any image may match."""
        suffix = PurePosixPath(self.text).suffix
        return suffix if suffix.lower() in IMAGE_SUFFIXES else ""

    @property
    def names_files(self) -> bool:
        """Whether the last part describes the names of files, and not that of a folder."""
        return bool(self.ending) or is_template(PurePosixPath(self.text).name)

    @property
    def num_wildcards(self) -> int | None:
        """Number of asterisks before the ending; `None` if some stand for any number of folders."""
        return None if "**" in self._stem else self._stem.count("*")

    @property
    def _stem(self) -> str:
        text = PurePosixPath(self.text).as_posix()
        return text.removesuffix(".*") if not self.ending else text[: -len(self.ending)]

    @cached_property
    def _pattern(self) -> re.Pattern:
        parts = re.split(r"(\*\*/|\*\*|\*)", unicodedata.normalize("NFC", self._stem))
        return re.compile("".join(_WILDCARDS.get(part) or re.escape(part) for part in parts), re.DOTALL)

    def name(self, stem: str) -> str:
        """Return the texts for which the asterisks stand, joined by slashes, or an empty text.

        Args:
            stem (`str`): Path of a file below the folder of the data set, without its ending.
        """
        match = self._pattern.fullmatch(unicodedata.normalize("NFC", stem))
        return "/".join(text for text in match.groups() if text) if match else ""
