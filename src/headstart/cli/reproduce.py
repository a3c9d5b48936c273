"""``headstart reproduce``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Reproduce:
    """Run the experiments of Ji et al. (2020) and further ones, test the paper's claims, and write a report.

    The same command goes on where it stopped; several at once share the work. Figures: F1 strongly convex, F2 and F2b nonconvex, F3 ANIL
    and MAML, step-sizes, batch, classes, lambda, examples, sampling, implicit, outer.

    Example: headstart reproduce --data glyphs --scale smoke --out reproductions/first
    """

    figures: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """which figures; all by default"""
    data: str = "glyphs"
    """a source of classes: glyphs, fc100, cifar-fs, mini-imagenet, omniglot, …"""
    data_path: str = ""
    """where the source's files are, for those that need them"""
    scale: Literal["smoke", "small", "paper"] = "smoke"
    """how much of the published settings: a minute, about an hour on two cores, or all of it with five seeds"""
    out: Path | None = None
    """the folder; by default reproductions/DATA-SCALE"""
    jobs: int | None = None
    """processes; by default one for every core, or one beside a GPU"""

    def __call__(self) -> int:
        """Works, and writes the report."""
        from headstart.reproduction.reproduce import reproduce

        out = self.out or Path("reproductions") / f"{self.data.partition(':')[0]}-{self.scale}"
        found = reproduce(self.figures, data=self.data, data_path=self.data_path, scale=self.scale, out=out, jobs=self.jobs)
        print(found)
        return 0
