"""Convert docstrings, Markdown in the section style of Hugging Face, to the reStructuredText that Sphinx reads."""

from __future__ import annotations

import dataclasses
import re
from collections import namedtuple
from collections.abc import Iterator, Sequence
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

import msctr_hf
from msctr_hf.settings import setting_infos

# not `train`, which is also the name of a split
_LINKED = {name for name in msctr_hf.__all__ if not name.isalpha() or not name.islower()}
_TUPLE_FIELD = type(namedtuple("_Example", "field").field)
_SECTION = re.compile(r"(Args|Returns|Yields|Raises|Example|Examples):$")
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_MARKUP = re.compile(r"\*\w[\w ]*\*|[*|]|(?<=\w)_(?!\w)")  # *emphasis* is the same in both, so it is kept


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks of autodoc, before those of napoleon, which parses the sections."""
    app.connect("autodoc-process-docstring", _process_docstring, priority=100)
    app.connect("autodoc-process-signature", _shorten_signature)
    app.connect("autodoc-skip-member", _skip_member)
    app.connect("doctree-read", _write_dashes)
    return {"parallel_read_safe": True}


def as_rst(line: str) -> str:
    """Turn `code` into a literal, public names in backticks into links, and escape what is markup for Sphinx only."""
    parts = _CODE.split(line)  # text and code alternate
    parts[::2] = [_MARKUP.sub(_escape, text) for text in parts[::2]]
    parts[1::2] = [f":py:obj:`~msctr_hf.{code}`" if code in _LINKED else f"``{code}``" for code in parts[1::2]]
    return "".join(parts)


def _escape(found: re.Match) -> str:
    return found[0] if len(found[0]) > 1 else f"\\{found[0]}"


def _process_docstring(app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    if what == "class" and _has_settings(documented) and not any(map(_SECTION.match, lines)):
        lines += ["", "Args:", *_describe_settings(documented)]
    lines[:] = _with_code_blocks(lines)


def _shorten_signature(
    app: Sphinx, what: str, name: str, documented: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Leave out arguments that are documented below the signature or by other libraries, and default factories."""
    if signature is None:
        return None
    if what == "class" and (_has_settings(documented) or _is_built_by_others(documented)):
        return "(...)", returns
    return re.sub(r"<[^<>]*>", "...", signature), returns


def _is_built_by_others(documented: type) -> bool:
    owner = next(one for one in documented.__mro__ if "__init__" in vars(one))
    return _is_ours(documented) and not _is_ours(owner) and owner is not object


def _is_ours(one: type) -> bool:
    return one.__module__.split(".")[0] == "msctr_hf"


def _skip_member(app: Sphinx, what: str, name: str, documented: Any, skip: bool, options: Any) -> bool | None:
    """Skip fields of named tuples, and public names in their modules: these are documented as `msctr_hf.NAME`."""
    public = what == "module" and getattr(msctr_hf, name, None) is documented
    return True if public or isinstance(documented, _TUPLE_FIELD) else None


def _write_dashes(app: Sphinx, doctree: nodes.document) -> None:
    """Put a dash between an argument or a type and its description, instead of the two hyphens of Sphinx."""
    for text in [text for text in doctree.findall(nodes.Text) if text.startswith(" -- ")]:
        text.parent.replace(text, nodes.Text(text.replace(" -- ", " – ", 1)))


def _has_settings(documented: Any) -> bool:
    fields = dataclasses.fields(documented) if dataclasses.is_dataclass(documented) else ()
    return any("setting" in each.metadata or "help" in each.metadata for each in fields)


def _describe_settings(documented: type) -> Iterator[str]:
    """Describe the arguments of a dataclass of settings from the metadata of its fields."""
    for name, about in setting_infos(documented).items():
        field = documented.__dataclass_fields__[name]
        allowed = f" Must be {about.range()}." if about.range() else ""
        type_name = stringify_annotation(field.type)
        yield f"    {name} (`{type_name}`{_default(field)}): {about.help}{allowed}"


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f", defaults to `{field.default_factory()!r}`"
    return "" if field.default is dataclasses.MISSING else f", defaults to `{field.default!r}`"


def _with_code_blocks(lines: Sequence[str]) -> Iterator[str]:
    """Turn fenced blocks, and indented blocks outside of sections, into code blocks; convert other lines `as_rst`."""
    before, in_section, fence, in_block = "", False, False, False
    for line in lines:
        text = line.lstrip()
        indent = line[: len(line) - len(text)]
        if text.startswith("```"):
            fence = not fence
            yield from ("", f"{indent}.. code-block:: {text[3:]}", "") if fence else ("",)
            continue
        if fence:
            yield f"    {line}"
            continue
        if text and not indent:
            in_section, in_block = bool(_SECTION.match(line)), False
        elif text and not in_section and not in_block and not before:
            in_block = True
            yield from (".. code-block:: text", "")
        yield line if in_block else as_rst(line)
        before = text
