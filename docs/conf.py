"""
How Sphinx builds these pages: ``make docs``.
"""

import shutil
from pathlib import Path
from typing import Any

from pybtrfs import __version__

project = "btrfs-snapshotter"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_show_copyright = False
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
default_role = "py:obj"  # what docstrings have between single backticks
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_member_order = "bysource"
napoleon_use_ivar = True


def without_aliases(app: object, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """
    Leave out what Python says of each field of a NamedTuple: the number it has.
    """
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def copy_plots(app: Any, error: Exception | None) -> None:
    """
    Copy the pictures that HTML in a page names, which Sphinx does not see.
    """
    if error is None:
        pictures = Path(app.outdir, "pictures")
        pictures.mkdir(exist_ok=True)
        for plot in Path(app.srcdir, "pictures").glob("performance-*.svg"):
            shutil.copy(plot, pictures)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", without_aliases)
    app.connect("build-finished", copy_plots)
