"""The exception for mistakes of the user, the conversion of errors of other libraries to it, and warnings."""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

_MAX_REASON_LENGTH = 300


class UsageError(ValueError):
    """Mistake in the input, reported in one sentence: what is wrong, and what to do about it.

    A command prints the sentence and exits with code 2. Any other exception is a bug and shows its traceback.

    Args:
        message (`str`): The sentence; it names arguments of the function that raises it, in backticks.
    """

    def __init__(self, message: str):
        # a DataLoader builds the exception of a worker again from the text of its traceback: keep only the sentence
        super().__init__(message.rpartition(f"{__name__}.UsageError: ")[2].strip())


@contextmanager
def as_usage_error(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Convert exceptions of other libraries to `UsageError`, around code that checks what a user gave.

    Args:
        kinds (`type[Exception]`): Exceptions to convert; a `UsageError` passes unchanged.
        prefix (`str`): Start of the sentence, before the first line of the exception.
    """
    try:
        yield
    except UsageError:
        raise
    except kinds as error:
        raise UsageError(f"{prefix}{first_line(error)}") from error


@contextmanager
def building_a_network(prefix: str = "") -> Iterator[None]:
    """Convert errors about a configuration, weights or a saved folder; not to be used around a forward pass.

    `models/` raises plain errors because it also runs on the Hub without this package; transformers does the same.

    Args:
        prefix (`str`): Start of the sentence, before the reason.
    """
    try:
        with as_usage_error(OSError, ValueError, SafetensorError, prefix=prefix):
            yield
    except StrictDataclassError as error:
        # "Validation error for field 'name':\n    TypeError: Field 'name' with value ...": the last line is enough
        reason = str(error).strip().splitlines()[-1].split(". Errors:")[0]
        reason = re.sub(r"^\s*\w+: Field '(\w+)'", r"`\1`", reason)
        raise UsageError(f"{prefix}{reason}") from error


class InputWarning(UserWarning):
    """Sentence about input that is unusual, but can be used; commands print it without a line of code."""


def warn_caller(sentence: str) -> None:
    """Warn about the input, at the line outside this package that led here.

    Args:
        sentence (`str`): What is unusual, and what happens to it.
    """
    passed = (f"{__package__}.", "contextlib")  # which enters our context managers
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(passed):
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, InputWarning, stacklevel=level)


def first_line(error: Exception) -> str:
    """Return the first line of a message, or the name of the exception if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def brief_reason(error: Exception) -> str:
    """Return the first line of a message, cut between words if it is very long, for use inside a sentence."""
    return shorten(first_line(error))


def shorten(text: str, length: int = _MAX_REASON_LENGTH) -> str:
    """Cut a text between words, after the first one at the earliest: half a path or name would mislead.

    Args:
        text (`str`): Text, of which all white space becomes single spaces.
        length (`int`): Largest number of characters, with the dots that replace what was cut.
    """
    words = text.split()
    if not words:
        return ""
    short = textwrap.shorten(text, length, placeholder=" ...")
    return short if short.startswith(words[0]) else f"{words[0]} ..."
