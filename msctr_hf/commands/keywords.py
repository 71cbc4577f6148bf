"""Settings as keyword arguments of Python functions, with the same checks as the flags of commands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any, NoReturn

from ..errors import UsageError
from .command_line import CommandLine


class Keywords(CommandLine):
    """Parser of the settings of a command that are given as keyword arguments; a mistake raises `UsageError`."""

    def parse_keywords(self, config: str | PathLike | None, values: Mapping[str, Any]) -> tuple[tuple, list[str]]:
        """Parse settings as `parse` does, and also return the arguments of the equivalent command line.

        Args:
            config (`str`, *optional*): A YAML file, or the name of a shipped recipe.
            values (`Mapping`): Settings by name; `None` means the default, even if the recipe has a value.

        Raises:
            UsageError: If a name is unknown, or a value has a wrong type or is out of range.
        """
        recipe = [] if config is None else ["--config", str(config)]
        arguments = [*recipe, *self.as_flags(values, "unknown setting")]
        defaults = {self.setting_of(name) for name, value in values.items() if value is None}
        return self.parse(arguments, without=defaults), arguments

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError` with the message that a command would print."""
        sentence = re.sub(r"^argument --(\w+)[^:]*: ", r"`\1`: ", message)
        raise UsageError(sentence.replace("See --help", f"See `{self.prog} --help`"))
