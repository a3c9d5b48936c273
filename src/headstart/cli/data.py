"""``headstart data list | info | fetch | check``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from headstart.data.catalogue import SOURCES, downloads, entry_of, load
from headstart.data.check import check
from headstart.data.files.fetch import REMOTES, fetch
from headstart.data.source import Source
from headstart.errors import DataError
from headstart.training.config import RunConfig


@dataclass(frozen=True)
class ListSources:
    """List the data sources."""

    def __call__(self) -> int:
        """Prints a line for each."""
        for name, entry in SOURCES.items():
            print(f"{name:<14} {entry.about}")
        return 0


@dataclass(frozen=True)
class Info:
    """Say what a data source is, what it needs, and where it comes from."""

    name: Annotated[str, tyro.conf.Positional]
    """name of the source"""

    def __call__(self) -> int:
        """Prints what is known of the source."""
        entry = entry_of(self.name)
        print(f"{self.name}: {entry.about}\nneeds:   {entry.needs_path or 'nothing'}")
        for remote in REMOTES.get(entry.remote, ()):
            print(f"file:    {remote.url}\n         md5 {remote.md5}; {remote.licence}")
        if entry.remote:
            print(f"fetch:   headstart data fetch {self.name}   (into {downloads(self.name)})")
        return 0


@dataclass(frozen=True)
class Fetch:
    """Fetch the files of a data source: resumed where it was cut, and checked."""

    name: Annotated[str, tyro.conf.Positional]
    """name of the source"""
    to: Path | None = None
    """folder to put them in; by default the cache, where --data NAME finds them"""

    def __call__(self) -> int:
        """Fetches the files and prints where they are."""
        entry = entry_of(self.name)
        if not entry.remote:
            raise DataError(f"{self.name} has nothing to fetch; it needs {entry.needs_path or 'nothing'}")
        for remote in REMOTES[entry.remote]:
            print(fetch(remote, self.to or downloads(self.name)))
        return 0


@dataclass(frozen=True)
class Check:
    """Load a data source and look it over: classes, sizes, and examples in more than one split.

    Example: headstart data check folder:my/pictures
    """

    data: Annotated[str, tyro.conf.Positional]
    """the source, as for train: NAME or NAME:PATH"""
    data_path: str = ""
    """where the source's files are"""
    data_options: str = ""
    """options of the source as NAME=VALUE,NAME=VALUE"""

    def __call__(self) -> int:
        """Prints what was found."""
        options = RunConfig(data_options=self.data_options).source_options()
        source = load(self.data, self.data_path or None, **options)
        print(check(source) if isinstance(source, Source) else source)
        return 0


@dataclass(frozen=True)
class Data:
    """List, describe, fetch and check data sources."""

    command: (
        Annotated[ListSources, tyro.conf.subcommand("list")]
        | Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Fetch, tyro.conf.subcommand("fetch")]
        | Annotated[Check, tyro.conf.subcommand("check")]
    )

    def __call__(self) -> int:
        """Runs the command."""
        return self.command()
