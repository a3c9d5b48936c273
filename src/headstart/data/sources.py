"""The data sources, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from headstart.data.cache import cache_folder
from headstart.data.store import Source
from headstart.errors import DataError


@dataclass(frozen=True)
class Entry:
    """What is known of a source before it is loaded.

    Args:
        module: the module of :mod:`headstart.data` whose ``load`` gives it.
        about: one line.
        needs_path: what ``path`` must be, or "" if none is needed.
        options: further arguments of ``load``.
        remote: its name in :data:`headstart.data.fetch.REMOTES`, or "" if it cannot be fetched.
    """

    module: str
    about: str
    needs_path: str = ""
    options: tuple[tuple[str, str], ...] = ()
    remote: str = ""


_CIFAR = "cifar-100-python.tar.gz, or the folder it is in"
_OMNIGLOT = "the folder of images_background.zip and images_evaluation.zip"
SOURCES: dict[str, Entry] = {
    "glyphs": Entry("glyphs", "2206 characters in twelve typefaces, drawn on the spot"),
    "omniglot": Entry("omniglot", "1623 handwritten characters; Vinyals' 1028/172/423 classes", _OMNIGLOT, (), "omniglot"),
    "omniglot-lake": Entry(
        "omniglot", "the same; Lake's background and evaluation alphabets", _OMNIGLOT, (("splits", "lake"),), "omniglot"
    ),
    "cifar-fs": Entry("cifar", "CIFAR-100; 64/16/20 classes (Bertinetto et al., 2019)", _CIFAR, (("splits", "cifar-fs"),), "cifar-100"),
    "fc100": Entry("cifar", "CIFAR-100; 60/20/20, no superclass shared (Oreshkin, 2018)", _CIFAR, (("splits", "fc100"),), "cifar-100"),
    "folder": Entry("folder", "your own pictures: PATH/CLASS/*, or PATH/{train,val,test}/CLASS/*", "a folder of class folders"),
    "npz": Entry("npz", "your own arrays: x, y and optionally split", "a .npz file with the arrays x and y"),
}


def downloads(name: str) -> Path:
    """Where fetched files of a source lie."""
    return cache_folder() / "downloads" / SOURCES[name].remote


def load(name: str, path: str | Path | None = None) -> Source:
    """A data source by name.

    Args:
        name: one of :data:`SOURCES`; ``"NAME:PATH"`` gives the path too.
        path: where the source's files are, for those that need them; None for where ``headstart data fetch`` puts them.

    Raises:
        DataError: the name is not known, the path is missing, or the files are not what they should be.
    """
    name, _, behind = name.partition(":")
    entry = entry_of(name)
    path = Path(path or behind).expanduser() if path or behind else None
    find: Callable[..., Source] = import_module(f"headstart.data.{entry.module}").load
    if not entry.needs_path:
        return find(**dict(entry.options))
    if path is None and entry.remote and downloads(name).exists():
        path = downloads(name)
    if path is None:
        or_fetch = f", or fetch it: headstart data fetch {name}" if entry.remote else ""
        raise DataError(f"{name} needs a path: {entry.needs_path}. Give load({name!r}, path=…), or --data {name}:PATH{or_fetch}")
    if not path.exists():
        raise DataError(f"{name}: there is nothing at {str(path)!r}; give {entry.needs_path}")
    return find(path, **dict(entry.options))


def entry_of(name: str) -> Entry:
    """What is known of a source.

    Raises:
        DataError: the name is not known.
    """
    if name not in SOURCES:
        raise DataError(f"data={name!r} is not known; use one of {', '.join(sorted(SOURCES))}")
    return SOURCES[name]
