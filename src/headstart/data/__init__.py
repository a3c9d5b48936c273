"""Data sources by name, stores and episodes."""

from __future__ import annotations

from headstart.data.episodes import Episodes
from headstart.data.sinusoid import Sinusoid
from headstart.data.sources import SOURCES, load
from headstart.data.store import Source, Split
from headstart.data.table_files import fsmol, read_table
from headstart.data.tables import TableEpisodes, TableTasks

__all__ = ["SOURCES", "Episodes", "Sinusoid", "Source", "Split", "TableEpisodes", "TableTasks", "fsmol", "load", "read_table"]
