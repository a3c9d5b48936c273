"""How the site is built: `make docs`, which takes warnings for errors. It needs no network, neither to build nor to read."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from sphinx.util.matching import patfilter

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))  # this tree's, whatever is installed
import headstart

project, author, release = "headstart", "The headstart authors", headstart.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
highlight_language = "none"  # a block that does not say what it is, is commands and their output

# Pages are Markdown that reads well without the site too; anchors are those of its headings.
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may begin a part with a smaller heading

# Docstrings are in the style that napoleon reads. Whatever is of headstart must lead somewhere, also in signatures.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!headstart\.).*"), ("py:class", r".*\.T"), ("py:mod", ".*")]

html_theme = "furo"
html_title = "headstart"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
html_copy_source = False
html_show_sphinx = html_show_copyright = False
html_show_search_summary = False  # a page that was opened from a file may not fetch others


def without_patterns_that_match_nothing(app: Any, page: str, source: list[str]) -> None:
    """The navigation names pages that may not be there yet, by patterns; one without a page would be a warning."""
    if page == app.config.root_doc:
        lines = source[0].split("\n")
        source[0] = "\n".join(v for v in lines if not re.fullmatch(r"[\w/-]*\*+", v) or patfilter(app.env.found_docs, v))


as_written: dict[str, list[str]] = {}


def keep(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Texts of fields as they are, before napoleon takes what stands before a colon for a type."""
    if what == "attribute":
        as_written[name] = list(lines)


def put_back(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """What was kept."""
    lines[:] = as_written.get(name, lines)


def copy_pictures(app: Any, error: Exception | None) -> None:
    """To where they stand among the pages: HTML within a page names them there, and Sphinx does not see it."""
    for file in (f for f in Path(app.srcdir).rglob("*.*") if f.suffix in (".svg", ".png", ".gif", ".jpg", ".webp")):
        place = Path(app.outdir) / file.relative_to(app.srcdir)
        if not file.is_relative_to(app.outdir):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def setup(app: Any) -> None:
    """Hooks; napoleon has the priority 500."""
    app.connect("source-read", without_patterns_that_match_nothing)
    app.connect("autodoc-process-docstring", keep, priority=100)
    app.connect("autodoc-process-docstring", put_back, priority=900)
    app.connect("build-finished", copy_pictures)
