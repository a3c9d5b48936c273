"""``headstart export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from headstart.container import kind_of, write_json
from headstart.errors import ConfigError
from headstart.export import export_learner_onnx, export_onnx
from headstart.using import Predictor, TrainedStart
from headstart.using.predictor import PREDICTOR


@dataclass(frozen=True)
class Export:
    """Write an adapted task, or a start with its adaptation, as one ONNX graph that runs without torch.

    Example: headstart export parts.safetensors -o parts.onnx
    """

    source: Annotated[Path, tyro.conf.Positional]
    """a file that headstart adapt wrote; or a run folder, the file of a start, or "characters", whose graph learns new classes itself"""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """the file to write; by default beside the source"""
    trust: tuple[str, ...] = ()
    """module:name of networks of your own that a file may import"""

    def __call__(self) -> int:
        """Writes the graph, checked against torch, and beside it what examples go through before it."""
        out = self.out or Path(f"{self.source.name.removesuffix('.safetensors')}.onnx")
        predictor, start = self._opened()
        if predictor is not None:
            ready = start.preprocessing.ready(predictor.x)
            export_onnx(predictor.adapted, out, ready, classes=[str(c) for c in predictor.classes] or None)
            inputs = f"x: (n, {_sizes(ready)})"
        else:
            if start.regression:
                raise ConfigError(
                    f"{self.source} predicts numbers, and only the adaptation of classes is written as a graph; export a task of it"
                )
            found = start.example()
            export_learner_onnx(start.learner, out, found)
            numbers = "ways" if start.learner.inner.closed_form else "steps, lr, ways"
            inputs = f"support_x and query_x: (n, {_sizes(found)}); support_y, {numbers}"
        said = {
            "preprocessing": start.preprocessing.saved(),
            "temperature": None if start.calibration is None else start.calibration.temperature,
            "classes": [str(c) for c in predictor.classes] if predictor is not None else None,
        }
        beside = out.with_suffix(".json")
        write_json(beside, said)
        print(
            f"written: {out}, {out.stat().st_size / 1024:.0f} KiB; agrees with torch\n"
            f"beside:  {beside}, how examples become its float32 inputs\ninputs:  {inputs}"
        )
        return 0

    def _opened(self) -> tuple[Predictor | None, TrainedStart]:
        if kind_of(self.source) == PREDICTOR:
            found = Predictor.load(self.source, self.trust)
            return found, found.start
        return None, TrainedStart.load(self.source, self.trust)


def _sizes(x: Tensor) -> str:
    return ", ".join(map(str, x.shape[1:]))
