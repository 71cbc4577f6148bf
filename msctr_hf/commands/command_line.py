"""Turn dataclasses of settings into flags, and back: defaults, then a recipe, then the command line."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
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
from .quiet import quiet_libraries
from .recipes import find_recipe
from .spelling import closest, unknown_flag

# the data set or `backbone` determines them
_WITHOUT_FLAG = {"backbone_config", "palette", "semantic_loss_ignore_index"}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keep the lines of the description, and leave a default of `None` to the help text."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", []) else super()._get_help_string(action)


class CommandLine(HfArgumentParser):
    """Parse the flags of one command into its dataclasses of settings.

    Args:
        groups (`Sequence[type]`): Dataclasses whose fields become flags, each a group of `--help`.
        description (`str`): Text above the flags: what the command does, with examples.
        command (`str`): Name of the command, the word after `msctr`.
        with_network_settings (`bool`): Also accept the settings of `MsctrConfig`; `parse` returns them as a last dict.
        words (`Mapping[str, str]`, *optional*): Flag of each library argument that has another name.
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
            usage=f"msctr {command} [--config FILE] [--flag [VALUE ...] ...]; --help lists the flags",
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
            help="YAML file, or name of a shipped recipe; its values replace the defaults, flags win."
            if with_network_settings
            else "YAML file with values of these flags; they replace the defaults, flags win.",
        )
        self.network_settings = self._add_network_settings() if with_network_settings else []

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        # transformers passes all metadata on to argparse, which knows `help` only
        about: About = field.metadata.get("setting", About())
        known = copy.copy(field)
        aliases = [f"--{name}" for name in about.aliases]
        known.metadata = {"help": about.help.replace("%", "%%"), "aliases": aliases}  # type: ignore[assignment]
        HfArgumentParser._parse_dataclass_field(parser, known)
        action = parser._option_string_actions[f"--{field.name}"]
        if action.nargs == "+":
            action.nargs = "*"  # an empty list is a value too, and config.yaml of a run has some
        if bool in get_args(field.type) and action.nargs is None:
            action.nargs, action.const = "?", True  # bare like every other boolean
        if (complement := parser._option_string_actions.get(f"--no_{field.name}")) is not None:
            complement.help = argparse.SUPPRESS  # of the library, for booleans that are true by default
        for name in about.former:  # older scripts and files use it; `--help` does not show it
            options = {"nargs": action.nargs, "const": action.const, "type": action.type, "choices": action.choices}
            spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
            parser.add_argument(
                *spellings, dest=field.name, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options
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
        """Return one instance of every group, followed by the dict of network settings if the command takes them.

        A misspelled name or value prints one line of usage and one sentence, and exits with code 2.

        Args:
            argv (`Sequence[str]`): Words that follow the command.
            without (`Iterable[str]`): Settings whose values in the recipe are ignored.

        Raises:
            UsageError: If a value is out of range, or values contradict each other.
        """
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config")
        words = list(argv)
        if (config := finder.parse_known_args(words)[0].config) is not None:
            words = [*self._flags_of(find_recipe(config), {*without, *self._replaced_by(words)}), *words]
        # before anything is missing or out of its range because of a misspelled flag
        if (flag := unknown_flag(self._option_string_actions, words)) is not None:
            self._refuse(flag.lstrip("-"), f"unknown argument {flag}.", "--{}")
        *parsed, rest, unknown = self.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            self._refuse(unknown[0].lstrip("-"), f"unknown argument {unknown[0]}.", "--{}")
        if not self.network_settings:
            return tuple(parsed)
        return *parsed, {name: getattr(rest, name) for name in self.network_settings if hasattr(rest, name)}

    def run(self, argv: Sequence[str], function: Callable[..., None]) -> None:
        """Parse the command line and call `function` with the settings; `one_sentence` reports mistakes."""
        with one_sentence(self.in_words_of_flags):
            quiet_libraries()
            function(*self.parse(argv))
        _end_before_gloo_aborts()

    def in_words_of_flags(self, sentence: str) -> str:
        """Rewrite a message for the command line: `name` becomes --name, `name='value'` becomes --name value."""
        flags = {action.dest for action in self._actions}

        def as_flag(found: re.Match) -> str:
            name = self.words.get(found[1], found[1])
            if name not in flags:
                return found[0]
            value = {"True": "true", "False": "false"}.get(found[2], (found[2] or "").strip("'"))
            return f"--{name} {value}" if value else f"--{name}"

        return " ".join(re.sub(r"`(\w+)(?:=([^`]+))?`", as_flag, sentence).split())

    def _replaced_by(self, words: Sequence[str]) -> set[str]:
        """Find settings whose values in a recipe do not count, since a flag says the same in another way."""
        given = (self._option_string_actions.get(word.split("=")[0]) for word in words)
        return {other for action in given if action for other in self.instead_of.get(action.dest, ())}

    def _flags_of(self, path: Path, without: Collection[str]) -> list[str]:
        """Read a YAML file as flags, so that one parser checks the names and types of both."""
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            self.error(f"{path} is not valid YAML: {' '.join(str(error).split())}")
        except (OSError, UnicodeDecodeError) as error:
            self.error(f"{path} cannot be read: {error}")
        if not isinstance(values, dict):
            self.error(f"{path} must hold `key: value` lines.")
        given = {self.setting_of(key) for key, value in values.items() if value is not None}
        for name in self.instead_of.keys() & given:
            if both := given & {*self.instead_of[name]}:
                raise UsageError(f"{path} sets both {' and '.join(f'`{each}`' for each in sorted({name, *both}))}.")
        counting = {key: value for key, value in values.items() if self.setting_of(key) not in without}
        return self.as_flags(counting, f"{path}: unknown key")

    def setting_of(self, name: Any) -> str:
        """Return the setting that a name means: its own, an alias, a former one, or one with dashes."""
        action = self._option_string_actions.get(f"--{name}")
        return str(name) if action is None else action.dest

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
                try:
                    flags += [f"--{key}", *_as_words(value, many=action.nargs in ("+", "*"))]
                except TypeError as error:
                    self.error(f"argument --{key}: {error}")
        return flags

    def _refuse(self, name: str, sentence: str, quoted: str) -> None:
        """Exit with a sentence about an unknown name and a hint at the one that was probably meant."""
        names = [action.dest for action in self._actions if action.dest != name]
        if name in self.resembling:
            self.error(f"{sentence} Use {quoted.format(self.resembling[name])} instead.")
        close = closest(name, names)
        hint = f"Did you mean {quoted.format(close)}?" if close else "See --help for all settings."
        self.error(f"{sentence} {hint}")


def _end_before_gloo_aborts() -> None:
    """End a process that was joined with others by gloo, without the shutdown of the Python interpreter.

    gloo's threads can abort an interpreter that shuts down ("terminate called without an active exception", seen with
    PyTorch 2.14 and 2.15 in about one of forty runs), and the launcher would report a failure although the command
    succeeded and all files are written.
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
    """Turn a `UsageError` into one sentence and exit code 2; `MSCTR_DEBUG=1` shows its traceback instead.

    A run that a signal stopped exits with 75. Any other exception is a bug and shows its traceback.

    Args:
        reword (`Callable`): Rewrites the sentence for a command line.
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
    """Raise a full disk, and errors of files below the folder that the user named, as `UsageError`."""
    try:
        yield
    except SafetensorError as error:  # safetensors reports a full disk this way
        raise UsageError(f"`output_dir`: {output_dir} could not be written ({first_line(error)}).") from error
    except OSError as error:
        named = str(error.filename or "")
        below = output_dir is not None and Path(named).absolute().is_relative_to(Path(output_dir).absolute())
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not (named and below):
            raise
        raise UsageError(f"`output_dir`: {output_dir} could not be written ({error.strerror}).") from error


def _as_words(value: Any, many: bool) -> list[str]:
    if many and hasattr(value, "tolist"):
        value = value.tolist()
    if many and isinstance(value, (list, tuple)):
        return [word for entry in value for word in _as_words(entry, many=False)]
    # YAML reads 2026-01-31, which may be the name of a folder, as a date
    is_text = isinstance(value, (str, os.PathLike, datetime.date))
    return [str(value) if is_text else json.dumps(value, default=_as_plain)]


def _as_plain(value: Any) -> Any:
    """Convert arrays and numbers of numpy and torch to lists and numbers of Python."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"expected a number, a text, true, false or a list, got a {type(value).__name__}.")
    return value.tolist()
