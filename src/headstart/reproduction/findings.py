"""What the finished cells say, put together for a page: sections with panels and tables, verdicts, the advice, and the protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headstart.reproduction import pictures
from headstart.reproduction.cells import Result
from headstart.reproduction.grid import Figure, Setting
from headstart.reproduction.pictures import Panel
from headstart.reproduction.statistics import Interval, Reached, Trend, prices_with_a_best_n_in_between
from headstart.reproduction.verdicts import Evidence, Verdict, verdicts

AS_GOOD = 0.01
"""Of test accuracy: what is so near to the best is as good, and the cheapest of it is advised."""
PAPER = ("F1", "F2", "F2b", "F3")
CLAIMS = {"F1": ("C1", "C2"), "F2": ("C3",), "F2b": ("C3",), "F3": ("C4",)}


@dataclass(frozen=True)
class Table:
    """Rows under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A figure of the report.

    Args:
        name: of the figure.
        title: what it asks.
        notes: sentences.
        panels: plots.
        table: numbers.
        verdicts: on its claims.
    """

    name: str
    title: str
    notes: Sequence[str]
    panels: Sequence[Panel]
    table: Table | None
    verdicts: Sequence[Verdict] = ()


@dataclass(frozen=True)
class Findings:
    """Everything that the report shows.

    Args:
        title: of the report.
        advice: what to adapt, how many steps, what it costs: the first sentences.
        verdicts: on the claims.
        sections: the figures.
        finished, cells: how many cells are finished, of how many.
    """

    title: str
    advice: Sequence[str]
    verdicts: Sequence[Verdict]
    sections: Sequence[Section]
    finished: int
    cells: int
    machine: Mapping[str, Any] = field(default_factory=dict)

    def by_claim(self) -> list[tuple[str, list[Verdict]]]:
        """The verdicts on each claim together, in their order."""
        claims = dict.fromkeys(v.says for v in self.verdicts)
        return [(says, [v for v in self.verdicts if v.says == says]) for says in claims]


def findings(figures: Sequence[Figure], results: Mapping[str, Result], costs: Mapping[str, Any], title: str, cells: int) -> Findings:
    """Puts together what the finished cells say.

    Args:
        figures: with their settings.
        results: of cells, by name.
        costs: what :func:`~headstart.reproduction.costs.measure_costs` wrote; empty before.
        title: of the report.
        cells: how many there are.
    """
    by_setting = costs.get("settings", {})
    evidence = {f.name: Evidence(f, _found(f, results), by_setting) for f in figures}
    judged = verdicts(evidence)
    sections = [_section(own, [v for v in judged if _of(v, name)]) for name, own in evidence.items()]
    geometry = _geometry(evidence)
    sections += [geometry] if geometry else []
    return Findings(title, _advice(evidence), judged, sections, len(results), cells, costs.get("machine", {}))


def _of(verdict: Verdict, figure: str) -> bool:
    if verdict.claim not in CLAIMS.get(figure, ()):
        return False
    return verdict.claim != "C3" or ("hidden" in verdict.says) == (figure == "F2b")


def _found(figure: Figure, results: Mapping[str, Result]) -> dict[Setting, list[Result]]:
    names = {s: [f"{s.name()}-s{seed}" for seed in figure.seeds] for s in figure.settings}
    return {s: [results[n] for n in own if n in results] for s, own in names.items()}


# -- sections --------------------------------------------------------------------------------------------------------------


def _section(own: Evidence, judged: Sequence[Verdict]) -> Section:
    figure, reached = own.figure, own.reached
    notes = []
    diverged = [f"{s.label} (seed {r.seed})" for s, rs in own.found.items() for r in rs if r.diverged]
    if diverged:
        notes.append(f"Diverged, and left out: {', '.join(diverged)}.")
    if not any(not r.diverged for rs in own.found.values() for r in rs):
        return Section(figure.name, figure.title, [*notes, "No cell is finished yet."], (), None, judged)
    notes += _prices(reached) if figure.name == "F1" and reached else []
    notes += _groups(own) if figure.name == "step-sizes" else []
    name = figure.name.lower()
    panels = [pictures.final(own, f"{name}-final")]
    if figure.name in PAPER:
        panels = [*_curves(own, name, reached), *panels]
    else:
        panels.append(pictures.losses(own, f"{name}-loss", _ones(own), "outer steps", False, None))
    if figure.name == "implicit":
        panels += _implicit_panels(own)
    # To a loss that everything reaches says something of alike settings only.
    table = _table(own, reached if figure.name in PAPER else None)
    return Section(figure.name, figure.title, notes, panels, table, judged)


def _prices(reached: Reached) -> list[str]:
    """What an inner step may cost for the second claim to hold."""
    mean = {s.x: Interval.of(list(own.values())).mean for s, own in reached.steps.items()}
    found = prices_with_a_best_n_in_between(mean) if len(mean) > 2 else None
    if found is None:
        return ["With these iterations no price of an inner step makes an N in between the cheapest."]
    low, high = (f"{100 * price:.0f} %" for price in found)
    where = f"between {low} and {high}" if math.isfinite(found[1]) else f"more than {low}"
    above = ", and where it costs more, the smallest N is best" if math.isfinite(found[1]) else ""
    return [
        f"With these iterations an N in between is cheapest where an inner step costs {where} of an outer step without inner steps; where"
        f" it costs less, more inner steps always pay{above}."
    ]


def _groups(own: Evidence) -> list[str]:
    """How each group of a figure goes along its numbers, to a loss that all of the group reach."""
    found = []
    for group in dict.fromkeys(s.group for s in own.figure.settings):
        part = replace(own.figure, settings=tuple(s for s in own.figure.settings if s.group == group))
        reached = Reached.of(part, own.found)
        if reached is None or len(reached.steps) < 3:
            continue
        columns = sorted(reached.steps, key=lambda s: s.x)
        each = ", ".join(f"{Interval.of(list(reached.steps[s].values())).mean:.0f} at N = {s.x:g}" for s in columns)
        found.append(f"{group}: outer steps to loss {reached.target:.3f}: {each}; {Trend.of([reached.steps[s] for s in columns])}.")
    return found


def _ones(own: Evidence) -> dict[Setting, float]:
    return dict.fromkeys(own.figure.settings, 1.0)


def _curves(own: Evidence, name: str, reached: Reached | None) -> list[Panel]:
    seconds, calls = own.price("seconds"), own.price("all_calls")
    panels = [pictures.losses(own, f"{name}-loss-steps", _ones(own), "outer steps", False, reached)]
    if seconds:
        panels.append(pictures.losses(own, f"{name}-loss-seconds", seconds, "seconds of training alone", True, reached))
        panels.append(pictures.losses(own, f"{name}-loss-calls", calls, "oracle calls (as the paper counts)", True, reached))
    if reached and seconds:
        panels.append(pictures.to_target(own, f"{name}-cost", reached))
    looks = pictures.looked
    panels += [
        looks(own, f"{name}-accuracy", "objective_accuracy", "accuracy (%)", "Accuracy on training classes", 100),
        looks(own, f"{name}-test", "test", "test accuracy (%)", "Accuracy on test classes", 100, error="test_ci95"),
        looks(own, f"{name}-gradient-w", "gradient_w", "‖∂F/∂w‖", "Gradient of the objective in w", log=True),
    ]
    if any(e["gradient_phi"] for rs in own.found.values() for r in rs for e in r.looks):
        panels.append(looks(own, f"{name}-gradient-phi", "gradient_phi", "‖∂F/∂φ‖", "Gradient of the objective in φ", log=True))
    return panels


def _implicit_panels(own: Evidence) -> list[Panel]:
    seen = [
        (e["step"], e["implicit"])
        for rs in own.found.values()
        for r in rs
        for e in r.looks
        if "implicit" in e and "implicit" not in r.config["hypergradient"]
    ]
    if not seen:
        return []
    curves = {f"after {step} outer steps": [(float(n), v) for n, v in far.items()] for step, far in seen}
    title = "‖implicit − exact‖ / ‖exact‖ in φ"
    return [
        pictures.lines(
            "implicit-distance", f"How far the implicit meta-gradient is from the exact one: {title}", "inner steps N", title, curves
        )
    ]


def _table(own: Evidence, reached: Reached | None) -> Table:
    whole = own.figure.name in PAPER
    head = ["setting", "seeds", "final F", "test accuracy (%)", *(["transductive"] if whole else [])]
    head += ["calls a step", "multiply-adds", "seconds a step", "MiB a step"]
    if reached:
        head += [f"steps to {reached.target:.3f}", "seconds to it"]
    seconds = own.price("seconds")
    rows = []
    for s in own.figure.settings:
        ran = [r for r in own.found.get(s, ()) if not r.diverged]
        if not ran:
            continue
        cost = own.costs.get(s.name(), {})
        row = [
            s.label if len({t.group for t in own.figure.settings}) == 1 else s.full,
            str(len(ran)),
            Interval.of([r.looks[-1]["objective"] for r in ran]).show(digits=3),
            Interval.of([r.looks[-1]["test"] for r in ran]).show(100),
            *([Interval.of(pictures.by_seed(ran, "test_transductive")).show(100)] if whole else []),
            f"{cost['all_calls']:,}" if cost else "",
            f"{cost['multiply_adds'] / 1e9:.2f} G" if cost else "",
            f"{cost['seconds']:.3f}" if cost else "",
            f"{cost['memory']:.0f}" if cost.get("memory") is not None else "",
        ]
        if reached:
            steps = list(reached.steps.get(s, {}).values())
            row.append(Interval.of(steps).show(digits=0) if steps else "diverged")
            row.append(Interval.of([n * seconds[s] for n in steps]).show() if steps and s in seconds else "")
        rows.append(row)
    return Table(head, rows)


def _geometry(evidence: Mapping[str, Evidence]) -> Section | None:
    rows = []
    for name in PAPER:
        for s, ran in (evidence[name].found if name in evidence else {}).items():
            for r in ran[:1]:
                for e in r.looks:
                    if "curvature" in e:
                        rows.append(_curvature_row(name, s, e))
    if not rows:
        return None
    notes = [
        "Eigenvalues of the inner Hessian along the inner paths of two tasks, for the first seed: μ̂ is the smallest, L̂ the largest"
        " magnitude. Gradient descent on a quadratic is stable up to α L̂ = 2; cross-entropy flattens along the path, so some more works."
    ]
    head = ["figure", "setting", "outer step", "assumed", "measured", "μ̂", "L̂", "α L̂"]
    return Section("geometry", "The inner loss's curvature, measured along training", notes, (), Table(head, rows))


def _curvature_row(figure: str, s: Setting, e: Mapping[str, Any]) -> list[str]:
    own, assumed = e["curvature"], "strongly convex" if figure == "F1" else "convex" if s.group == "ANIL" else "nonconvex"
    if own["mu"] is None:
        return [figure, s.full, str(e["step"]), assumed, "the inner loop diverges", "", "", ""]
    return [
        figure,
        s.full,
        str(e["step"]),
        assumed,
        own["geometry"],
        f"{own['mu']:.3g}",
        f"{own['L']:.3g}",
        f"{float(s.config.learner.lr) * own['L']:.2g}",
    ]


# -- the first sentences ---------------------------------------------------------------------------------------------------


def _advice(evidence: Mapping[str, Evidence]) -> list[str]:
    """The setting of the paper's figures with the best test accuracy, and the cheapest that is as good within its interval."""
    ran: dict[str, tuple[Setting, list[float], Mapping[str, Any]]] = {}
    for name in PAPER:
        for s, own in (evidence[name].found if name in evidence else {}).items():
            values = pictures.by_seed(own, "test")
            if values and s.name() not in ran:
                ran[s.name()] = (s, values, evidence[name].costs.get(s.name(), {}))
    if not ran:
        return ["No cell of the paper's figures is finished yet."]
    mean = lambda one: Interval.of(one[1]).mean  # noqa: E731
    best = max(ran.values(), key=mean)
    good = [one for one in ran.values() if one[2] and mean(one) >= mean(best) - AS_GOOD] or [best]
    cheap = min(good, key=lambda one: one[2].get("seconds", math.inf))
    lines = [f"{_named(cheap[0])}: {Interval.of(cheap[1]).show(100)} % on test classes{_at(cheap[2])}."]
    if cheap is not best:
        lines.append(
            f"The highest mean has: {_named(best[0])}, {Interval.of(best[1]).show(100)} %{_at(best[2])}; of all within a point of it, the"
            " cheapest step is named first."
        )
    return lines


def _named(s: Setting) -> str:
    part = {"head": "the head", "last:2": "the last block and the head", "all": "everything (MAML)"}.get(
        s.config.learner.adapt, s.config.learner.adapt
    )
    if s.config.learner.model_options:
        part = "a hidden layer and the head"
    l2 = f", λ = {s.config.learner.l2:g}" if s.config.learner.l2 else ""
    return f"Adapt {part} with N = {s.config.learner.steps} steps of α = {s.config.learner.lr:g}{l2}"


def _at(cost: Mapping[str, Any]) -> str:
    if not cost:
        return ""
    memory = f", {cost['memory']:.0f} MiB" if cost.get("memory") is not None else ""
    return f", at {cost['seconds']:.2g} s, {cost['all_calls']:,} oracle calls{memory} per outer step"
