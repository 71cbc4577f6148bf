"""Keep messages of libraries that a user can do nothing about out of the output of a command."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..progress import is_terminal

# message (start, a regular expression), category, module (a regular expression)
_UNAVOIDABLE_WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    # transformers reads exported programs through a name that PyTorch renamed
    (r"`treespec\.children_specs` is deprecated", FutureWarning, r"transformers\.exporters\."),
)


_ATTEMPT = re.compile(r"'.*' thrown while requesting |Retrying in ", re.DOTALL)


class _OneLinePerOutage(logging.Filter):
    """Report once that the Hub does not answer, where huggingface_hub writes two lines for every attempt."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep everything but reports of attempts; the first of these is replaced."""
        if not _ATTEMPT.match(record.getMessage()):
            return True
        first, self.said = not self.said, True
        record.msg, record.args = "The Hub does not answer; trying again.", None
        return first


def quiet_libraries() -> None:
    """Turn off bars of libraries that would garble the output, and warnings about their own internals."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # models load within a moment
    if not is_terminal():
        _hide_bars_of_datasets()
    for message, category, module in _UNAVOIDABLE_WARNINGS:
        warnings.filterwarnings("ignore", message, category, module)
    logging.getLogger("huggingface_hub.utils._http").addFilter(_OneLinePerOutage())
    # a log should show a line when it is written, and in the order of the lines on stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


@contextmanager
def without_bars_of_transformers() -> Iterator[None]:
    """Hide the bars of transformers within a block, for functions in a program that may want them otherwise."""
    from transformers.utils import logging as of_transformers

    were_shown = of_transformers.is_progress_bar_enabled()
    of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            of_transformers.enable_progress_bar()


def _hide_bars_of_datasets() -> None:
    """Hide the bars of `datasets`, which use carriage returns in files too, without importing it needlessly."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when it is imported, here or in a worker
    if "datasets" in sys.modules:
        from datasets import disable_progress_bars

        disable_progress_bars()
