"""The data sources, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

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
    """

    module: str
    about: str
    needs_path: str = ""
    options: tuple[tuple[str, str], ...] = ()


SOURCES: dict[str, Entry] = {
    "glyphs": Entry("glyphs", "2206 characters in twelve typefaces, drawn on the spot"),
    "omniglot": Entry("omniglot", "1623 handwritten characters; Vinyals' 1028/172/423 classes, rotations in training", "the folder of its two zip files"),
    "omniglot-lake": Entry("omniglot", "1623 handwritten characters; Lake's background and evaluation alphabets", "the folder of its two zip files", (("splits", "lake"),)),
    "cifar-fs": Entry("cifar", "CIFAR-100, 64/16/20 classes (Bertinetto et al., 2019)", "cifar-100-python.tar.gz, or its folder", (("splits", "cifar-fs"),)),
    "fc100": Entry("cifar", "CIFAR-100, 60/20/20 classes of other superclasses (Oreshkin et al., 2018)", "cifar-100-python.tar.gz, or its folder", (("splits", "fc100"),)),
}


def load(name: str, path: str | Path | None = None) -> Source:
    """A data source by name.

    Args:
        name: one of :data:`SOURCES`; ``"NAME:PATH"`` gives the path too.
        path: where the source's files are, for those that need them.

    Raises:
        DataError: the name is not known, the path is missing, or the files are not what they should be.
    """
    name, _, behind = name.partition(":")
    if name not in SOURCES:
        raise DataError(f"data={name!r} is not known; use one of {', '.join(sorted(SOURCES))}")
    entry = SOURCES[name]
    path = path or behind or None
    find: Callable[..., Source] = import_module(f"headstart.data.{entry.module}").load
    if not entry.needs_path:
        return find(**dict(entry.options))
    if path is None:
        raise DataError(f"{name} needs a path: {entry.needs_path}; give load({name!r}, path=…), or --data-path on the command line")
    if not Path(path).exists():
        raise DataError(f"{name}: there is nothing at {str(path)!r}; give {entry.needs_path}")
    return find(Path(path), **dict(entry.options))
