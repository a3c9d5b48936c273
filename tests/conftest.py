from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

collect_ignore_glob = ["typing/*"]  # read by type checkers, never run


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """One thread (the problems are small), a fixed seed, and the default dtype as it was."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session", autouse=True)
def glyph_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the session's own: the glyphs are drawn once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("HEADSTART_CACHE", str(folder))
        yield folder


@pytest.fixture
def double() -> None:
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'headstart[dev]'")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as run:
        found = run.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page on which nothing may go wrong and which may ask nobody but the test module's ``address``."""
    wrong: list[str] = []
    found = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    found.set_default_timeout(15_000)
    found.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    found.on("pageerror", lambda e: wrong.append(str(e)))
    found.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else wrong.append(r.url))
    yield found
    found.close()
    assert not wrong
