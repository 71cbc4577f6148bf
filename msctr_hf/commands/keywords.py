"""Settings as keyword arguments: what a command takes as flags, a Python function takes as objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any, NoReturn

from ..errors import UsageError
from .command_line import CommandLine


class Keywords(CommandLine):
    """The settings of a command as keyword arguments, checked by the same parser; a mistake raises `UsageError`."""

    def parse_keywords(self, config: str | PathLike | None, values: Mapping[str, Any]) -> tuple[tuple, list[str]]:
        """Return what `parse` returns, and the words of the command line that says the same.

        Args:
            config (`str`, *optional*): A YAML file, or the name of a shipped recipe.
            values (`Mapping`): Settings by name; `None` stands for the default, also where the recipe has a value.

        Raises:
            UsageError: If a name is unknown, or a value is of a wrong type or out of its range.
        """
        recipe = [] if config is None else ["--config", str(config)]
        words = [*recipe, *self.as_flags(values, "unknown setting")]
        defaults = {self.setting_of(name) for name, value in values.items() if value is None}
        return self.parse(words, without=defaults), words

    def error(self, message: str) -> NoReturn:
        """Raise what a command prints before it exits."""
        sentence = re.sub(r"^argument --(\w+)[^:]*: ", r"`\1`: ", message)
        raise UsageError(sentence.replace("See --help", f"See `{self.prog} --help`"))
