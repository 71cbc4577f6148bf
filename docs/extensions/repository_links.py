"""Let pages link to files and folders of the repository outside docs/, as they do on a Git host."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register a hook that runs before Sphinx resolves links."""
    app.connect("doctree-read", _unlink_what_has_no_page)
    return {"parallel_read_safe": True}


def _unlink_what_has_no_page(app: Sphinx, doctree: nodes.document) -> None:
    """Replace links to pages and folders outside docs/ by their text; Sphinx turns other files into downloads."""
    links = [link for link in doctree.findall(addnodes.pending_xref) if link.get("reftype") == "myst"]
    for link in links:
        target = _linked_path(app, link)
        if target.is_dir() or (target.exists() and not target.is_relative_to(app.srcdir)):
            link.replace_self(link.children)


def _linked_path(app: Sphinx, link: addnodes.pending_xref) -> Path:
    if link.get("refdomain") == "doc":  # a link to a Markdown file, whose ending Sphinx removes
        return (Path(app.srcdir) / f"{link['reftarget']}.md").resolve()
    folder = app.env.doc2path(app.env.docname).parent
    return (folder / unquote(link["reftarget"]).split("#")[0]).resolve()
