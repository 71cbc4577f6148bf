"""Suppression of messages of libraries that a user can do nothing about, in the output of commands."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import InputWarning
from ..progress import is_terminal

# (regular expression for the start of the message, category, regular expression for the module)
_UNAVOIDABLE_WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    # transformers reads exported programs through a name that PyTorch renamed
    (r"`treespec\.children_specs` is deprecated", FutureWarning, r"transformers\.exporters\."),
)


_format_with_code = warnings.formatwarning
_RETRY_MESSAGE = re.compile(r"'.*' thrown while requesting |Retrying in ", re.DOTALL)


class _OneLinePerOutage(logging.Filter):
    """Log filter that reports once that the Hub does not answer; huggingface_hub writes two lines per attempt."""

    reported = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop messages about attempts, except the first, whose text is replaced."""
        if not _RETRY_MESSAGE.match(record.getMessage()):
            return True
        first, self.reported = not self.reported, True
        record.msg, record.args = "The Hub does not answer; retrying.", None
        return first


def quiet_libraries() -> None:
    """Turn off progress bars of libraries that would garble the output, and warnings about their internals.

    Warnings about the input become lines without code, from one process of a run only.
    """
    from PIL.Image import DecompressionBombWarning
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # weights load in a moment
    if not is_terminal():
        _hide_bars_of_datasets()
    # Pillow warns from half the size at which it refuses an image
    warnings.filterwarnings("ignore", category=DecompressionBombWarning)
    for message, category, module in _UNAVOIDABLE_WARNINGS:
        warnings.filterwarnings("ignore", message, category, module)
    warnings.formatwarning = _format_warning
    if os.environ.get("RANK", "0") != "0":
        warnings.filterwarnings("ignore", category=InputWarning)
    logging.getLogger("huggingface_hub.utils._http").addFilter(_OneLinePerOutage())
    # a log should show a line when it is written, and in the order of the lines on stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if issubclass(category, InputWarning):
        return f"warning: {message}\n"
    return _format_with_code(message, category, filename, lineno, line)


@contextmanager
def without_bars_of_transformers() -> Iterator[None]:
    """Hide the progress bars of transformers within a block, and show them again afterwards if they were shown."""
    from transformers.utils import logging as transformers_logging

    were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            transformers_logging.enable_progress_bar()


def _hide_bars_of_datasets() -> None:
    """Hide the progress bars of `datasets`, which garble files too, without importing it needlessly."""
    # read when `datasets` is imported, here or in a worker process
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if "datasets" in sys.modules:
        from datasets import disable_progress_bars

        disable_progress_bars()
