"""Ways to meta-train, with what is measured and predicted of each, and their order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headstart.measuring.cost import Cost
from headstart.measuring.objective import Objective
from headstart.theory.bounds import Constants
from headstart.theory.complexity import predict
from headstart.theory.descent import iterations_to

TARGET = 0.8
"""The query loss that predictions are for, as a share of the lowest among the candidates that are compared."""
EPS = 0.1
"""ε of the worst case that is shown: ‖∂F/∂w‖² and ‖∂F/∂φ‖² at most this."""


@dataclass(frozen=True)
class WorstCase:
    """What the theorems promise with the constants as measured, which see a few points only.

    Args:
        constants: μ, L, M, ρ, τ.
        shared: whether there is a φ.
    """

    constants: Constants
    shared: bool

    def at(self, steps: int, lr: float, loss: float) -> float:
        """K(ε), outer iterations from a loss (whose infimum is taken for 0) to ε = 0.1; infinite where that is no number."""
        try:
            return float(predict(self.constants, lr, steps, EPS, loss, self.shared).iterations)
        except (OverflowError, ValueError):
            return math.inf


@dataclass(frozen=True)
class Pilot:
    """A short training run, and what it reached on the validation tasks.

    Args:
        iterations, seconds: of training.
        metric, mean, ci95: the validation result.
        before: the metric without adaptation.
        round: of successive halving, 0 for the first.
        apart: whether the best of its round was better by more than the interval of the paired difference; False for that best itself.
    """

    iterations: int
    seconds: float
    metric: str
    mean: float
    ci95: float
    before: float
    round: int = 0
    apart: bool = False

    @property
    def score(self) -> float:
        """Higher is better; the finalists had equal time, so this ranks their progress per second."""
        return self.mean if self.metric == "accuracy" else -self.mean


@dataclass(frozen=True)
class Candidate:
    """One way to meta-train.

    Args:
        adapt, steps, lr, l2: what adapts, N, α and λ.
        geometry: of the inner loss along the path: ``"strongly convex"``, ``"convex"`` or ``"nonconvex"``; ``"not measured"`` where that
            would have taken more than its share of the time, and ``mu``, ``L``, ``start`` and ``worst`` are not numbers.
        mu, L: smallest and largest eigenvalue of the inner Hessian on the first N steps of the measured path.
        tasks, sampling: of a meta-batch.
        cost: of an outer step.
        start, later: the meta-objective at the first weights, and after the short pilot.
        worst: K(ε) by the theorems.
        pilot: a training run of a finalist.
    """

    adapt: str
    steps: int
    lr: float
    l2: float
    geometry: str
    mu: float
    L: float
    tasks: int
    sampling: str
    cost: Cost
    start: Objective
    worst: float
    later: Objective | None = None
    pilot: Pilot | None = None

    @property
    def newest(self) -> Objective:
        """The meta-objective as it was measured last."""
        return self.later or self.start

    def iterations(self, target: float, seen: Objective | None = None) -> float:
        """Predicted outer steps to a query loss, from the newest of what was measured, or from what is given."""
        seen = seen or self.newest
        return iterations_to(seen.loss, target, seen.decrease)

    def seconds(self, target: float, seen: Objective | None = None) -> float:
        """Predicted seconds to a query loss."""
        return self.iterations(target, seen) * self.cost.seconds

    @property
    def key(self) -> str:
        """What it shares eigenvalues and worst cases with: what adapts, and λ."""
        return key_of(self.adapt, self.l2)

    def name(self) -> str:
        """The choice in a few words."""
        return f"{self.adapt}, N = {self.steps}, α = {self.lr:g}" + (f", λ = {self.l2:g}" if self.l2 else "")


UNMEASURED = "not measured"
NOTHING = Objective(math.inf, None, {"w": 0.0}, {"w": 0.0}, {"w": 0.0})
"""What stands for the meta-objective where it is not measured."""


def key_of(adapt: str, l2: float) -> str:
    """The name of a partition with a regularisation."""
    return f"{adapt}, λ = {l2:g}"


def target_of(candidates: Sequence[Candidate], later: bool | None = None) -> float:
    """The query loss that predictions are for: of those measured again where any are, or of the measurements at the start."""
    later = any(c.later is not None for c in candidates) if later is None else later
    return TARGET * min([c.later.loss for c in candidates if c.later] if later else [c.start.loss for c in candidates])


def rank(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first: by the validation result of equally long pilots where there are any, then by predicted seconds to one loss.

    Those of a later round of successive halving come before those of an earlier one. Of pilots that their intervals do not tell apart from
    the best, the one with the cheaper outer step comes first. Measurements around one point do not tell predictions apart that lie within
    a factor of two or so; among those of one such class the theory decides: more inner steps where the inner loss is convex, fewer where
    it is not (docs/theory.md, section 4). Those measured after a short pilot come before those measured at the start only, which were
    behind them there.
    """
    target = target_of(candidates)
    pilots = [c.pilot for c in candidates if c.pilot]
    best = {r: max((p for p in pilots if p.round == r), key=lambda p: p.score) for r in {p.round for p in pilots}}
    last = max(best, default=0)

    def pilot(c: Candidate) -> tuple[int, int, float]:
        if c.pilot is None:
            return last + 1, 2, 0.0
        first, behind = best[c.pilot.round], last - c.pilot.round
        level = first.score - c.pilot.score <= math.hypot(first.ci95, c.pilot.ci95)
        return (behind, 0, c.cost.seconds) if level else (behind, 1, -c.pilot.score)

    return sorted(
        candidates, key=lambda c: (*pilot(c), c.later is None, _class(c.seconds(target)), math.isinf(c.newest.loss), _by_theory(c))
    )


def _class(seconds: float) -> float:
    """Predictions that are not told apart: those with the same whole logarithm to the base of two."""
    return round(math.log2(seconds)) if 0 < seconds < math.inf else -math.inf if seconds == 0 else math.inf


def _by_theory(c: Candidate) -> int:
    return c.steps if c.geometry == "nonconvex" else -c.steps
