"""The site of the documents: built strictly, whole, and readable in a browser without a network."""

from __future__ import annotations

import functools
import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from pages import PAGES, ROOT
from public import public

pytest.importorskip("sphinx", reason="the site needs headstart[docs]")
pytest.importorskip("furo", reason="the site needs headstart[docs]")
pytest.importorskip("myst_parser", reason="the site needs headstart[docs]")

BUILT = ROOT / "docs" / "_build"
"""Where `make docs` and `make test` put it."""


def fresh() -> bool:
    """Whether the site that is there was built from what is there now."""
    if not (BUILT / "objects.inv").exists():
        return False
    sources = [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.md"), *(f for f in (ROOT / "docs").rglob("*.*") if BUILT not in f.parents)]
    return (BUILT / "objects.inv").stat().st_mtime > max(f.stat().st_mtime for f in sources)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if fresh():
        return BUILT
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-E", "-n", "-W", "--keep-going", "-q", "-b", "html", "docs", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


class Page(HTMLParser):
    """The names in a page, and what it links to or loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.names, self.links, self.loaded = set[str](), list[str](), list[str]()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {k: v for k, v in attrs if v}
        self.names |= {own[k] for k in ("id", "name") if k in own}
        self.links += [own["href"]] if tag == "a" and "href" in own else []
        self.loaded += [own["src"]] if "src" in own else []
        self.loaded += [own["href"]] if tag == "link" and own.get("rel") in ("stylesheet", "icon") else []


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {
        f: Page(f) for f in site.rglob("*.html") if not f.is_relative_to(site / "_static") and not f.is_relative_to(site / "_downloads")
    }
    assert len(pages) > 30
    for file, page in pages.items():
        for target in page.loaded:
            assert not re.match(r"(https?:)?//", target), f"{file.name} loads {target}"
            assert target.startswith("data:") or (file.parent / unquote(target.partition("?")[0])).exists(), f"{file.name}: {target}"
        for target in page.links:
            if re.match(r"https?:|mailto:|#$", target):
                continue
            path, _, anchor = target.partition("#")
            found = (file.parent / unquote(path)).resolve() if path else file
            assert found.exists(), f"{file.name}: {target}"
            assert not anchor or found not in pages or unquote(anchor) in pages[found].names, f"{file.name}: {target}"


def test_every_page_and_every_public_name_has_its_place(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    front = Page(site / "index.html").links
    for page in (p for p in PAGES if p.is_relative_to(ROOT / "docs") and p.name != "index.md"):
        assert str(page.relative_to(ROOT / "docs").with_suffix(".html")) in front, f"{page.name} is not in the navigation"
    with (site / "objects.inv").open("rb") as file:
        loaded = InventoryFile.load(file, "", lambda a, b: b)
    known = {name for names in getattr(loaded, "data", loaded).values() for name in names}
    assert not set(public()) - known, "public names that the site does not describe"


# -- in a browser ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["file", "server"])
def address(request: pytest.FixtureRequest, site: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{site}/"
        return

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


READ = (
    "index",
    "quick-start",
    "migrate",
    "questions",
    "theory",
    "benchmarks",
    "api/training",
    "reproduction/report",
    "tutorials/own-pictures",
)


def test_pages_fit_a_phone_and_a_desk_in_the_light_and_in_the_dark(page: Any, address: str) -> None:
    for name in READ if address.startswith("file:") else READ[:1]:
        page.goto(f"{address}{name}.html")
        assert page.locator("article h1").count() == 1
        shown = "[...document.images].filter(i => i.src && i.complete && !i.naturalWidth).map(i => i.src)"
        assert page.evaluate(shown) == [], "pictures that cannot be shown"
        for scheme, dark in (("light", False), ("dark", True)):
            page.emulate_media(color_scheme=scheme)
            for width in (390, 1280):
                page.set_viewport_size({"width": width, "height": 844})
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            red = int(re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
            assert (red < 60) == dark, (name, scheme)


def test_the_search_finds_words_names_and_nothing(page: Any, address: str) -> None:
    for words, title in (("denormal", "Questions"), ("FewShotClassifier", "Using what was learned"), ("sparkling unicorns", None)):
        page.goto(f"{address}index.html")
        page.locator("input.sidebar-search").fill(words)
        page.locator("input.sidebar-search").press("Enter")
        page.get_by_text(re.compile("Search finished|did not match")).wait_for()
        found = page.locator("#search-results li a").all_inner_texts()
        assert (found == []) if title is None else any(title in text for text in found), words
