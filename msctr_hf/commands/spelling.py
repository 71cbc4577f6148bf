"""Detection of misspelled flags, with suggestions."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Collection, Sequence
from typing import Any


class SpellingParser(argparse.ArgumentParser):
    """Parser that answers a misspelled flag with one line of usage and one sentence.

    Args:
        usage (`str`): The command without its flags, which `--help` lists.
        description (`str`, *optional*): Text above the flags.
        passed_on (`Collection[str]`): Flags, with their dashes, that are left for another parser.
    """

    def __init__(self, usage: str, description: str | None = None, passed_on: Collection[str] = (), **options: Any):
        super().__init__(
            usage=f"{usage} [--flag [VALUE ...] ...]; --help lists the flags",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )
        self.passed_on = passed_on

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse a misspelled flag before argparse reports arguments that are missing because of it."""
        arguments = sys.argv[1:] if args is None else list(args)
        known = {*self._option_string_actions, *self.passed_on}
        # flags after the name of a subcommand belong to the parser of the subcommand
        if self._subparsers is None and (flag := unknown_flag(known, arguments)) is not None:
            close = closest(flag, known)
            self.error(
                f"unknown argument {flag}. {f'Did you mean {close}?' if close else 'See --help for all flags.'}"
            )
        return super().parse_known_args(args, namespace)


def unknown_flag(known: Collection[str], arguments: Sequence[str]) -> str | None:
    """Return the first unknown flag of a command line, or `None`."""
    for word in arguments:
        if word == "--":
            return None
        flag = word.split("=")[0]
        # argparse also treats a word with a space as a value
        if flag.startswith("--") and " " not in word and flag not in known:
            return flag
    return None


def closest(name: str, names: Collection[str]) -> str | None:
    """Return the most similar of the known names, or `None` if none is similar."""
    return next(iter(difflib.get_close_matches(name, sorted(names), n=1)), None)
