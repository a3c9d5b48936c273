"""Data sources by name, stores and episodes."""

from __future__ import annotations

from headstart.data.catalogue import SOURCES, load
from headstart.data.drawing import Sampler, TaskSampler
from headstart.data.samplers.classes import Episodes
from headstart.data.samplers.fixed import EpisodeList
from headstart.data.samplers.tables import TableEpisodes, TableTasks
from headstart.data.samplers.waves import Sinusoid
from headstart.data.source import Source, Split
from headstart.data.sources.tables import fsmol, read_table
from headstart.data.sources.texts import by_domain, embedded

__all__ = [
    "SOURCES",
    "EpisodeList",
    "Episodes",
    "Sampler",
    "Sinusoid",
    "Source",
    "Split",
    "TableEpisodes",
    "TableTasks",
    "TaskSampler",
    "by_domain",
    "embedded",
    "fsmol",
    "load",
    "read_table",
]
