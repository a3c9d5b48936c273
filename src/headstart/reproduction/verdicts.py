"""The claims of the paper, what decides each, and what the cells say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headstart.reproduction.cells import Result
from headstart.reproduction.grid import Figure, Setting
from headstart.reproduction.statistics import Interval, Reached, Trend, log_ratio

Says = Literal["agrees", "disagrees", "undecided"]
SATURATES = 7
"""The number of inner steps around which the paper sees saturation."""


@dataclass(frozen=True)
class Verdict:
    """A claim, and what was found.

    Args:
        claim: its name.
        says: what the paper claims.
        measure: what it is judged in.
        decided_by: the statistic.
        found: its value.
        verdict: ``agrees``, ``disagrees`` or ``undecided``.
    """

    claim: str
    says: str
    measure: str
    decided_by: str
    found: str
    verdict: Says


@dataclass(frozen=True, eq=False)
class Evidence:
    """The cells of one figure, with what a step of each setting takes.

    Args:
        figure: which.
        found: the finished cells by setting.
        costs: by name of a setting.
    """

    figure: Figure
    found: Mapping[Setting, Sequence[Result]]
    costs: Mapping[str, Mapping[str, Any]]

    @property
    def reached(self) -> Reached | None:
        """Steps to a common training loss."""
        return Reached.of(self.figure, self.found)

    def price(self, unit: str) -> dict[Setting, float]:
        """What a step takes in a unit: ``steps``, or a number of the costs."""
        own = {s: self.costs.get(s.name(), {}) for s in self.figure.settings}
        return {s: 1.0 if unit == "steps" else float(cost[unit]) for s, cost in own.items() if unit == "steps" or cost.get(unit)}

    def complete(self, settings: Sequence[Setting]) -> bool:
        """Whether every cell of some settings is finished."""
        return all(len(self.found.get(s, ())) == len(self.figure.seeds) for s in settings)


UNITS = {"steps": "outer iterations", "all_calls": "oracle calls, as the paper counts them", "seconds": "seconds here"}
UNROLLED = {"seconds_unrolled": "seconds here, if the inner loop were unrolled"}


def verdicts(evidence: Mapping[str, Evidence]) -> list[Verdict]:
    """The verdicts on the claims whose figures were run."""
    found: list[Verdict] = []
    if "F1" in evidence:
        found.append(_faster_then_saturates(evidence["F1"]))
        found += [_best_in_between(evidence["F1"], unit) for unit in ("all_calls", "seconds_unrolled", "seconds")]
    for name in ("F2", "F2b"):
        if name in evidence:
            found += [_slower_with_steps(evidence[name], unit) for unit in UNITS]
    if "F3" in evidence:
        found += [_cheaper_per_iteration(evidence["F3"]), _cheaper_to_a_loss(evidence["F3"])]
    return found


def _unit(name: str) -> str:
    return {**UNITS, **UNROLLED}[name]


def _faster_then_saturates(own: Evidence) -> Verdict:
    says = "Strongly convex: per iteration, convergence gets faster with N and saturates around N = 7."
    by = (
        f"outer iterations to one training loss fall up to N = {SATURATES} (Page's test over seeds), and the logarithm of the gain from"
        f" N = 1 to {SATURATES} exceeds that from {SATURATES} to the largest N (95 % interval)"
    )
    reached = own.reached
    if reached is None:
        return Verdict("C1", says, UNITS["steps"], by, "too few cells", "undecided")
    steps = sorted(reached.steps, key=lambda s: s.x)
    first, last = steps[0], steps[-1]
    knee = max((s for s in steps if s.x <= SATURATES), key=lambda s: s.x)
    trend = Trend.of([reached.steps[s] for s in steps if s.x <= SATURATES])
    early, late = log_ratio(reached.steps[first], reached.steps[knee]), log_ratio(reached.steps[knee], reached.steps[last])
    more = Interval.of(
        [
            math.log(reached.steps[first][k] * reached.steps[last][k] / reached.steps[knee][k] ** 2)
            for k in reached.steps[first]
            if k in reached.steps[knee] and k in reached.steps[last]
        ]
    )
    found = f"up to N = {knee.x:g} the number of iterations to loss {reached.target:.3f} {_trend(trend)}, {_times(early)} fewer"
    if last is not knee:
        found += f"; from N = {knee.x:g} to {last.x:g} {_times(late)} fewer"
    if trend.verdict == "rises":
        return Verdict("C1", says, UNITS["steps"], by, found, "disagrees")
    if trend.verdict == "falls" and last is not knee:
        return Verdict(
            "C1", says, UNITS["steps"], by, found, "agrees" if more.above_zero else "disagrees" if more.below_zero else "undecided"
        )
    return Verdict("C1", says, UNITS["steps"], by, found, "undecided")


def _best_in_between(own: Evidence, unit: str) -> Verdict:
    says = "Strongly convex: per running time, convergence improves up to a moderate N and then gets worse."
    by = (
        "the N with the lowest mean cost to one training loss is neither the smallest nor the largest, and both of those cost more (95 %"
        " intervals)"
    )
    reached = own.reached
    if reached is None:
        return Verdict("C2", says, _unit(unit), by, "too few cells", "undecided")
    cost = reached.cost(own.price(unit))
    steps = sorted(cost, key=lambda s: s.x)
    if len(steps) < 3:
        return Verdict("C2", says, _unit(unit), by, "too few settings", "undecided")
    best = min(steps, key=lambda s: Interval.of(list(cost[s].values())).mean)
    low, high = (log_ratio(cost[end], cost[best]) for end in (steps[0], steps[-1]))
    trend = Trend.of([cost[s] for s in steps])
    ends = [f"N = {s.x:g} costs {_times(ratio)} as much" for s, ratio in ((steps[0], low), (steps[-1], high)) if s is not best]
    found = f"cheapest is N = {best.x:g}; {', '.join(ends)}"
    inner = best not in (steps[0], steps[-1])
    if inner:
        verdict: Says = "agrees" if low.above_zero and high.above_zero else "undecided"
    else:
        other = high if best is steps[0] else low
        found += f"; over N the cost {_trend(trend)}"
        verdict = "disagrees" if other.above_zero and trend.verdict == ("rises" if best is steps[0] else "falls") else "undecided"
    return Verdict("C2", says, _unit(unit), by, found, verdict)


def _slower_with_steps(own: Evidence, unit: str) -> Verdict:
    reading = "the last block and the head" if own.figure.name == "F2" else "a hidden layer and the head"
    says = f"Nonconvex ({reading}): convergence gets slower as N grows; a small N is best."
    by = "the cost to one training loss rises with N (Page's test over seeds)"
    reached = own.reached
    if reached is None:
        return Verdict("C3", says, UNITS[unit], by, "too few cells", "undecided")
    cost = reached.cost(own.price(unit))
    steps = sorted(cost, key=lambda s: s.x)
    if len(steps) < 3:
        return Verdict("C3", says, UNITS[unit], by, "too few settings: a trend needs three", "undecided")
    trend = Trend.of([cost[s] for s in steps])
    best = min(steps, key=lambda s: Interval.of(list(cost[s].values())).mean)
    ratio = log_ratio(cost[steps[-1]], cost[steps[0]])
    left = f"; left out as a cell diverged: {', '.join(reached.left_out)}" if reached.left_out else ""
    found = (
        f"to loss {reached.target:.3f} the cost {_trend(trend)}; cheapest is N = {best.x:g}, N = {steps[-1].x:g} takes {_times(ratio)} what"
        f" N = {steps[0].x:g} takes{left}"
    )
    verdict: Says = "agrees" if trend.verdict == "rises" else "disagrees" if trend.verdict == "falls" else "undecided"
    return Verdict("C3", says, UNITS[unit], by, found, verdict)


def _pairs(own: Evidence) -> list[tuple[Setting, Setting]]:
    by = {(s.group, s.x): s for s in own.figure.settings}
    return [(s, by["MAML", s.x]) for s in own.figure.settings if s.group == "ANIL" and ("MAML", s.x) in by]


def _cheaper_per_iteration(own: Evidence) -> Verdict:
    says = "ANIL costs less than MAML per iteration."
    by = "multiply-adds and seconds of one outer step at each N, MAML over ANIL, all above 1"
    rows, ratios = [], []
    for anil, maml in _pairs(own):
        a, m = own.costs.get(anil.name()), own.costs.get(maml.name())
        if a and m:
            units = {"multiply-adds": "multiply_adds", "seconds": "seconds", "memory": "memory"}
            found = {say: m[unit] / a[unit] for say, unit in units.items() if a.get(unit) and m.get(unit)}
            ratios += [found["multiply-adds"], found["seconds"]]
            rows.append(f"N = {anil.x:g}: " + ", ".join(f"{v:.1f}× the {k}" for k, v in found.items()))
    if not rows:
        return Verdict("C4", says, "cost of a step", by, "no costs were measured", "undecided")
    return Verdict("C4", says, "cost of a step", by, "MAML takes, at " + "; ".join(rows), "agrees" if min(ratios) > 1 else "disagrees")


def _cheaper_to_a_loss(own: Evidence) -> Verdict:
    says = "ANIL costs less than MAML to a given loss."
    by = "seconds to one training loss at each N, MAML over ANIL (95 % interval over seeds)"
    seconds = own.price("seconds")
    rows, judged = [], []
    for anil, maml in _pairs(own):
        one = Figure("", "", (anil, maml), own.figure.seeds)
        if any(r.diverged for r in own.found.get(maml, ())):
            rows.append(f"N = {anil.x:g}: MAML diverged at this step size")
            continue
        reached = Reached.of(one, own.found)
        if reached is None or anil not in seconds or maml not in seconds:
            continue
        cost = reached.cost(seconds)
        ratio = log_ratio(cost[maml], cost[anil])
        judged.append(ratio)
        rows.append(f"N = {anil.x:g}: {_times(ratio)} the seconds to loss {reached.target:.3f}")
    verdict: Says = "undecided"
    if judged and all(r.above_zero for r in judged):
        verdict = "agrees"
    elif judged and all(r.below_zero for r in judged):
        verdict = "disagrees"
    return Verdict("C4", says, UNITS["seconds"], by, "MAML takes, at " + "; ".join(rows) if rows else "too few cells", verdict)


def _times(ratio: Interval) -> str:
    low, high = math.exp(ratio.mean - ratio.half) if math.isfinite(ratio.half) else 0.0, math.exp(min(ratio.mean + ratio.half, 700.0))
    span = f" ({low:.2f} to {high:.2f})" if math.isfinite(ratio.half) else ""
    return f"{math.exp(ratio.mean):.2f} times{span}"


def _trend(trend: Trend) -> str:
    how = "shows no trend" if trend.verdict == "no trend" else trend.verdict
    return f"{how} (p = {min(trend.rising, trend.falling):.2g})"
