"""Makes the pages of docs/ and the docstrings of the package into a site: `make docs`."""

import itertools
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

project = "maskx_jax"
extensions = ["myst_nb", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
apidoc_modules = [
    {
        "path": "../maskx_jax",
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]
# A name in backquotes is code, as in Markdown.
default_role = "code"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# What modules import of others is not shown; on Python 3.13 Sphinx cannot even look at this one.
autodoc_default_options = {"exclude-members": "Array"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes are a table of their class.
napoleon_use_ivar = True
# The notebook is shown as it was run; tests/test_tutorial.py runs it.
nb_execution_mode = "off"
# Links between the pages are written as GitHub reads them.
myst_heading_anchors = 3
html_theme = "furo"
html_title = "maskx_jax"
exclude_patterns = ["_build"]


def setup(app: Any) -> None:
    """Have Sphinx call what follows."""
    app.connect("autodoc-process-docstring", _mark_commands)


def _mark_commands(_app: Any, _kind: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Make literal blocks of what is indented by four after an empty line, as in Markdown: commands and tables."""
    for start in reversed(range(1, len(lines))):
        first_line = lines[start].startswith("    ") and not lines[start - 1]
        block = list(itertools.takewhile(bool, lines[start:]))
        if first_line and all(line.startswith("    ") for line in block) and not lines[start - 2].startswith("    "):
            lines[start:start] = ["::", ""]
