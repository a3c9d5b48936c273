"""``headstart compare``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Compare:
    """Compare runs: results on the same test episodes with paired differences, what differs in their settings, and their curves.

    Example: headstart compare runs/first runs/second --episodes 1000
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """two run folders or more; the others are compared with the first"""
    episodes: int = 1000
    """test episodes, the same ones for every run"""
    seed: int = 0
    """of the episodes"""
    out: Path = Path("comparison.html")
    """the page to write"""

    def __call__(self) -> int:
        """Evaluates the runs, and writes the page."""
        from headstart.experiments.comparison import side_by_side, write_comparison

        found = side_by_side(self.runs, self.episodes, self.seed)
        write_comparison(found, self.out)
        print(f"{found}\nreport: {self.out}")
        return 0
