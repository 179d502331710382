"""The documentation site: ``sphinx-build -W docs DIRECTORY`` (extra ``docs``)."""

from __future__ import annotations

import ast
import base64
import contextlib
import functools
import io
import tempfile
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive

from wustore import __version__

project = "wustore"
author = "wustore developers"
release = version = __version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["license.txt"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # numpydoc's sections say the types
autodoc_member_order = "bysource"
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "pydata_sphinx_theme"
html_title = f"wustore {version}"
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": False, "show_toc_level": 2}
html_static_path: list[str] = []


class Shown(Directive):
    """A block ``{shown}``: Python code, and below it what a notebook shows of the value of its last line."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Return the code and the value."""
        code = "\n".join(self.content)
        value = f"<div class='cell-output'>{_html_of(_value_of(code))}</div>"
        return [nodes.literal_block(code, code, language="python"), nodes.raw("", value, format="html")]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return the directory in which the blocks run: what ``wustore demo --keep demo`` leaves."""
    from wustore.cli import main

    folder = tempfile.TemporaryDirectory(prefix="wustore-site-")
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["demo", "--keep", f"{folder.name}/demo"]) == 0
    return folder


def _value_of(code: str) -> Any:
    *steps, last = ast.parse(code).body
    assert isinstance(last, ast.Expr), "the last line is no value"
    names: dict[str, Any] = {}
    with contextlib.chdir(_folder().name):
        exec(compile(ast.Module(steps, []), "block", "exec"), names)
        return eval(compile(ast.Expression(last.value), "block", "eval"), names)


def _html_of(value: Any) -> str:
    if hasattr(value, "savefig"):
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=80)
        return f"<img alt='' src='data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}'>"
    html: str = value._repr_html_()
    return html


def setup(app: Any) -> dict[str, bool]:
    """Add what this file defines to Sphinx."""
    app.add_directive("shown", Shown)
    return {"parallel_read_safe": True}
