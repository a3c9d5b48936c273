"""What the playground's tests share: an untrained start, drawings, and a hand that draws in the browser."""

from __future__ import annotations

import base64
import io
import math
import time
from typing import Any

import torch

import headstart as hs
from headstart.evaluation.calibration import Calibration
from headstart.using import Preprocessing, TrainedStart

PICTURES = Preprocessing("pictures", (1, 28, 28), (0.127,), (0.304,), fit="pad", ink="framed")


def start(learner: hs.MetaLearner | None = None, threshold: float | None = 0.3, by: str = "confidence", **more: Any) -> TrainedStart:
    """An untrained network tells simple drawings apart already."""
    torch.manual_seed(0)
    learner = learner or hs.protomaml(hs.models.conv4(channels=1, ways=5, size=28, filters=16), steps=3, lr=0.01)
    calibration = Calibration(3.0, threshold, by, 0.05, 0.9, 0.9, 0.1, 0.05, 5, 1)
    return TrainedStart(learner, more.pop("preprocessing", PICTURES), calibration, **more)


def drawing(lines: list[list[tuple[float, float]]], grow: float = 1.0) -> str:
    """A picture of lines in the unit square, in base64."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (112, 112), 255)
    for line in lines:
        ImageDraw.Draw(picture).line([(10 + 90 * grow * x, 10 + 90 * grow * y) for x, y in line], fill=0, width=8)
    picture.save(file := io.BytesIO(), "PNG")
    return base64.b64encode(file.getvalue()).decode()


SYMBOLS: dict[str, list[list[tuple[float, float]]]] = {
    "A": [[(0, 0), (1, 1)], [(1, 0), (0, 1)]],
    "B": [[(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]],
    "C": [[(0.5, 0), (0.5, 1)]],
    "D": [[(0, 0.5), (1, 0.5)]],
    "E": [[(0.5 + 0.5 * math.cos(t / 9), 0.5 + 0.5 * math.sin(t / 9)) for t in range(30)]],
}


def task(*names: str, twice: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [{"name": n, "drawings": [drawing(SYMBOLS[n]), *([drawing(SYMBOLS[n], 0.8)] if n in twice else [])]} for n in names]


# -- in a browser ----------------------------------------------------------------------------------------------------------


def draw(page: Any, pad: Any, lines: list[list[tuple[float, float]]], lift: bool = True) -> None:
    """Draws with the mouse; the pen may stay down."""
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    at = lambda x, y: (box["x"] + box["width"] * (0.2 + 0.6 * x), box["y"] + box["height"] * (0.2 + 0.6 * y))  # noqa: E731
    for i, line in enumerate(lines):
        page.mouse.move(*at(*line[0]))
        page.mouse.down()
        for x, y in line[1:]:
            page.mouse.move(*at(x, y), steps=4)
        if lift or i < len(lines) - 1:
            page.mouse.up()


def teach(page: Any) -> None:
    for i, lines in enumerate(SYMBOLS.values()):
        draw(page, page.locator("#classes .pad").nth(i), lines)
    until(page, "document.querySelectorAll('#bars li').length === 5")


def until(page: Any, true: str) -> None:
    """Waits for an expression; the page's own rules forbid what playwright's wait_for_function does."""
    end = time.monotonic() + 15
    while not page.evaluate(true):
        assert time.monotonic() < end, true
        page.wait_for_timeout(20)


def said(page: Any, text: str) -> None:
    until(page, f"document.getElementById('label').textContent === {text!r}")
