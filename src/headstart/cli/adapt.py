"""``headstart adapt``."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from headstart.container import kind_of
from headstart.errors import ConfigError
from headstart.using import Predictor, TrainedStart
from headstart.using.predictor import PREDICTOR
from headstart.using.reading import Examples, read_examples


@dataclass(frozen=True)
class Adapt:
    """Learn a task from a few labelled examples, and keep it in a file for headstart predict.

    Example: headstart adapt runs/photos --support my/parts -o parts.safetensors
    """

    start: Annotated[Path, tyro.conf.Positional]
    """a run folder; the file of a start; "characters", which comes with the package; or, with --add, a file that headstart adapt wrote"""
    support: tuple[Path, ...] = ()
    """the labelled examples: a folder with a folder of pictures for each class, a CSV or Parquet file, or an .npz with x and y"""
    add: tuple[str, ...] = ()
    """further examples as CLASS=PATH; a class that is not there yet is a new one"""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("task.safetensors")
    """the file to write"""
    steps: int | None = None
    """inner steps; as in training by default"""
    label: str = "label"
    """column of the labels, in a file of vectors or texts"""
    text: str = "text"
    """column of the texts"""
    trust: tuple[str, ...] = ()
    """module:name of networks of your own that a file may import"""

    def __call__(self) -> int:
        """Reads, adapts, writes, and says how well the support examples are told apart."""
        if not self.support and not self.add:
            raise ConfigError("give --support with labelled examples, or --add CLASS=PATH to what was adapted before")
        begun = time.perf_counter()
        predictor = self._before()
        own = predictor.start.preprocessing if predictor is not None else (start := self._start()).preprocessing
        seconds = 0.0
        if self.support:
            found = read_examples(own, self.support, labelled=True, label=self.label, text=self.text)
            _warn(found)
            begun = time.perf_counter()
            labels = found.labels or []
            predictor = predictor.with_examples(found.x, labels) if predictor else Predictor.of(start, found.x, labels, self.steps)
            seconds += time.perf_counter() - begun
        for one in self.add:
            name, _, path = one.partition("=")
            if not name or not path:
                raise ConfigError(f"--add {one!r}: write CLASS=PATH")
            if predictor is None:
                raise ConfigError("--add needs a task that was adapted before, or --support beside it")
            found = read_examples(own, (Path(path),), labelled=False, label=self.label, text=self.text)
            _warn(found)
            begun = time.perf_counter()
            predictor = predictor.with_examples(found.x, [name] * len(found.x))
            seconds += time.perf_counter() - begun
        assert predictor is not None
        predictor.save(self.out)
        print(self._said(predictor, seconds))
        return 0

    def _before(self) -> Predictor | None:
        """What was adapted before, if the start is such a file."""
        if kind_of(self.start) != PREDICTOR:
            return None
        found = Predictor.load(self.start, self.trust)
        return found if self.steps is None else found.with_steps(self.steps)

    def _start(self) -> TrainedStart:
        return TrainedStart.load(self.start, self.trust)

    def _said(self, predictor: Predictor, seconds: float) -> str:
        count = len(predictor.x)
        if predictor.start.regression:
            what = f"{count} examples"
        else:
            sizes = [int((predictor.y == i).sum()) for i in range(len(predictor.classes))]
            named = ", ".join(f"{c} ({n})" for c, n in list(zip(predictor.classes, sizes, strict=True))[:20])
            more = "" if len(sizes) <= 20 else f" and {len(sizes) - 20} more"
            right = f"{100 * (predictor.support_accuracy or 0):.0f} % of them are told apart"
            what = f"{count} examples of {len(sizes)} classes: {named}{more}; {right}"
        return f"{what}; adapted in {1000 * seconds:.0f} ms\nwritten: {self.out}\nnext:    headstart predict {self.out} FILE"


def _warn(found: Examples) -> None:
    for wrong in found.left_out:
        print(f"headstart: left out: {wrong}", file=sys.stderr)
