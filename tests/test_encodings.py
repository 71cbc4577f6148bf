"""Texts are written and read as UTF-8: without an encoding, Python takes that of the machine."""

import ast
from pathlib import Path

import msctr_hf

PACKAGE = Path(msctr_hf.__file__).parent
OTHERS = {"Image", "os", "_rasterio()"}  # whose `open` reads no text


def mode_of(call, method):
    """Return the mode of a call of `open`, or of the method of a path."""
    given = [word.value for word in call.keywords if word.arg == "mode"] + call.args[0 if method else 1 :][:1]
    return ast.unparse(given[0]) if given else "r"


def without_encoding(source):
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if method else getattr(call.func, "id", None)
        opens = name == "open" and not (method and ast.unparse(call.func.value) in OTHERS)
        is_text = (opens and "b" not in mode_of(call, method)) or (method and name in ("read_text", "write_text"))
        if is_text and all(word.arg != "encoding" for word in call.keywords):
            yield f"{call.lineno}: {ast.unparse(call)}"


def test_every_text_of_the_package_is_read_and_written_with_an_encoding():
    for path in PACKAGE.rglob("*.py"):
        assert not list(without_encoding(path.read_text(encoding="utf-8"))), path


def test_calls_without_an_encoding_are_found():
    good = "open(a, 'rb'), open(a, encoding='utf-8'), p.open('wb'), Image.open(a), p.write_text(t, encoding='utf-8')"
    assert not list(without_encoding(good))
    for bad in ("open(a)", "open(a, 'w')", "p.open()", "p.open(mode='a')", "p.read_text()", "q.write_text(t)"):
        assert len(list(without_encoding(bad))) == 1, bad
