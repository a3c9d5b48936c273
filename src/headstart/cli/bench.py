"""``headstart bench``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Bench:
    """Time steps of meta-training beside a plain loop over tasks, a supervised step and other libraries, in turns.

    Every contestant runs in a process of its own; all are found to compute the same meta-gradient before they are timed. Other libraries
    take part where they are installed (pip install 'headstart[rivals]'). Example: headstart bench anil maml --rounds 5
    """

    tables: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """which, by name: anil, anil-32, anil-84, steps-20, steps-1, maml, fomaml, head-5, head-20, head-100; none for all"""
    rounds: int = 9
    """steps of each contestant that count"""
    threads: int = 0
    """of each contestant; 0 for torch's own number"""
    device: str = "cpu"
    """where everything is: cpu, or cuda"""
    out: Path | None = None
    """a JSON file for all that was measured"""

    def __call__(self) -> int:
        """Measures, and prints table after table."""
        from headstart.benching import tables
        from headstart.training.checks import at_least

        at_least(self, 1, "rounds")
        at_least(self, 0, "threads")
        names = tables.chosen(self.tables)
        print(tables.said(tables.machine(self.threads, self.device)), flush=True)
        found = tables.bench(tuple(names), self.rounds, self.threads, self.device, lambda text: print(f"\n{text}", flush=True))
        if self.out is not None:
            tables.save(found, self.out)
        return 0
