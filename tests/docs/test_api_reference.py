"""`make docs` builds the guides and the API reference without warnings and without a network."""

import importlib
import re
import subprocess
import sys
import zlib

import pytest
from conftest import ROOT
from pages import PAGES

import msctr_cli
import msctr_hf
from msctr_hf.commands.train import command_line

EXTENSIONS = ROOT / "docs/extensions"


@pytest.fixture
def docstrings(monkeypatch):
    monkeypatch.syspath_prepend(EXTENSIONS)
    return importlib.import_module("docstrings")


def build(source, output):
    command = re.search(r"\tpython (-m sphinx .*) docs build/docs\n", (ROOT / "Makefile").read_text())[1].split()
    words = [sys.executable, *command, str(source), str(output)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def documented_names(output):
    """Read all names that Sphinx can link to."""
    inventory = (output / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}


@pytest.mark.slow
def test_the_docs_build_without_warnings_and_document_every_public_name_and_flag(tmp_path):
    built = build(ROOT / "docs", tmp_path)
    assert built.returncode == 0, built.stderr
    names = documented_names(tmp_path)
    assert {f"msctr_hf.{name}" for name in msctr_hf.__all__} <= names
    assert {f"msctr-{command}.--config" for command in msctr_cli.COMMANDS} <= names
    flags = {action.dest for action in command_line()._actions} - {"help"}
    assert {f"msctr-train.--{flag}" for flag in flags} <= names


def test_every_module_that_a_page_imports_is_in_the_reference():
    reference = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    documented = set(re.findall(r"automodule:: (\S+)", reference))
    for page in (*PAGES, ROOT / "docs/tutorial.ipynb"):
        assert set(re.findall(r"from (msctr_hf\.[\w.]+) import", page.read_text())) <= documented, page


def test_a_link_to_a_page_or_folder_outside_docs_becomes_text_and_to_another_file_a_download(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (tmp_path / "README.md").write_text("# Start\n")
    (tmp_path / "results.json").write_text("{}\n")
    (docs / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(EXTENSIONS)!r})\nextensions = ['myst_parser', 'repository_links']\n"
    )
    page = "# Page\n\n[start](../README.md#start) [folder](../docs/) [numbers](../results.json)\n"
    (docs / "index.md").write_text(page)
    built = build(docs, tmp_path / "html")
    assert built.returncode == 0, built.stderr
    html = (tmp_path / "html/index.html").read_text()
    assert re.search(r"<p><span[^>]*>start</span> <span[^>]*>folder</span> <a", html)
    assert re.search(r'href="_downloads/\w+/results.json"', html)
    (docs / "index.md").write_text("# Page\n\n[start](../REEDME.md)\n")
    assert "REEDME.md" in build(docs, tmp_path / "html").stderr


@pytest.mark.parametrize(
    ("markdown", "rst"),
    [
        (
            "`x` (`(B, *size)`, *optional*): `MsctrConfig`",
            "``x`` (``(B, *size)``, *optional*): :py:obj:`~msctr_hf.MsctrConfig`",
        ),
        ("(B, *size) of |f_| and a_ij", r"(B, \*size) of \|f\_\| and a_ij"),
    ],
)
def test_a_line_of_markdown_is_converted_to_restructuredtext(docstrings, markdown, rst):
    assert docstrings.as_rst(markdown) == rst


def test_indented_and_fenced_blocks_of_a_docstring_are_code_and_arguments_are_not(docstrings):
    lines = [
        "Sum:",
        "",
        "    a * b",
        "",
        "Args:",
        "    a (`int`): One.",
        "",
        "    b (`int`): Two.",
        "",
        "```python",
        "f(a)",
        "```",
    ]
    assert [line for line in docstrings._with_code_blocks(lines) if line] == [
        *("Sum:", ".. code-block:: text", "    a * b"),
        *("Args:", "    a (``int``): One.", "    b (``int``): Two."),
        *(".. code-block:: python", "    f(a)"),
    ]
