"""From dataclasses of settings to flags and back: defaults, then a recipe, then the command line."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from safetensors import SafetensorError
from transformers import HfArgumentParser

from ..errors import UsageError, first_line
from ..models.configuration_msctr import MsctrConfig
from ..settings import About, abouts
from ..training.interruption import EXIT_INTERRUPTED, Interrupted
from .recipes import find_recipe

# Set from the data set or from `backbone`, not by hand.
_WITHOUT_FLAG = {"backbone_config", "palette", "semantic_loss_ignore_index"}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description; a default of `None` is explained by the help text itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", []) else super()._get_help_string(action)


class CommandLine(HfArgumentParser):
    """Parser of one command.

    Args:
        groups (`Sequence[type]`): Dataclasses whose fields become flags, each a group of `--help`.
        description (`str`): Text above the flags: what the command does, with examples.
        command (`str`): Its name after `msctr`.
        with_network_settings (`bool`): Also take every setting of `MsctrConfig`, as a last dict.
        words (`Mapping[str, str]`, *optional*): Argument of a library function -> flag, where names differ.
    """

    def __init__(
        self,
        groups: Sequence[type],
        description: str | None,
        command: str,
        *,
        with_network_settings: bool = False,
        words: Mapping[str, str] | None = None,
    ):
        super().__init__(
            groups,
            prog=f"msctr {command}",
            usage=f"msctr {command} [--config RECIPE] [--flag [VALUE ...] ...]; --help lists the flags",
            description=description,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        self.words = words or {}
        self.resembling = {
            name: ours for ours, about in abouts(*groups).items() for name in (*about.resembles, *about.aliases)
        }
        self.instead_of = {name: about.instead_of for name, about in abouts(*groups).items() if about.instead_of}
        self.add_argument(
            "--config",
            help="YAML file, or name of a shipped recipe; its values replace the defaults, flags win.",
        )
        self.network_settings = self._add_network_settings() if with_network_settings else []

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        # the library hands all metadata on to argparse, which knows help only
        about: About = field.metadata.get("setting", About())
        known = copy.copy(field)
        aliases = [f"--{name}" for name in about.aliases]
        known.metadata = {"help": about.help.replace("%", "%%"), "aliases": aliases}  # type: ignore[assignment]
        HfArgumentParser._parse_dataclass_field(parser, known)
        action = parser._option_string_actions[f"--{field.name}"]
        if action.nargs == "+":
            action.nargs = "*"  # an empty list is a value too, and config.yaml of a run has some
        for name in about.former:  # scripts and files of older versions still name it so; the help does not
            options = {"nargs": action.nargs, "const": action.const, "type": action.type, "choices": action.choices}
            parser.add_argument(
                f"--{name}", dest=field.name, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options
            )

    def _add_network_settings(self) -> list[str]:
        taken = {action.dest for action in self._actions} | _WITHOUT_FLAG
        group = self.add_argument_group("network and objective (MsctrConfig)")
        fields = [
            each for each in dataclasses.fields(MsctrConfig) if "help" in each.metadata and each.name not in taken
        ]
        for each in fields:
            default = "" if each.default is None else f" (default: {each.default})"
            options: dict[str, Any] = {"type": yaml.safe_load, "default": argparse.SUPPRESS}
            if bool in (each.type, *get_args(each.type)):
                options |= {"nargs": "?", "const": True}
            if get_origin(each.type) is Literal:
                options |= {"metavar": "{" + ",".join(get_args(each.type)) + "}"}
            group.add_argument(
                f"--{each.name}", help=f"{each.metadata['help']}{default}".replace("%", "%%"), **options
            )
        return [each.name for each in fields]

    def parse(self, argv: Sequence[str], without: Iterable[str] = ()) -> tuple:
        """One instance for every group, and the dict of network settings if asked for.

        Errors of spelling print the usage and a sentence, and exit with code 2.

        Args:
            argv (`Sequence[str]`): The words of the command line.
            without (`Iterable[str]`): Settings whose values in the recipe do not count.

        Raises:
            UsageError: If a value is out of its range, or values do not fit each other.
        """
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config")
        words = list(argv)
        if (config := finder.parse_known_args(words)[0].config) is not None:
            words = [*self._flags_of(find_recipe(config), {*without, *self._replaced_by(words)}), *words]
        *parsed, rest, unknown = self.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            self._refuse(unknown[0].lstrip("-").split("=")[0], f"unknown argument {unknown[0]}.", "--{}")
        if not self.network_settings:
            return tuple(parsed)
        return *parsed, {name: getattr(rest, name) for name in self.network_settings if hasattr(rest, name)}

    def run(self, argv: Sequence[str], function: Callable[..., None]) -> None:
        """Parse, then call `function` with what was parsed; see `one_sentence`."""
        with one_sentence(self.in_words_of_flags):
            function(*self.parse(argv))
        _end_before_gloo_aborts()

    def in_words_of_flags(self, sentence: str) -> str:
        """Name arguments as this command line does: `name` -> --name, `name='value'` -> --name value; on one line."""
        flags = {action.dest for action in self._actions}

        def as_flag(found: re.Match) -> str:
            name = self.words.get(found[1], found[1])
            if name not in flags:
                return found[0]
            value = {"True": "true", "False": "false"}.get(found[2], (found[2] or "").strip("'"))
            return f"--{name} {value}" if value else f"--{name}"

        return " ".join(re.sub(r"`(\w+)(?:=([^`]+))?`", as_flag, sentence).split())

    def _replaced_by(self, words: Sequence[str]) -> set[str]:
        """Settings whose values in a recipe do not count, since a flag says the same in another way."""
        given = (self._option_string_actions.get(word.split("=")[0]) for word in words)
        return {other for action in given if action for other in self.instead_of.get(action.dest, ())}

    def _flags_of(self, path: Path, without: Collection[str]) -> list[str]:
        """The file as flags, so that one parser checks names and types of both."""
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            self.error(f"{path} is not valid YAML: {' '.join(str(error).split())}")
        except (OSError, UnicodeDecodeError) as error:
            self.error(f"{path} cannot be read: {error}")
        if not isinstance(values, dict):
            self.error(f"{path} must hold `key: value` lines.")
        given = {key: value for key, value in values.items() if value is not None}
        for name in self.instead_of.keys() & given.keys():
            if both := given.keys() & {*self.instead_of[name]}:
                raise UsageError(f"{path} sets both {' and '.join(f'`{each}`' for each in sorted({name, *both}))}.")
        counting = {key: value for key, value in values.items() if key not in without}
        return self.as_flags(counting, f"{path}: unknown key")

    def as_flags(self, values: Mapping[Any, Any], unknown: str) -> list[str]:
        """Convert values by name to flags; `None` is the default and gives none.

        Args:
            values (`Mapping`): Settings.
            unknown (`str`): How the sentence about an unknown name begins.
        """
        flags: list[str] = []
        for key, value in values.items():
            action = self._option_string_actions.get(f"--{key}")
            if action is None or key in ("config", "help"):
                self._refuse(str(key), f"{unknown} `{key}`.", "`{}`")
            elif value is not None:
                flags += [f"--{key}", *_as_words(value, many=action.nargs in ("+", "*"))]
        return flags

    def _refuse(self, name: str, sentence: str, quoted: str) -> None:
        """End with a sentence about an unknown name, and the one that was probably meant."""
        names = [action.dest for action in self._actions]
        if name in self.resembling:
            self.error(f"{sentence} Its place is taken by {quoted.format(self.resembling[name])}.")
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {quoted.format(close[0])}?" if close else "See --help for all settings."
        self.error(f"{sentence} {hint}")


def _end_before_gloo_aborts() -> None:
    """End a process of several that were joined by gloo, now that all is written, without shutting Python down.

    gloo's threads can abort an interpreter that shuts down ("terminate called without an active exception", seen with
    PyTorch 2.14 and 2.15 in about one of forty runs), and the launcher would report a failure of what has succeeded.
    """
    if "accelerate" not in sys.modules:
        return
    from accelerate.state import PartialState, is_initialized

    if is_initialized() and PartialState().backend == "gloo":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextmanager
def one_sentence(reword: Callable[[str], str] = str) -> Iterator[None]:
    """Turn a mistake of the user into one sentence and exit code 2; its traceback shows with `MSCTR_DEBUG=1`.

    A run that was told to stop exits with 75. Any other exception is a fault of the program and shows its traceback.

    Args:
        reword (`Callable`): Puts the sentence into the words of a command line.
    """
    try:
        yield
    except UsageError as error:
        if os.environ.get("MSCTR_DEBUG"):
            raise
        sentence, code = f"error: {reword(str(error))}", 2
    except Interrupted as stopped:
        sentence, code = reword(str(stopped)), EXIT_INTERRUPTED
    else:
        return
    sys.stdout.flush()
    print(sentence, file=sys.stderr)
    sys.exit(code)


@contextmanager
def written_to_output_dir(output_dir: str | Path | None) -> Iterator[None]:
    """Convert a full disk, and what the system says of files below a folder that the user named."""
    try:
        yield
    except SafetensorError as error:  # a full disk, while weights are written
        raise UsageError(f"`output_dir`: {output_dir} could not be written ({first_line(error)}).") from error
    except OSError as error:
        named = str(error.filename or "")
        below = output_dir is not None and Path(named).absolute().is_relative_to(Path(output_dir).absolute())
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not (named and below):
            raise
        raise UsageError(f"`output_dir`: {output_dir} could not be written ({error.strerror}).") from error


def _as_words(value: Any, many: bool) -> list[str]:
    if many and isinstance(value, (list, tuple)):
        return [str(entry) for entry in value]
    return [str(value) if isinstance(value, (str, os.PathLike)) else json.dumps(value)]
