"""Command lines built from dataclasses of settings: a recipe replaces defaults, and flags replace both."""

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

from ..data.settings import is_about_unlabeled
from ..errors import UsageError, first_line
from ..models.configuration_msctr import MsctrConfig
from ..settings import SettingInfo, setting_infos
from ..training.interruption import EXIT_INTERRUPTED, Interrupted
from .quiet import quiet_libraries
from .recipes import find_recipe
from .spelling import closest, unknown_flag

# fields of `MsctrConfig` that the data set or `backbone` determines
_WITHOUT_FLAG = {"backbone_config", "palette", "semantic_loss_ignore_index"}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Formatter that keeps the lines of the description and leaves a default of `None` to the help text."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", []) else super()._get_help_string(action)


class _ListOfNetwork(argparse.Action):
    """Action of a list of `MsctrConfig`: its entries one after another, or the list of YAML that a recipe has."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store a list; a single word may also be a word such as `auto`, or null."""
        value = values if len(values) > 1 else values[0]
        setattr(namespace, self.dest, [value] if isinstance(value, (int, float)) else value)


class CommandLine(HfArgumentParser):
    """Parser of the flags of one command, which fills its dataclasses of settings.

    Args:
        groups (`Sequence[type]`): Dataclasses whose fields become flags, each a group of `--help`.
        description (`str`): Text above the flags, with the purpose of the command and examples.
        command (`str`): Name of the command, the word after `msctr`.
        with_network_settings (`bool`): Also accept the settings of `MsctrConfig`; `parse` returns them as a last dict.
        flag_names (`Mapping[str, str]`, *optional*): Flags of function arguments that have another name there, for
            messages.
    """

    def __init__(
        self,
        groups: Sequence[type],
        description: str | None,
        command: str,
        *,
        with_network_settings: bool = False,
        flag_names: Mapping[str, str] | None = None,
    ):
        super().__init__(
            groups,
            prog=f"msctr {command}",
            usage=f"msctr {command} [--config FILE] [--flag [VALUE ...] ...]; --help lists the flags",
            description=description,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        self.flag_names = flag_names or {}
        self.resembling = {
            name: ours for ours, info in setting_infos(*groups).items() for name in (*info.resembles, *info.aliases)
        }
        self.instead_of = {name: info.instead_of for name, info in setting_infos(*groups).items() if info.instead_of}
        self.lengths = {name: info.length for name, info in setting_infos(*groups).items() if info.length is not None}
        self.add_argument(
            "--config",
            help="YAML file, or name of a shipped recipe; its values replace the defaults, flags win."
            if with_network_settings
            else "YAML file with values of these flags; they replace the defaults, flags win.",
        )
        self.network_settings = self._add_network_settings() if with_network_settings else []
        self._gather("images without labels", is_about_unlabeled)

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        # transformers passes all metadata to argparse, which accepts only `help`
        info: SettingInfo = field.metadata.get("setting", SettingInfo())
        known = copy.copy(field)
        aliases = [f"--{name}" for name in info.aliases]
        known.metadata = {"help": info.help.replace("%", "%%"), "aliases": aliases}  # type: ignore[assignment]
        HfArgumentParser._parse_dataclass_field(parser, known)
        action = parser._option_string_actions[f"--{field.name}"]
        if action.nargs == "+":
            action.nargs = "*"  # an empty list is a value too, and the config.yaml of a run contains some
        if info.former_values:
            action.type = _with_former_values(action.type, info.former_values)
        if bool in get_args(field.type) and action.nargs is None:
            action.nargs, action.const = "?", True  # the flag alone means true, as for every other boolean
        if (complement := parser._option_string_actions.get(f"--no_{field.name}")) is not None:
            complement.help = argparse.SUPPRESS  # added by transformers; `--NAME false` does the same
        for name in info.former:  # for older scripts and recipes; `--help` does not show it
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
            options: dict[str, Any] = {"type": _read_yaml, "default": argparse.SUPPRESS}
            example = ""
            if lists := [kind for kind in get_args(each.type) if get_origin(kind) is list]:
                options |= {"nargs": "+", "action": _ListOfNetwork}
                is_nested = get_origin(get_args(lists[0])[0]) is list
                example = " For example: '[[0, 3], [0, 2]]'." if is_nested else " For example: 1 2 3."
            if bool in (each.type, *get_args(each.type)):
                options |= {"nargs": "?", "const": True}
            if get_origin(each.type) is Literal:
                options |= {"metavar": "{" + ",".join(get_args(each.type)) + "}"}
            group.add_argument(
                f"--{each.name}", help=f"{each.metadata['help']}{example}{default}".replace("%", "%%"), **options
            )
        return [each.name for each in fields]

    def _gather(self, title: str, belongs: Callable[[str], bool]) -> None:
        """Show flags that come from several dataclasses in one group of `--help`, by their names."""
        gathered: list[argparse.Action] = []
        for group in self._action_groups:
            gathered += [action for action in group._group_actions if belongs(action.dest)]
            group._group_actions = [action for action in group._group_actions if not belongs(action.dest)]
        if gathered:
            self.add_argument_group(title)._group_actions.extend(gathered)

    def parse(self, argv: Sequence[str], without: Iterable[str] = ()) -> tuple:
        """Return one instance of every group, followed by the dict of network settings if the command takes them.

        A misspelled name or value prints one line of usage and one sentence, and exits with code 2. The values of a
        list without default that is given by several flags are joined; of other flags, the last one counts.

        Args:
            argv (`Sequence[str]`): Arguments of the command line.
            without (`Iterable[str]`): Settings whose values in the recipe are ignored.

        Raises:
            UsageError: If a value is out of range, or values contradict each other.
        """
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config")
        arguments = self._with_each_list_once(argv)
        if (config := finder.parse_known_args(arguments)[0].config) is not None:
            arguments = [*self._flags_of(find_recipe(config), {*without, *self._replaced_by(arguments)}), *arguments]
        # checked first: a misspelled flag can make others look missing or out of range, and they would be reported
        if (flag := unknown_flag(self._option_string_actions, arguments)) is not None:
            self._refuse(flag.lstrip("-"), f"unknown argument {flag}.", "--{}")
        *parsed, rest, unknown = self.parse_args_into_dataclasses(
            arguments, return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            self._refuse(unknown[0].lstrip("-"), f"unknown argument {unknown[0]}.", "--{}")
        if not self.network_settings:
            return tuple(parsed)
        return *parsed, {name: getattr(rest, name) for name in self.network_settings if hasattr(rest, name)}

    def run(self, argv: Sequence[str], function: Callable[..., None]) -> None:
        """Parse the command line and call `function` with the settings; `one_sentence` reports mistakes."""
        with one_sentence(self.with_flag_names):
            quiet_libraries()
            function(*self.parse(argv))
        _end_before_gloo_aborts()

    def with_flag_names(self, sentence: str) -> str:
        """Rewrite a message for the command line: `name` becomes --name, and `name='value'` becomes --name value."""
        flags = {action.dest for action in self._actions}

        def as_flag(found: re.Match) -> str:
            name = self.flag_names.get(found[1], found[1])
            if name not in flags:
                return found[0]
            value = {"True": "true", "False": "false"}.get(found[2], (found[2] or "").strip("'"))
            return f"--{name} {value}" if value else f"--{name}"

        return " ".join(re.sub(r"`(\w+)(?:=([^`]+))?`", as_flag, sentence).split())

    def _with_each_list_once(self, words: Sequence[str]) -> list[str]:
        """Join the values of a list that is given by several flags, of which argparse would keep only the last.

        A list with a default is one value as a whole, such as the scales of a prediction: there the last flag counts.
        """
        segments: list[list[str]] = [[]]  # a flag with its values
        for word in words:
            # argparse treats a word with a space as a value, too
            is_flag = word.partition("=")[0] in self._option_string_actions or (word[:2] == "--" and " " not in word)
            if is_flag:
                segments.append([])
            segments[-1].append(word)
        first: dict[str, list[str]] = {}
        for segment in segments[1:]:
            action = self._option_string_actions.get(segment[0].partition("=")[0])
            if action is None or action.nargs != "*" or action.default:
                continue
            earlier = first.setdefault(action.dest, segment)
            if earlier is segment:
                continue
            if (length := self.lengths.get(action.dest)) is not None:
                self.error(f"argument --{action.dest}: given more than once; give its {length} values once.")
            earlier[:] = [*_flag_and_values(earlier), *_flag_and_values(segment)[1:]]
            segment.clear()
        return [word for segment in segments for word in segment]

    def _replaced_by(self, arguments: Sequence[str]) -> set[str]:
        """Find the settings whose values in a recipe are replaced by a flag with another name (`instead_of`)."""
        given = (self._option_string_actions.get(word.split("=")[0]) for word in arguments)
        return {other for action in given if action for other in self.instead_of.get(action.dest, ())}

    def _flags_of(self, path: Path, without: Collection[str]) -> list[str]:
        """Convert a YAML file to flags, so that one parser checks the names and types of both."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            self.error(f"{path} is not valid YAML: {' '.join(str(error).split())}")
        except (OSError, UnicodeDecodeError) as error:
            self.error(f"{path} cannot be read: {error}")
        if not isinstance(values, dict):
            self.error(f"{path} must contain `key: value` lines.")
        given = {self.setting_of(key) for key, value in values.items() if value is not None}
        for name in self.instead_of.keys() & given:
            if both := given & {*self.instead_of[name]}:
                raise UsageError(f"{path} sets both {' and '.join(f'`{each}`' for each in sorted({name, *both}))}.")
        used = {key: value for key, value in values.items() if self.setting_of(key) not in without}
        return self.as_flags(used, f"{path}: unknown key")

    def setting_of(self, name: Any) -> str:
        """Return the setting to which a name, an alias, a former name or a spelling with dashes refers."""
        action = self._option_string_actions.get(f"--{name}")
        return str(name) if action is None else action.dest

    def as_flags(self, values: Mapping[Any, Any], unknown: str) -> list[str]:
        """Convert values by name to flags; a value of `None` means the default and needs no flag.

        Args:
            values (`Mapping`): Values of settings by name.
            unknown (`str`): Start of the message about an unknown name.
        """
        flags: list[str] = []
        for key, value in values.items():
            action = self._option_string_actions.get(f"--{key}")
            if action is None or key in ("config", "help"):
                self._refuse(str(key), f"{unknown} `{key}`.", "`{}`")
            elif value is not None:
                in_words = action.nargs in ("+", "*") and not isinstance(action, _ListOfNetwork)
                try:
                    flags += [f"--{key}", *_as_arguments(value, many=in_words)]
                except TypeError as error:
                    self.error(f"argument --{key}: {error}")
        return flags

    def _refuse(self, name: str, sentence: str, quoted: str) -> None:
        """Exit with a message about an unknown name that suggests the one that was probably meant."""
        names = [action.dest for action in self._actions if action.dest != name]
        if name in self.resembling:
            self.error(f"{sentence} Use {quoted.format(self.resembling[name])} instead.")
        close = closest(name, names)
        hint = f"Did you mean {quoted.format(close)}?" if close else "See --help for all settings."
        self.error(f"{sentence} {hint}")


def _read_yaml(word: str) -> Any:
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(
            f"{word!r} cannot be read; write a list as 1 2 3, or in quotes as '[1, 2, 3]'."
        ) from error


def _flag_and_values(words: Sequence[str]) -> list[str]:
    """Separate `--flag=value` into two words."""
    flag, equals, value = words[0].partition("=")
    return [flag, *([value] if equals else []), *words[1:]]


def _with_former_values(read: Any, former: Mapping[str, str]) -> Callable[[str], Any]:
    return lambda word: read(former.get(word, word))


def _end_before_gloo_aborts() -> None:
    """End a process that gloo connects with others, without the shutdown of the Python interpreter.

    gloo's threads can abort an interpreter that shuts down ("terminate called without an active exception", seen with
    PyTorch 2.14 and 2.15 in about one of forty runs), and the launcher would report a failure although the command
    has succeeded and all files are written.
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
    """Report a `UsageError` as one sentence with exit code 2; `MSCTR_DEBUG=1` shows its traceback instead.

    A run that a signal stopped exits with 75. Any other exception is a bug and shows its traceback.

    Args:
        reword (`Callable`): Function that rewrites the sentence for the command line.
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
    """Raise `UsageError` if the disk is full or a file below the folder that the user named cannot be written."""
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


def _as_arguments(value: Any, many: bool) -> list[str]:
    if many and hasattr(value, "tolist"):
        value = value.tolist()
    if many and isinstance(value, (list, tuple)):
        return [word for entry in value for word in _as_arguments(entry, many=False)]
    # YAML reads 2026-01-31, which may be the name of a folder, as a date
    is_text = isinstance(value, (str, os.PathLike, datetime.date))
    return [str(value) if is_text else json.dumps(value, default=_as_plain)]


def _as_plain(value: Any) -> Any:
    """Convert arrays and numbers of numpy and torch to lists and numbers of Python."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"expected a number, a string, true, false or a list, got a {type(value).__name__}.")
    return value.tolist()
