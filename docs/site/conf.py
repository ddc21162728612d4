"""Settings of the documentation site; `docs/site/build.py` puts the sources together and calls Sphinx."""

import os
import re

import fljax

project = "fljax"
author = "The fljax authors"
copyright = "The fljax authors, Apache-2.0"
version = release = fljax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = os.environ.get("FLJAX_DOCS_EXECUTE", "off")
nb_execution_timeout = 600
nb_execution_raise_on_error = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
napoleon_use_ivar = True
napoleon_custom_sections = ["Errors", "Source", "Reference", "References"]

html_theme = "sphinx_book_theme"
html_title = f"fljax {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True}

# Docstrings are written to be read in the source, as plain text: where their layout is no reStructuredText, it is shown
# as it stands. Warnings of any other kind end the build.
suppress_warnings = ["docutils", "myst.header"]


def plain(app, what, name, obj, options, lines):
    """Escapes what reStructuredText would take for markup, outside of ``literals``."""
    text = "\n".join(lines)
    parts = re.split(r"(``[^`]*``)", text)
    parts[::2] = [re.sub(r"([*|_])", r"\\\1", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app):
    """Runs before napoleon, which reads the sections of a docstring."""
    app.connect("autodoc-process-docstring", plain, priority=400)
