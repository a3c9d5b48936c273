"""A plan as one self-contained page: the candidates, eigenvalues along the inner path, predicted cost over N, predicted and measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from headstart.container import write_text
from headstart.experiments.drawing import BLUE, GREEN, GREY, RED, STYLE, figure, plain, svg
from headstart.planning.candidates import TARGET, UNMEASURED, Candidate, target_of
from headstart.planning.recommendation import Plan

COLOURS = {"strongly convex": BLUE, "convex": GREEN, "nonconvex": RED, UNMEASURED: GREY}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>{{ style }}</style></head><body>
<h1>{{ title }}</h1>
<p class="result">{{ plan.recommended.name() }}</p>
<ul>{% for reason in plan.reasons() + plan.notes %}<li>{{ reason }}</li>{% endfor %}</ul>
<p class="note">Planning took {{ "%.0f" | format(plan.seconds) }} s, for {{ "%.0f" | format(plan.budget) }} s of training.
Next: <code>headstart train --config {{ config }}</code></p>
<h2>Eigenvalues of the inner Hessian along the path</h2>
<p class="note">At w_0 … w_N: medians over tasks, with the whole range shaded. Below zero the inner loss is not convex.</p>{{ eigenvalues }}
<h2>Predicted cost over the number of inner steps</h2>
<p class="note">Left: oracle calls until both squared gradients are at most 0.1, by the theorems with the constants as measured: the worst
case, too loose to rank with. Right: seconds to {{ "%.0f" | format(100 * share) }} % of the lowest query loss, from quantities measured at
the start (lines) and after a short pilot (crosses, where measured again). What has no point is not predicted to get there.</p>
{{ costs }}
{% if measured %}<h2>Measured against predicted</h2>
<p class="note">{{ sentence }}</p>{{ measured }}{% endif %}
<h2>Candidates, best first</h2>
<pre>{{ plan }}</pre>
</body></html>
"""


def write_plan_report(folder: str | Path, plan: Plan, title: str) -> Path:
    """Writes ``report.html`` into a folder.

    Args:
        folder: where plan.json is.
        plan: the plan.
        title: what was planned.

    Returns:
        Where the page is.
    """
    import jinja2

    measured, sentence = _measured(plan)
    page = (
        jinja2.Environment(autoescape=True, trim_blocks=True)
        .from_string(PAGE)
        .render(
            title=title,
            style=STYLE,
            plan=plan,
            config=str(Path(folder) / "config.json"),
            eigenvalues=_eigenvalues(plan),
            costs=_costs(plan),
            measured=measured,
            sentence=sentence,
            share=TARGET,
        )
    )
    path = Path(folder) / "report.html"
    write_text(path, page)
    return path


def _eigenvalues(plan: Plan) -> Any:
    if not plan.spectra:
        return "They were not measured, as that would have taken more than its share of the time."
    drawing, axes = figure(3.2 * len(plan.spectra), 2.8, ncols=len(plan.spectra), squeeze=False)
    for axis, (key, spectrum) in zip(axes[0], plan.spectra.items(), strict=True):
        steps = range(spectrum.smallest.shape[1])
        for values, colour, label in ((spectrum.largest, GREY, "largest"), (spectrum.smallest, COLOURS[spectrum.geometry], "smallest")):
            axis.fill_between(steps, values.min(0).values, values.max(0).values, color=colour, alpha=0.2, linewidth=0)
            axis.plot(steps, values.median(0).values, color=colour, marker="o", markersize=3, label=label)
        axis.axhline(0, color=GREY, linestyle=":")
        axis.set(title=f"{key}\n{spectrum.geometry}", xlabel="inner step", yscale="symlog")
        axis.title.set_fontsize(9)
    axes[0][0].set_ylabel("eigenvalue")
    axes[0][0].legend(frameon=False, fontsize=8)
    plain(*axes[0])
    return svg(drawing)


def _costs(plan: Plan) -> Any:
    drawing, (left, right) = figure(9, 3.2, ncols=2)
    first = target_of(plan.candidates, later=False)
    for i, ((adapt, l2), group) in enumerate(_groups(plan).items()):
        label = adapt + (f", λ = {l2:g}" if l2 else "")
        style = {"marker": "o", "markersize": 4, "color": f"C{i}", "label": f"{label} ({group[0].geometry})"}
        again = [(c.steps, c.seconds(plan.target, c.later)) for c in group if c.later is not None]
        right.plot([x for x, y in again if math.isfinite(y)], [y for _, y in again if math.isfinite(y)], "x", color=f"C{i}")
        for axis, values in (
            (left, [(c.steps, c.worst * sum(c.cost.calls.values())) for c in group]),
            (right, [(c.steps, c.seconds(first, c.start)) for c in group]),
        ):
            there = [(x, y) for x, y in values if 0 < y < math.inf]
            if there:
                axis.plot(*zip(*there, strict=True), linestyle="-" if group[0].geometry != "nonconvex" else "--", **style)
    left.set(xlabel="inner steps N", ylabel="oracle calls, worst case")
    right.set(xlabel="inner steps N", ylabel="seconds, as predicted")
    for axis in (left, right):
        if any(len(line.get_xdata()) for line in axis.lines):
            axis.set_yscale("log")
        axis.xaxis.get_major_locator().set_params(integer=True)
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False, fontsize=8)
    plain(left, right)
    return svg(drawing)


def _groups(plan: Plan) -> dict[tuple[str, float], list[Candidate]]:
    found: dict[tuple[str, float], list[Candidate]] = {}
    for c in sorted(plan.candidates, key=lambda c: c.steps):
        found.setdefault((c.adapt, c.l2), []).append(c)
    return found


def _measured(plan: Plan) -> tuple[Any, str]:
    """The finalists' pilots, or, without any, predictions at the start beside those after the short pilot."""
    target = plan.target
    pilots = [(c, c.pilot) for c in plan.candidates if c.pilot is not None and 0 < c.seconds(target) < math.inf]
    if pilots and not plan.contradicted:
        drawing, axis = figure(5, 3)
        metric = pilots[0][1].metric
        scale = 100 if metric == "accuracy" else 1
        for c, pilot in pilots:
            axis.errorbar(c.seconds(target), scale * pilot.mean, scale * pilot.ci95, fmt="o", label=c.name())
        axis.set(xlabel="predicted seconds to the target loss", ylabel=f"validation {metric} of the pilot", xscale="log")
        axis.legend(frameon=False, fontsize=8)
        plain(axis)
        return svg(drawing), "Finalists trained for equal times. If predictions were right, fewer seconds would go with better validation."
    moved = [c for c in plan.candidates if c.later is not None and c.start.decrease > 0 and c.later.decrease > 0]
    if not moved:
        return None, ""
    drawing, axis = figure(5, 3)
    for geometry in sorted({c.geometry for c in moved}):
        own = [c for c in moved if c.geometry == geometry]
        axis.plot(
            [c.start.decrease / c.cost.seconds for c in own],
            [c.later.decrease / c.cost.seconds for c in own if c.later],
            "o",
            color=COLOURS[geometry],
            label=geometry,
        )
    axis.set(xlabel="at the start", ylabel="after the short pilot", xscale="log", yscale="log", title="decrease of the loss per second")
    axis.legend(frameon=False, fontsize=8)
    plain(axis)
    return svg(drawing), "What the formulas give at the first weights and after a short pilot: how far a local measurement carries."
