"""Configure Sphinx for `make docs`, which builds the pages of this folder and the API reference offline."""

import sys
from pathlib import Path

import msctr_hf

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "msctr_hf"
author = copyright = "the authors of msctr_hf"
release = msctr_hf.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
    "command_reference",
    "repository_links",
]
exclude_patterns = ["extensions"]

html_theme = "furo"
html_title = f"msctr_hf {release}"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_show_sphinx = False
html_copy_source = False
smartquotes = False  # they would turn the -- of flags into a dash

myst_heading_anchors = 4  # so that [text](page.md#section) works, as on a Git host
# only syntax that Git hosts understand too
myst_enable_extensions = ["alert", "dollarmath", "html_image", "strikethrough", "tasklist"]
myst_dmath_allow_digits = False
myst_dmath_allow_space = False

toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch and transformers document their own methods
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False

nitpicky = True
# types in signatures belong to other libraries, whose references are not downloaded
nitpick_ignore_regex = [("py:class", ".*")]
