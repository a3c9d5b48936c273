"""``headstart predict``."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from headstart.errors import ConfigError
from headstart.using import Prediction, Predictor
from headstart.using.reading import Examples, read_examples


@dataclass(frozen=True)
class Predict:
    """Predict the classes or targets of new examples, by a task that headstart adapt has learned.

    Example: headstart predict parts.safetensors new/*.jpg --top 3
    """

    task: Annotated[Path, tyro.conf.Positional]
    """the file that headstart adapt wrote"""
    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """pictures or folders of them, a CSV or Parquet file, an .npz or .npy, or a file with a text in each line"""
    json: bool = False
    """print JSON, an object for each line"""
    csv: bool = False
    """print CSV"""
    top: int = 1
    """how many classes to show for each"""
    unknown: bool = True
    """call unknown what the calibration is too unsure of; --no-unknown always names a class"""
    text: str = "text"
    """column of the texts"""
    label: str = "label"
    """column of the labels, if the file has them, which gives the accuracy too"""
    trust: tuple[str, ...] = ()
    """module:name of networks of your own that the file may import"""

    def __call__(self) -> int:
        """Reads, predicts and prints; 1 where a file could not be read and was left out."""
        if self.json and self.csv:
            raise ConfigError("--json and --csv exclude each other; give one")
        if self.top < 1:
            raise ConfigError(f"top={self.top}: it must be at least 1")
        predictor = Predictor.load(self.task, self.trust)
        found = read_examples(predictor.start.preprocessing, self.files, labelled=False, label=self.label, text=self.text)
        rows = predictor.predict(found.x, unknown=self.unknown)
        if self.json:
            for name, row in zip(found.names, rows, strict=True):
                print(json.dumps({"input": name, **self._object(row)}, ensure_ascii=False))
        elif self.csv:
            self._csv(found, rows)
        else:
            self._lines(found, rows, predictor)
        for wrong in found.left_out:
            print(f"headstart: left out: {wrong}", file=sys.stderr)
        return 1 if found.left_out else 0

    def _object(self, row: Prediction) -> dict[str, Any]:
        shown: dict[str, Any] = {"prediction": row.label}
        if row.probabilities:
            shown |= {"confidence": round(row.confidence, 4), "classes": {str(k): round(v, 4) for k, v in self._top(row)}}
        return shown

    def _top(self, row: Prediction) -> list[tuple[Any, float]]:
        return list(row.probabilities.items())[: self.top]

    def _csv(self, found: Examples, rows: list[Prediction]) -> None:
        out = csv.writer(sys.stdout, lineterminator="\n")
        classes = bool(rows and rows[0].probabilities)
        further = [v for i in range(1, self.top) for v in (f"class {i + 1}", f"probability {i + 1}")] if classes else []
        out.writerow(["input", "prediction", *(["confidence"] if classes else []), *further])
        for name, row in zip(found.names, rows, strict=True):
            rest = [v for label, p in self._top(row)[1:] for v in (label, f"{p:.4f}")]
            label = "" if row.label is None else row.label
            out.writerow([name, label, *([f"{row.confidence:.4f}"] if classes else []), *rest])

    def _lines(self, found: Examples, rows: list[Prediction], predictor: Predictor) -> None:
        width = min(60, max(map(len, found.names)))
        for name, row in zip(found.names, rows, strict=True):
            shown = f"{row.label:.6g}" if not row.probabilities else "unknown" if row.label is None else str(row.label)
            listed = ", ".join(f"{label} {100 * p:.0f} %" for label, p in self._top(row))
            print(f"{name[-60:]:<{width}}  {shown}" + (f"  ({listed})" if row.probabilities else ""))
        if found.labels is None:
            return
        if predictor.start.regression:
            error = sum((float(row.label) - float(y)) ** 2 for row, y in zip(rows, found.labels, strict=True)) / len(rows)
            print(f"\nsquared error {error:.4g} over {len(rows)} examples with targets")
            return
        known = {str(c) for c in predictor.classes}
        others = [i for i, y in enumerate(found.labels) if str(y) not in known]
        right = [str(row.label) == str(y) for row, y in zip(rows, found.labels, strict=True) if str(y) in known]
        print()
        if right:
            print(f"{100 * sum(right) / len(right):.1f} % right of {len(right)} examples with labels")
        if others:
            refused = sum(rows[i].label is None for i in others)
            print(f"{len(others)} examples with labels that are no classes of the task; {refused} of them are called unknown")
