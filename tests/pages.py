"""Read the pages of the documentation and the blocks of code in them."""

import re
from typing import NamedTuple

from conftest import ROOT

DOCS = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "index.md")]
PAGES = [*DOCS, *(ROOT / name for name in ("AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
PAGES += sorted((ROOT / "examples").rglob("*.md"))

_BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>.+) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block of code; `reason` says why tests do not run it, and is `None` where they do."""

    place: str
    language: str
    code: str
    reason: str | None


def blocks(page):
    text = page.read_text()
    return [
        Block(
            f"{page.name}:{text.count(chr(10), 0, found.start('language')) + 1}",
            found["language"],
            found["code"],
            found["reason"],
        )
        for found in _BLOCK.finditer(text)
    ]


def commands(code):
    """Yield the words of every command in a block of shell code, without comments."""
    import shlex

    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        # the command itself may follow `pip install ... &&`
        start = next((place for place, word in enumerate(words) if word == "&&"), -1)
        yield words[start + 1 :]
