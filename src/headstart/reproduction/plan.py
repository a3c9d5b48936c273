"""What a folder reproduces: kept in it, so that any process can join the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from headstart.container import make_folder, read_json, write_json
from headstart.data import Source
from headstart.errors import CheckpointError, ConfigError
from headstart.process import tune_process
from headstart.reproduction.cells import RESULT, Result, claimed, run_cell
from headstart.reproduction.costs import COSTS, measure_costs
from headstart.reproduction.grid import Cell, Figure, cells_of, figures_of
from headstart.reproduction.scales import Scale, base, scale_of
from headstart.training.config import RunConfig
from headstart.training.run import load

PLAN = "reproduction.json"
PAUSE = 1.0
"""Seconds between looks at cells that others are at."""


@dataclass(frozen=True)
class Work:
    """The cells of a folder.

    Args:
        out: the folder.
        figures: their names; none for all.
        data, data_path: the source.
        scale: how much of the published settings is run.
    """

    out: Path
    figures: tuple[str, ...]
    data: str
    data_path: str
    scale: str

    @classmethod
    def open(cls, out: Path, figures: tuple[str, ...], data: str, data_path: str, scale: str) -> Self:
        """The work of a folder: new, or what it holds with further figures.

        Raises:
            ConfigError: the folder holds another reproduction.
        """
        work = cls(out, figures, data, data_path, scale)
        scale_of(scale)
        figures_of(figures, base(data, data_path, scale_of(scale)), scale_of(scale), 100)
        path = out / PLAN
        if path.exists():
            before = cls.load(out)
            for name in ("data", "scale"):
                if getattr(before, name) != getattr(work, name):
                    raise ConfigError(
                        f"{str(out)!r} holds a reproduction with {name}={getattr(before, name)!r}, and not {getattr(work, name)!r};"
                        " give another folder with --out"
                    )
        make_folder(out)
        work.save(path)
        return work

    def save(self, path: Path) -> None:
        """Writes what another process needs to join."""
        write_json(path, {k: v for k, v in asdict(self).items() if k != "out"})

    @classmethod
    def load(cls, out: Path) -> Self:
        """Reads what :meth:`open` wrote.

        Raises:
            CheckpointError: the folder holds no reproduction.
        """
        try:
            kept = read_json(out / PLAN)
            return cls(out, tuple(kept["figures"]), kept["data"], kept["data_path"], kept["scale"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{str(out)!r} holds no reproduction ({error}); give the --out of `headstart reproduce`") from error

    @property
    def size(self) -> Scale:
        """How much is run."""
        return scale_of(self.scale)

    @cached_property
    def base(self) -> RunConfig:
        """The settings that all cells start from."""
        return base(self.data, self.data_path, self.size)

    @cached_property
    def source(self) -> Any:
        """The data.

        Raises:
            ConfigError: it has no classes.
        """
        source = load(self.base)
        if not isinstance(source, Source):
            raise ConfigError(f"data={self.data!r} has no classes, and the figures are of classification; use fc100, cifar-fs or glyphs")
        return source

    @cached_property
    def grid(self) -> list[Figure]:
        """The figures."""
        return figures_of(self.figures, self.base, self.size, len(self.source.train.classes))

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells."""
        return cells_of(self.grid)

    def folder(self, cell: Cell) -> Path:
        """Of a cell: an ordinary run folder."""
        return self.out / "cells" / cell.name

    def claim(self, name: str) -> Path:
        """The lock file of a cell, or of another piece of work."""
        return self.out / "claims" / f"{name}.lock"

    def left(self) -> list[Cell]:
        """The cells that are not finished."""
        return [cell for cell in self.cells if not (self.folder(cell) / RESULT).exists()]

    def results(self) -> dict[str, Result]:
        """The finished cells, by name."""
        paths = {cell.name: self.folder(cell) / RESULT for cell in self.cells}
        return {name: Result.load(path) for name, path in paths.items() if path.exists()}


def take_part(work: Work, say: Callable[[str], None]) -> bool:
    """Works on the cells until all are finished, whoever finishes them; then one process measures the costs. False if interrupted.

    On a CPU a process computes with one thread, so that the numbers do not depend on how many processes share the work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tune_process()  # as in training, where costs are measured by a process that trained nothing
    try:
        while left := work.left():
            took = False
            for cell in left:
                with claimed(work.claim(cell.name)) as mine:
                    if not mine or (work.folder(cell) / RESULT).exists():
                        continue
                    result = run_cell(cell, work.folder(cell), work.source, work.size)
                if result is None:
                    return False
                took = True
                say(_told(work, cell, result))
            if not took:
                time.sleep(PAUSE)
        while not (work.out / COSTS).exists() or not _covers(work):
            with claimed(work.claim("costs"), wait=PAUSE) as mine:
                if mine and not ((work.out / COSTS).exists() and _covers(work)):
                    say("all cells are finished; now timing a step of every setting, one after the other")
                    measure_costs(work.cells, work.source, work.size, work.out / COSTS)
    finally:
        torch.set_num_threads(threads)
    return True


def _covers(work: Work) -> bool:
    known = read_json(work.out / COSTS)["settings"]
    return all(cell.setting.name() in known for cell in work.cells)


def _told(work: Work, cell: Cell, result: Result) -> str:
    done = len(work.cells) - len(work.left())
    what = f"{done}/{len(work.cells)} {cell.figures[0]}: {cell.setting.full}, seed {cell.seed}"
    if result.diverged:
        return f"{what}: diverged"
    last = result.looks[-1]
    return f"{what}: F {last['objective']:.3f}, test {100 * last['test']:.1f} %, {result.seconds:.0f} s of training"
