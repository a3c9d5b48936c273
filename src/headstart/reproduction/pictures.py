"""The plots: one small panel each, so that a page can lay them side by side or one below the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headstart.experiments.drawing import CLEAR, DASHES, GREY, figure, plain, svg
from headstart.reproduction.cells import Result
from headstart.reproduction.grid import Setting
from headstart.reproduction.statistics import Interval, Reached, smooth
from headstart.reproduction.verdicts import Evidence

WIDTH, HEIGHT = 4.4, 3.3
MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Panel:
    """A plot.

    Args:
        name: of its file.
        about: what it shows, in one sentence.
        markup: SVG.
    """

    name: str
    about: str
    markup: Any


@dataclass(frozen=True)
class Look:
    """How the curve of a setting is drawn."""

    colour: str
    dash: str
    marker: str


def looks(settings: Sequence[Setting]) -> dict[Setting, Look]:
    """A colour for each number, from dark to light, where there are many; a dash for each group."""
    import matplotlib

    numbers, groups = sorted({s.x for s in settings}), list(dict.fromkeys(s.group for s in settings))
    shades = matplotlib.colormaps["viridis"]
    if len(numbers) == 1:
        return {s: Look(CLEAR[groups.index(s.group) % len(CLEAR)], "-", MARKERS[groups.index(s.group) % 8]) for s in settings}
    colour = {x: matplotlib.colors.to_hex(shades(0.9 * i / (len(numbers) - 1))) for i, x in enumerate(numbers)}
    return {s: Look(colour[s.x], DASHES[groups.index(s.group) % 4], MARKERS[numbers.index(s.x) % 8]) for s in settings}


Along = Callable[[Setting], float]
"""What one outer step counts on the horizontal axis."""


def losses(own: Evidence, name: str, along: Mapping[Setting, float], label: str, log: bool, reached: Reached | None) -> Panel:
    """The training loss along steps, seconds or calls; a band from seed to seed, and the loss that all cells reach."""
    drawing, axis = figure(WIDTH, HEIGHT)
    width = reached.width if reached else 5
    for setting, look in looks(own.figure.settings).items():
        curves = [smooth(r.losses, width)[width - 1 :] for r in own.found.get(setting, ()) if not r.diverged]
        if not curves or setting not in along:
            continue
        _band(axis, [along[setting] * (i + width) for i in range(min(map(len, curves)))], curves, setting.label, look)
    if reached:
        axis.axhline(reached.target, color=GREY, linewidth=0.8)
        axis.annotate(
            f"all reach {reached.target:.3f}",
            (0.99, reached.target),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7,
        )
    axis.set(xlabel=label, ylabel="training loss (query, after adaptation)", title=f"Training loss over {label.partition(' (')[0]}")
    if log:
        axis.set_xscale("log")
    _finish(axis)
    return Panel(name, f"Training loss over {label}; running mean of {width} steps, band over seeds.", svg(drawing))


def looked(own: Evidence, name: str, key: str, label: str, title: str, scale: float = 1.0, log: bool = False, error: str = "") -> Panel:
    """What was seen at each look, over outer steps: the mean over seeds, with a band from seed to seed or an interval."""
    drawing, axis = figure(WIDTH, HEIGHT)
    for setting, look in looks(own.figure.settings).items():
        series = [
            [(e["step"], scale * e[key]) for e in r.looks if e.get(key) is not None] for r in own.found.get(setting, ()) if not r.diverged
        ]
        series = [one for one in series if one]
        if not series:
            continue
        steps = [step for step, _ in series[0]]
        _band(axis, steps, [[v for _, v in one] for one in series], setting.label, look, points=True)
        if error:
            first = [e for e in own.found[setting][0].looks if e.get(key) is not None]
            halves = [scale * e[error] / math.sqrt(len(series)) for e in first]
            means = [sum(one[i][1] for one in series) / len(series) for i in range(len(steps))]
            axis.errorbar(steps, means, halves, color=look.colour, fmt="none", capsize=2, linewidth=0.8)
    axis.set(xlabel="outer steps", ylabel=label, title=title)
    if log:
        axis.set_yscale("log")
    _finish(axis)
    bars = ", with 95 % intervals over episodes" if error else ""
    return Panel(name, f"{title} over outer steps: mean and band over seeds{bars}.", svg(drawing))


def to_target(own: Evidence, name: str, reached: Reached) -> Panel:
    """What it takes to reach the common loss over N, in three units, each relative to the smallest N."""
    drawing, axis = figure(WIDTH, HEIGHT)
    units = (("steps", "outer steps"), ("all_calls", "oracle calls"), ("seconds", "seconds here"))
    groups = list(dict.fromkeys(s.group for s in reached.steps))
    for unit, (key, label) in enumerate(units):
        cost = reached.cost(own.price(key))
        for group in groups:
            points = sorted((s for s in cost if s.group == group), key=lambda s: s.x)
            if len(points) < 2:
                continue
            first = cost[points[0]]
            ratios = [Interval.of([math.log(cost[s][k] / first[k]) for k in first if k in cost[s]]) for s in points]
            mean = [math.exp(r.mean) for r in ratios]
            half = [r.half if math.isfinite(r.half) else 0.0 for r in ratios]
            error = [
                [m - m * math.exp(-h) for m, h in zip(mean, half, strict=True)],
                [m * math.exp(h) - m for m, h in zip(mean, half, strict=True)],
            ]
            text = label if len(groups) == 1 else f"{group}: {label}"
            place = [s.x * (1 + 0.015 * (unit - 1)) for s in points]
            axis.errorbar(
                place,
                mean,
                error,
                color=CLEAR[unit],
                linestyle=DASHES[groups.index(group) % 4],
                marker=MARKERS[unit],
                markersize=4,
                capsize=2,
                label=text,
            )
    axis.axhline(1, color=GREY, linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel=own.figure.along, ylabel=f"cost relative to N = {min(s.x for s in reached.steps):g}")
    axis.set_title(f"Cost to reach a training loss of {reached.target:.3f}")
    _finish(axis)
    ticks = sorted({s.x for s in reached.steps})
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    return Panel(
        name, "What it takes to reach the loss that all cells reach, relative to the smallest N; 95 % intervals over seeds.", svg(drawing)
    )


def final(own: Evidence, name: str) -> Panel:
    """Test accuracy at the end, by setting, with an interval over seeds and a point for each."""
    settings = [s for s in own.figure.settings if any(not r.diverged for r in own.found.get(s, ()))]
    drawing, axis = figure(WIDTH, max(1.6, 0.7 + 0.3 * len(settings)))
    look = looks(own.figure.settings)
    for row, setting in enumerate(settings):
        values = [100 * r.looks[-1]["test"] for r in own.found[setting] if not r.diverged]
        interval = Interval.of(values)
        axis.plot(values, [row] * len(values), ".", color=GREY, markersize=5)
        half = interval.half if math.isfinite(interval.half) else 0.0
        axis.errorbar([interval.mean], [row], xerr=[half], color=look[setting].colour, marker=look[setting].marker, capsize=3, markersize=6)
    axis.set_yticks(range(len(settings)), [s.label for s in settings])
    axis.invert_yaxis()
    values = [100 * r.looks[-1]["test"] for s in settings for r in own.found[s] if not r.diverged]
    margin = 0.15 * (max(values) - min(values) + 1)
    axis.set_xlim(min(values) - margin, max(values) + margin)
    axis.set(xlabel="test accuracy (%)", title="Test accuracy at the end")
    plain(axis)
    return Panel(name, "Test accuracy at the end: mean with a 95 % interval over seeds, and each seed as a grey dot.", svg(drawing))


def lines(name: str, title: str, xlabel: str, ylabel: str, curves: Mapping[str, Sequence[tuple[float, float]]], log: bool = True) -> Panel:
    """Plain curves through points."""
    drawing, axis = figure(WIDTH, HEIGHT)
    for i, (label, points) in enumerate(curves.items()):
        colour, marker = CLEAR[i % len(CLEAR)], MARKERS[i % 8]
        axis.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, linestyle=DASHES[i % 4], label=label)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if log:
        axis.set(xscale="log", yscale="log")
    _finish(axis)
    return Panel(name, title + ".", svg(drawing))


def _band(axis: Any, x: Sequence[float], curves: Sequence[Sequence[float]], label: str, look: Look, points: bool = False) -> None:
    rows = [[c[i] for c in curves] for i in range(len(x))]
    mean = [sum(row) / len(row) for row in rows]
    marker = look.marker if points else ""
    axis.plot(x, mean, color=look.colour, linestyle=look.dash, marker=marker, markersize=4, linewidth=1.4, label=label)
    if len(curves) > 1:
        axis.fill_between(x, [min(row) for row in rows], [max(row) for row in rows], color=look.colour, alpha=0.12, linewidth=0)


def _decimal(axis: Any) -> None:
    """Plain numbers at 1, 2 and 5 on every axis that is logarithmic."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for one in (axis.xaxis, axis.yaxis):
        if one.get_scale() == "log":
            one.set_major_locator(LogLocator(subs=(1, 2, 5)))
            one.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 10 else f"{v:g}"))
            one.set_minor_formatter(NullFormatter())


def _finish(axis: Any) -> None:
    _decimal(axis)
    axis.title.set_fontsize(9)
    axis.xaxis.label.set_fontsize(8)
    axis.yaxis.label.set_fontsize(8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
    handles, _ = axis.get_legend_handles_labels()
    if handles:
        axis.legend(frameon=False, fontsize=7, ncols=1 + (len(handles) > 4))
    plain(axis)


def by_seed(results: Sequence[Result], key: str) -> list[float]:
    """The last look of every cell that ran to its end, where it saw that."""
    return [r.looks[-1][key] for r in results if not r.diverged and r.looks and key in r.looks[-1]]
