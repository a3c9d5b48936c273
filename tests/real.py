"""The sources with their real files, where these lie beside the checkout; else the test is skipped, with the reason."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from headstart.data import Source, load

DATA = Path(__file__).parents[2] / "shared" / "data"
FILES = {
    "omniglot": DATA / "omniglot",
    "omniglot-lake": DATA / "omniglot",
    "cifar-fs": DATA / "cifar100" / "cifar-100-python.tar.gz",
    "fc100": DATA / "cifar100",
}
IMAGES = [*FILES, "glyphs"]


@cache
def _load(name: str) -> Source:
    return load(name, FILES.get(name))


def real(name: str) -> Source:
    """A source, or a skipped test."""
    if name in FILES and not FILES[name].exists():
        pytest.skip(f"the files of {name} are not at {FILES[name]}")
    return _load(name)
