"""The one exception that stands for a mistake of the user, and how errors of other libraries become it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError


class UsageError(ValueError):
    """Something about the input is wrong: one sentence that says what, and what to do about it.

    A command prints the sentence and exits with code 2. Any other exception is a fault of the program and shows its
    traceback.

    Args:
        message (`str`): The sentence, in the words of the arguments of the function that raises it. A `DataLoader`
            makes the exception of a worker anew from the text of its traceback: only what follows the name of this
            class is kept, so that the sentence reads the same wherever it was raised.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition(f"{__name__}.UsageError: ")[2].strip())


@contextmanager
def as_usage_error(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Raise exceptions of these kinds as `UsageError`, around code of other libraries that judges what a user gave.

    Args:
        kinds (`type[Exception]`): What is converted; a `UsageError` passes as it is.
        prefix (`str`): Start of the sentence; the first line of the exception follows.
    """
    try:
        yield
    except UsageError:
        raise
    except kinds as error:
        raise UsageError(f"{prefix}{first_line(error)}") from error


@contextmanager
def building_a_network(prefix: str = "") -> Iterator[None]:
    """Convert what is wrong with a configuration, weights or a saved folder; never put it around a forward pass.

    `models/` must stand alone on the Hub, so it raises plain errors, and so does transformers.

    Args:
        prefix (`str`): Start of the sentence.
    """
    try:
        with as_usage_error(OSError, ValueError, SafetensorError, prefix=prefix):
            yield
    except StrictDataclassError as error:
        # "Validation error for field 'name':\n    TypeError: Field 'name' with value ...": the last line says it all
        reason = str(error).strip().splitlines()[-1].split(". Errors:")[0]
        reason = re.sub(r"^\s*\w+: Field '(\w+)'", r"`\1`", reason)
        raise UsageError(f"{prefix}{reason}") from error


def first_line(error: Exception) -> str:
    """First line of a message; the name of the exception where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
