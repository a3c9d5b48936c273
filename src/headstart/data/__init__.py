"""Data sources by name, stores and episodes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from headstart.data.episodes import Episodes
from headstart.data.store import Source, Split
from headstart.errors import DataError

SOURCES: dict[str, str] = {"glyphs": "headstart.data.glyphs"}
"""Name of a source, and the module whose ``load`` gives it."""


def load(name: str) -> Source:
    """A data source by name: ``"glyphs"``.

    Raises:
        DataError: the name is not known, or the source cannot be had.
    """
    if name not in SOURCES:
        raise DataError(f"data={name!r} is not known; use one of {', '.join(sorted(SOURCES))}")
    found: Callable[[], Source] = import_module(SOURCES[name]).load
    return found()


__all__ = ["SOURCES", "Episodes", "Source", "Split", "load"]
