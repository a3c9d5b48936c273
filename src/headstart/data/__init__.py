"""Data sources by name, stores and episodes."""

from __future__ import annotations

from headstart.data.episodes import Episodes
from headstart.data.sources import SOURCES, load
from headstart.data.store import Source, Split

__all__ = ["SOURCES", "Episodes", "Source", "Split", "load"]
