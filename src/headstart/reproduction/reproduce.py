"""Runs the grid with some processes, and writes the report."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from headstart.errors import ConfigError, HeadstartError
from headstart.reproduction.costs import estimate
from headstart.reproduction.page import HTML, write_report
from headstart.reproduction.plan import Work, take_part
from headstart.reproduction.statistics import scipy_stats
from headstart.reproduction.verdicts import Verdict


@dataclass(frozen=True)
class Reproduction:
    """What a reproduction leaves.

    Args:
        out: the folder: ``report.html``, ``report.md`` with ``figures/``, ``results.json``, and a run folder for every cell.
        advice: what to adapt, how many steps, and what it costs.
        verdicts: on the claims of the paper.
    """

    out: Path
    advice: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        rows = [f"{v.claim}  {v.verdict:<10} {v.says} (in {v.measure})" for v in self.verdicts]
        return "\n".join([*self.advice, *rows, f"report: {self.out / HTML}"])


def reproduce(
    figures: Sequence[str] = (),
    *,
    data: str = "glyphs",
    data_path: str | Path = "",
    scale: str = "smoke",
    out: str | Path = "reproduction",
    jobs: int | None = None,
    quiet: bool = False,
) -> Reproduction:
    """Runs the experiments of Ji et al. (2020) and further ones, tests the paper's claims, and writes a report.

    The work is a grid of independent cells. What is finished in ``out`` is never run again, and a cell that was cut off goes on from its
    last checkpoint, so the same call goes on where it stopped. Any number of calls, on one machine or on several with a shared folder,
    work on one ``out`` together. On a CPU every process computes with one thread, so the numbers do not depend on how many there are.

    Args:
        figures: F1 (strongly convex), F2 and F2b (nonconvex), F3 (ANIL and MAML), step-sizes, batch, classes, lambda, examples,
            sampling, implicit, outer; none for all.
        data: a source of classes, such as ``fc100``.
        data_path: where its files are, for those that need them.
        scale: ``smoke`` (a minute), ``small`` (about an hour on two cores) or ``paper`` (five seeds, the published settings).
        out: the folder; it can hold one data source at one scale.
        jobs: processes; None for one per core, or one on a machine with a GPU.
        quiet: print nothing.

    Raises:
        ConfigError: a name is not known, the folder holds another reproduction, or SciPy is missing.
        DataError: the data is missing, or has no classes.

    Example:
        >>> import tempfile
        >>> out = tempfile.mkdtemp()
        >>> found = reproduce(["batch"], out=out, jobs=1, quiet=True)
        >>> (found.out / "report.html").exists()
        True
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs={jobs}: at least one process must work")
    scipy_stats()  # at the end it would be missed after all the work
    say: Callable[[str], None] = (lambda line: None) if quiet else _say
    work = Work.open(Path(out), tuple(figures), data, str(data_path), scale)
    jobs = jobs or (1 if torch.cuda.is_available() else _cores())
    left = work.left()
    if left:
        say(f"{len(work.cells)} cells, {len(work.cells) - len(left)} of them finished; timing a few steps for an estimate")
        jobs = min(jobs, len(left))
        processes = "1 process" if jobs == 1 else f"{jobs} processes"
        say(f"about {_clock(_estimate(work) / jobs)} with {processes}; Ctrl-C stops, and the same command goes on")
    _work(work, jobs if left else 1, say)
    found = write_report(work)
    return Reproduction(work.out, tuple(found.advice), tuple(found.verdicts))


def _work(work: Work, jobs: int, say: Callable[[str], None]) -> None:
    """Lets this process and ``jobs - 1`` others work until nothing is left.

    Raises:
        KeyboardInterrupt: it was stopped.
        HeadstartError: a process failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "headstart.reproduction.join", str(work.out)]
    helpers = [subprocess.Popen(command, env=environment) for _ in range(jobs - 1)]
    try:
        whole = take_part(work, say)
    except BaseException:
        for helper in helpers:
            helper.terminate()
        raise
    finally:
        codes = [helper.wait() for helper in helpers]
    if not whole:
        raise KeyboardInterrupt
    bad = [code for code in codes if code]
    if bad and work.left():
        raise HeadstartError(f"a process that worked on {str(work.out)!r} ended with code {bad[0]}; its message stands above")


def _estimate(work: Work) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return estimate(work.left(), work.source, work.size)
    finally:
        torch.set_num_threads(threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
