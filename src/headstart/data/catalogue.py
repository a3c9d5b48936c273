"""The data sources, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from headstart.container import understood
from headstart.data.files.cache import cache_folder
from headstart.errors import DataError
from headstart.registry import Registry


@dataclass(frozen=True)
class Entry:
    """What is known of a source before it is loaded.

    Args:
        module: the module of :mod:`headstart.data.sources` whose ``load`` gives it.
        about: one line.
        needs_path: what ``path`` must be, or "" if none is needed.
        options: further arguments of ``load``.
        function: the name of that ``load``, if another.
        remote: its name in :data:`headstart.data.files.fetch.REMOTES`, or "" if it cannot be fetched.
    """

    module: str
    about: str
    needs_path: str = ""
    options: tuple[tuple[str, str], ...] = ()
    remote: str = ""
    function: str = "load"


_CIFAR = "cifar-100-python.tar.gz, or the folder it is in"
_MINI_IMAGENET = (
    "a folder with train.csv, val.csv, test.csv and images/, or with mini-imagenet-cache-{train,val,test}.pkl, or with"
    " miniImageNet_category_split_{train_phase_train,val,test}.pickle; ImageNet's licence does not allow fetching them for you, so get"
    " access at https://image-net.org and put the files there by hand"
)
_OMNIGLOT = "the folder of images_background.zip and images_evaluation.zip"
SOURCES: dict[str, Entry] = {
    "glyphs": Entry("glyphs", "2206 characters in twelve typefaces, drawn on the spot"),
    "omniglot": Entry("omniglot", "1623 handwritten characters; Vinyals' 1028/172/423 classes", _OMNIGLOT, (), "omniglot"),
    "omniglot-lake": Entry(
        "omniglot", "the same; Lake's background and evaluation alphabets", _OMNIGLOT, (("splits", "lake"),), "omniglot"
    ),
    "cifar-fs": Entry("cifar", "CIFAR-100; 64/16/20 classes (Bertinetto et al., 2019)", _CIFAR, (("splits", "cifar-fs"),), "cifar-100"),
    "fc100": Entry("cifar", "CIFAR-100; 60/20/20, no superclass shared (Oreshkin, 2018)", _CIFAR, (("splits", "fc100"),), "cifar-100"),
    "mini-imagenet": Entry("mini_imagenet", "100 classes of ImageNet, 84×84; 64/16/20 (Ravi and Larochelle, 2017)", _MINI_IMAGENET),
    "folder": Entry("folder", "your own pictures: PATH/CLASS/*, or PATH/{train,val,test}/CLASS/*", "a folder of class folders"),
    "npz": Entry("arrays", "your own arrays: x, y and optionally split", "a .npz file with the arrays x and y"),
    "texts": Entry(
        "texts", "your own texts with labels, through an embedding", "a CSV with the columns text and label, or the JSON of CLINC150"
    ),
    "table": Entry(
        "tables", "your own tasks, a row per example: columns task, y and features", "a CSV or Parquet file", function="read_table"
    ),
    "fsmol": Entry(
        "tables",
        "5131 assays of molecules, active or not (Stanley et al., 2021)",
        "FS-Mol as fsmol.npz, or its folder",
        function="fsmol",
    ),
    "sinusoid": Entry("sinusoid", "regression to sine waves (Finn et al., 2017)"),
}


OWN: Registry[Any] = Registry("data source")
"""Finds sources of the user's own by ``module:function``."""


def downloads(name: str) -> Path:
    """Where fetched files of a source lie."""
    return cache_folder() / "downloads" / SOURCES[name].remote


def load(name: str, path: str | Path | None = None, **options: Any) -> Any:
    """A data source by name.

    Args:
        name: one of :data:`SOURCES`, where ``"NAME:PATH"`` gives the path too; a path of a folder of pictures, an .npz, a CSV or a Parquet
            file alone; or ``"module:function"`` for a source of your own, which
            gets the options, and the path if there is one.
        path: where the source's files are, for those that need them; None for where ``headstart data fetch`` puts them.
        options: of the source, such as the columns of :func:`~headstart.data.read_table`.

    Returns:
        A :class:`~headstart.data.Source`, :class:`~headstart.data.TableTasks` or sine waves: ``train``, ``validation``, ``test``.

    Raises:
        DataError: the name or an option is not known, the path is missing, or the files are not what they should be.

    Example:
        >>> data = load("sinusoid")
        >>> data.train.signature(ways=5).regression
        True
    """
    if not isinstance(name, str):
        raise DataError(f"data={name!r} is a {type(name).__name__}; give a text, one of {', '.join(sorted(SOURCES))}")
    name = named(name)
    whole, (name, _, behind) = name, name.partition(":")
    if name not in SOURCES and behind:
        if "/" in behind or "\\" in behind:  # a path and no function, so the name is misspelt
            entry_of(name)
        return OWN.build(whole, **options, **({} if path is None else {"path": Path(path).expanduser()}))
    entry = entry_of(name)
    path = Path(path or behind) if path or behind else None
    find: Callable[..., Any] = getattr(import_module(f"headstart.data.sources.{entry.module}"), entry.function)
    known = [p for p in inspect.signature(find).parameters if p != "path" and p not in dict(entry.options)]
    for option in options:
        if option not in known:
            raise DataError(f"{name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    options |= dict(entry.options)
    if not entry.needs_path:
        return find(**options)
    if path is None and entry.remote and downloads(name).exists():
        path = downloads(name)
    if path is None:
        or_fetch = f", or fetch it: headstart data fetch {name}" if entry.remote else ""
        raise DataError(f"{name} needs a path: {entry.needs_path}. Give load({name!r}, path=…), or --data {name}:PATH{or_fetch}")
    if not there(path):
        raise DataError(f"{name}: there is nothing at {str(path)!r}; give {entry.needs_path}")
    path = path.expanduser()
    with understood(path, DataError):
        return find(path, **options)


READ_BY = {".npz": "npz", ".csv": "table", ".parquet": "table", ".json": "texts"}


def named(text: str) -> str:
    """The source that a path alone stands for, as ``NAME:PATH``; what is no path stays as it is.

    Example:
        >>> named("glyphs"), named("folder:my/pictures")
        ('glyphs', 'folder:my/pictures')
    """
    path = Path(text)
    if text in SOURCES or not there(path):
        return text
    path = path.expanduser()
    kind = "folder" if path.is_dir() else READ_BY.get(path.suffix.lower())
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            header = {name.strip().strip('"') for name in file.readline().split(",")}
        kind = "texts" if {"text", "label"} <= header and "task" not in header else kind
    return text if kind is None else f"{kind}:{text}"


def there(path: Path) -> bool:
    """Whether there is something at a path; what is too long or too strange for a path is nowhere."""
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def entry_of(name: str) -> Entry:
    """What is known of a source.

    Raises:
        DataError: the name is not known.
    """
    if name not in SOURCES:
        absent = "no source, and there is no file or folder of that name here" if Path(name).suffix or "/" in name else "not known"
        raise DataError(f"data={name!r} is {absent}; use one of {', '.join(sorted(SOURCES))}")
    return SOURCES[name]
