from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
