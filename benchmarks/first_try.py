"""The first command on five made collections that people might bring: unbalanced, tiny, oblong, badly scaled, three tasks.

python benchmarks/first_try.py FOLDER [MINUTES]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from headstart.cli import main


def unbalanced(folder: Path, rng: np.random.Generator) -> list[str]:
    """Thirty classes of 3 to 80 vectors around means that differ in a few of forty directions."""
    sizes = np.geomspace(3, 80, 30).astype(int)
    mix, y = rng.normal(size=(12, 40)), np.repeat(np.arange(30), sizes)
    means = rng.normal(size=(30, 12)) * 1.5
    x = np.tanh(means[y] @ mix / 4) + 0.3 * rng.normal(size=(len(y), 12)) @ mix / 4 + 0.4 * rng.normal(size=(len(y), 40))
    np.savez(folder / "unbalanced.npz", x=x.astype(np.float32), y=y)
    return ["--data", str(folder / "unbalanced.npz")]


def pictures(folder: Path, rng: np.random.Generator, classes: int, each: int, size: tuple[int, int]) -> list[str]:
    """Each class a figure of its own: a colour, a number of corners, a size; drawn with noise, at any place."""
    for c in range(classes):
        (folder / f"class {c}").mkdir(parents=True)
        corners, colour, radius = 3 + c % 5, tuple(int(v) for v in rng.integers(40, 255, 3)), 0.18 + 0.04 * (c % 3)
        for i in range(each):
            image = Image.new("RGB", size, tuple(int(v) for v in rng.integers(0, 90, 3)))
            x, y = (rng.uniform(0.3, 0.7) * n for n in size)
            ImageDraw.Draw(image).regular_polygon((x, y, radius * min(size)), corners, rng.uniform(0, 360), fill=colour)
            noisy = np.asarray(image.filter(ImageFilter.GaussianBlur(1))) + rng.normal(0, 25, (size[1], size[0], 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"class {c}" / f"{i}.jpg")
    return ["--data", str(folder)]


def table(path: Path, rng: np.random.Generator, tasks: int, rows: int) -> list[str]:
    """Regression in dollars from features between a millionth and a million, a category and holes."""
    scale = 10.0 ** np.array([-6, -2, 0, 3, 6])
    shared = rng.normal(size=(5, 2))
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["task", *"abcde", "kind", "y"])
        for t in range(tasks):
            own, offset = rng.normal(size=2), 2e5 * rng.normal()
            for _ in range(rows):
                x, kind = rng.normal(size=5), rng.integers(3)
                y = 1e6 + offset + 3e5 * np.tanh(x @ shared) @ own + 1e5 * kind + 2e4 * rng.normal()
                out.writerow([t, *("" if rng.random() < 0.02 else v for v in x * scale), "xyz"[kind], y])
    return ["--data", str(path)]


def run(folder: Path, minutes: str) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    sets = {
        "unbalanced": unbalanced(folder, rng),
        "tiny": pictures(folder / "tiny", rng, 6, 4, (90, 90)),
        "oblong": pictures(folder / "oblong", rng, 16, 20, (200, 60)),
        "badly scaled": table(folder / "scaled.csv", rng, 40, 60),
        "three tasks": table(folder / "three.csv", rng, 3, 200),
    }
    for name, data in sets.items():
        print(f"\n===== {name}", flush=True)
        main(["train", *data, "--minutes", minutes, "--out", str(folder / "runs" / name.replace(" ", "-"))])


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "1")
