"""Data sources by name, stores and episodes."""

from __future__ import annotations

from headstart.data.drawing import Sampler, TaskSampler
from headstart.data.episode_list import EpisodeList
from headstart.data.episodes import Episodes
from headstart.data.sinusoid import Sinusoid, Sinusoids
from headstart.data.source import Source, Split
from headstart.data.sources import SOURCES, load
from headstart.data.table_files import fsmol, read_table
from headstart.data.tables import TableEpisodes, TableTasks
from headstart.data.text import embedded

__all__ = [
    "SOURCES",
    "EpisodeList",
    "Episodes",
    "Sampler",
    "Sinusoid",
    "Sinusoids",
    "Source",
    "Split",
    "TableEpisodes",
    "TableTasks",
    "TaskSampler",
    "embedded",
    "fsmol",
    "load",
    "read_table",
]
