"""A Sphinx directive, `msctr-command`, that documents a command from the parser behind `msctr NAME --help`."""

from __future__ import annotations

import argparse
import importlib
from typing import Any
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from msctr_cli import module_of
from msctr_hf.commands.command_line import CommandLine


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive `msctr-command`."""
    app.add_directive("msctr-command", CommandReference)
    return {"parallel_read_safe": True}


class CommandReference(SphinxDirective):
    """Document one command: its description, and a section for every group of flags; works in Markdown pages only."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Build the nodes of the description and of the help of every flag, which are Markdown."""
        command = self.arguments[0]
        parser = _parser_of(command)
        self.parse_text_to_nodes(f"```{{program}} msctr {command}\n```")
        sections = [self._section(command, parser, group) for group in parser._action_groups if _flags(group)]
        return [*self.parse_text_to_nodes(_describe(parser.description)), *sections]

    def _section(self, command: str, parser: CommandLine, group: argparse._ArgumentGroup) -> nodes.section:
        title = group.title[0].upper() + group.title[1:]
        section = nodes.section("", nodes.title(title, title), ids=[nodes.make_id(f"{command} {title}")])
        formatter = parser._get_formatter()
        for flag in _flags(group):
            text = f"```{{option}} {_names(flag)} {_value(flag)}\n{formatter._expand_help(flag)}\n```"
            section += self.parse_text_to_nodes(text)
        return section


def _parser_of(command: str) -> CommandLine:
    """Catch the parser that the `main` of a command builds, without running the command."""
    parsers: list[CommandLine] = []
    with mock.patch.object(CommandLine, "run", lambda parser, argv, function: parsers.append(parser)):
        importlib.import_module(module_of(command)).main(["--help"])
    return parsers[0]


def _describe(description: str) -> str:
    """Turn the examples in the description of a command into blocks of code."""
    return "\n\n".join(
        f"```bash\n{paragraph}\n```" if paragraph.startswith(("msctr ", "accelerate ")) else paragraph
        for paragraph in description.strip().split("\n\n")
    )


def _flags(group: argparse._ArgumentGroup) -> list[argparse.Action]:
    """List the flags of a group, without --no_NAME, which is the same as --NAME false."""
    flags = [each for each in group._group_actions if each.help != argparse.SUPPRESS and each.dest != "help"]
    return [each for each in flags if each.const is not False]


def _names(flag: argparse.Action) -> str:
    """List the names of a flag, without the variants with dashes that all flags have."""
    return ", ".join(name for name in flag.option_strings if "-" not in name.lstrip("-"))


def _value(flag: argparse.Action) -> str:
    if flag.nargs == 0:
        return ""
    name = flag.metavar or {int: "INTEGER", float: "NUMBER"}.get(flag.type, "VALUE")
    if flag.choices:
        name = "{" + ",".join(map(str, flag.choices)) + "}"
    elif flag.const is True:
        name = "true|false"
    return {"*": f"[{name} ...]", "+": f"{name} [{name} ...]", "?": f"[{name}]"}.get(flag.nargs, name)
