"""Misspelled flags, and the ones that were probably meant."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Collection, Sequence
from typing import Any


class SpellingParser(argparse.ArgumentParser):
    """A parser that answers a misspelled flag with one line of usage and one sentence.

    Args:
        usage (`str`): How the command is called; the flags are left to `--help`.
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
        """Refuse a misspelled flag before argparse complains of what is missing because of it."""
        words = sys.argv[1:] if args is None else list(args)
        known = {*self._option_string_actions, *self.passed_on}
        # the flags behind the name of a subcommand are for the parser of the subcommand
        if self._subparsers is None and (flag := unknown_flag(known, words)) is not None:
            close = closest(flag, known)
            self.error(
                f"unknown argument {flag}. {f'Did you mean {close}?' if close else 'See --help for all flags.'}"
            )
        return super().parse_known_args(args, namespace)


def unknown_flag(known: Collection[str], words: Sequence[str]) -> str | None:
    """Return the first flag of a command line that is not known."""
    for word in words:
        if word == "--":
            return None
        flag = word.split("=")[0]
        # argparse, too, takes a word with a space for a value
        if flag.startswith("--") and " " not in word and flag not in known:
            return flag
    return None


def closest(name: str, names: Collection[str]) -> str | None:
    """Return the name that was probably meant."""
    return next(iter(difflib.get_close_matches(name, sorted(names), n=1)), None)
