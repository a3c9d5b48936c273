"""What planning found: candidates in their order, the reasons for the first, and both as text and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headstart.container import make_folder, write_json
from headstart.evaluation.result import show_with
from headstart.measuring.spectrum import Spectrum
from headstart.planning.candidates import EPS, UNMEASURED, Candidate, WorstCase, target_of
from headstart.training.config import RunConfig

PLAN, CONFIG = "plan.json", "config.json"


@dataclass(frozen=True)
class Plan:
    """Candidates, best first, and what is behind their order.

    Args:
        candidates: ranked.
        spectra: eigenvalues along the inner path by partition and λ.
        worst: constants of the theorems by partition and λ.
        budget: seconds of training that the plan is for.
        seconds: that planning took.
        notes: what was left out, and why.

    Example:
        >>> import tempfile
        >>> import headstart as hs
        >>> waves, small = hs.data.load("sinusoid"), hs.TrainConfig(shots=5, queries=5, tasks=4)
        >>> found = hs.plan(hs.models.mlp(1, 1, [8]), waves, small, hs.PlanConfig(("head",), (1, 3), seconds=1, pilot=False))
        >>> found.recommended.adapt, found.iterations() >= 1, found.contradicted, len(found.predicted(found.recommended))
        ('head', True, False, 2)
        >>> found.to_dict()["target_loss"] == found.target, len(found.reasons()) > 1
        (True, True)
        >>> folder = found.save(tempfile.mkdtemp(), config := RunConfig.from_flat({"data": "sinusoid", "loss": "squared_error"}))
        >>> (folder / "plan.json").exists(), found.config(config).learner.adapt
        (True, 'head')
    """

    candidates: list[Candidate]
    spectra: dict[str, Spectrum]
    worst: dict[str, WorstCase]
    budget: float
    seconds: float
    notes: list[str]

    @property
    def recommended(self) -> Candidate:
        """The first of the candidates."""
        return self.candidates[0]

    @property
    def target(self) -> float:
        """The query loss that the predictions are for."""
        return target_of(self.candidates)

    @property
    def contradicted(self) -> bool:
        """Whether, of the finalists, the one predicted to be soonest was told apart from the best of its round."""
        finalists = [c for c in self.candidates if c.pilot is not None]
        first = min(finalists, key=lambda c: c.seconds(self.target), default=None)
        return first is not None and first.pilot is not None and (first.pilot.apart or math.isinf(first.seconds(self.target)))

    def predicted(self, c: Candidate) -> tuple[float, float]:
        """(iterations, seconds) to the target loss; for candidates not measured again, to that of the start."""
        target = self.target if c.later is not None else target_of(self.candidates, later=False)
        return c.iterations(target), c.seconds(target)

    def iterations(self) -> int:
        """Outer steps of the recommended candidate that fit the budget, with a tenth left for validation."""
        return max(1, round(0.9 * self.budget / self.recommended.cost.seconds))

    def reasons(self) -> list[str]:
        """Why the first is recommended, in sentences."""
        best, target = self.recommended, self.target
        found = [f"{key}: {s.geometry} ({s.reason})" for key, s in self.spectra.items()]
        if best.pilot is not None:
            p = best.pilot
            found.append(
                f"after {p.iterations} outer steps ({p.seconds:.0f} s) {best.name()} reached a validation {p.metric} of"
                f" {show_with(p.metric, p.mean, p.ci95)}: the best of the last round, or not told apart from it and cheaper"
            )
            close = [c for c in self.candidates[1:] if c.pilot and not c.pilot.apart]
            if close:
                each = "; ".join(f"{c.name()} (round {c.pilot.round + 1})" for c in close if c.pilot)
                found.append(f"not told apart from the best of their round, by paired intervals on the same episodes: {each}")
            if self.contradicted:
                found.append("what is predicted from local measurements is not shown: the pilots contradict its order")
        else:
            found.append(
                f"by quantities measured {'after a short pilot' if best.later else 'at the start'}, {best.name()} is predicted to"
                f" reach a query loss of {target:.3g} soonest, in {_time(best.seconds(target))}, or not told apart from the soonest: each"
                f" outer step takes {best.cost.seconds:.2g} s and is worth {best.newest.decrease:.2g}. Among predictions within a factor of"
                " two, more inner steps come first where the inner loss is convex, and fewer where it is not"
            )
        same = [c for c in self.candidates if (c.adapt, c.l2, c.later is None) == (best.adapt, best.l2, best.later is None)]
        others = [c for c in same if c.steps != best.steps]
        if others and best.pilot is None:
            next_ = min(others, key=lambda c: c.seconds(target))
            found.append(f"with N = {next_.steps} instead it would be {_time(next_.seconds(target))}")
        finite = [c.worst for c in self.candidates if math.isfinite(c.worst)]
        if finite:
            found.append(f"the theorems alone promise ε = {EPS:g} after {min(finite):.1e} iterations or more: too loose to rank with")
        return found

    def __str__(self) -> str:
        target, again = self.target, self.recommended.later is not None
        head = (
            f"{'adapt':<10} {'geometry':<15} {'μ̂':>9} {'L̂':>9} {'N':>3} {'α':>8} {'λ':>6} {'s/step':>7} {'MiB':>6} {'calls':>8}"
            f" {'loss':>7} {'predicted':>10}  pilot"
        )
        rows = []
        for c in self.candidates:
            memory = "" if c.cost.memory is None else f"{c.cost.memory:.0f}"
            loss = "" if c.geometry == UNMEASURED else f"{c.newest.loss:.4g}"
            predicted = "" if self.contradicted or c.geometry == UNMEASURED else _time(self.predicted(c)[1])
            pilot = "" if c.pilot is None else show_with(c.pilot.metric, c.pilot.mean, c.pilot.ci95, 1)
            if again and c.later is None:
                predicted = f"({predicted})"
            rows.append(
                f"{c.adapt:<10} {c.geometry:<15} {c.mu:>9.3g} {c.L:>9.3g} {c.steps:>3} {c.lr:>8.2g} {c.l2:>6.2g} {c.cost.seconds:>7.2g}"
                f" {memory:>6} {sum(c.cost.calls.values()):>8,} {loss:>7} {predicted:>10}  {pilot}"
            )
        when = "after a short pilot (in brackets: at the start)" if again else "at the start"
        legend = (
            f"predicted: time to a query loss of {target:.3g}; loss, and what it is predicted from, as measured {when};"
            " calls: gradients and products per outer step"
        )
        recommended = f"recommended: {self.recommended.name()}"
        return "\n".join([head, *rows, legend, recommended, *(f"- {reason}" for reason in [*self.reasons(), *self.notes])])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and text; what is infinite is None."""
        return _finite(
            {
                "candidates": [self._entry(c) for c in self.candidates],
                "recommended": self._entry(self.recommended),
                "reasons": self.reasons(),
                "notes": self.notes,
                "target_loss": self.target,
                "budget_seconds": self.budget,
                "planning_seconds": self.seconds,
                "worst_case_constants": {key: asdict(w.constants) for key, w in self.worst.items()},
                "spectra": {
                    key: {"smallest": s.smallest.tolist(), "largest": s.largest.tolist(), "method": s.method, "reason": s.reason}
                    for key, s in self.spectra.items()
                },
            }
        )

    def _entry(self, c: Candidate) -> dict[str, Any]:
        iterations, seconds = self.predicted(c)
        return {
            "adapt": c.adapt,
            "geometry": c.geometry,
            "mu": c.mu,
            "L": c.L,
            "steps": c.steps,
            "lr": c.lr,
            "l2": c.l2,
            "tasks": c.tasks,
            "sampling": c.sampling,
            "predicted": {
                "iterations": iterations,
                "seconds": seconds,
                "decrease_per_iteration": c.newest.decrease,
                "calls_per_iteration": c.cost.calls,
                "worst_case_iterations": c.worst,
            },
            "measured": {
                "seconds_per_iteration": c.cost.seconds,
                "memory_mib": c.cost.memory,
                "multiply_adds_per_iteration": c.cost.multiply_adds,
                "start": asdict(c.start),
                "after_short_pilot": None if c.later is None else asdict(c.later),
                "pilot": None if c.pilot is None else asdict(c.pilot),
            },
        }

    def save(self, folder: str | Path, config: RunConfig | None = None) -> Path:
        """Writes plan.json into a folder and, with the config that the plan was made for, config.json for ``headstart train``.

        Returns:
            The folder.
        """
        path = Path(folder)
        make_folder(path)
        write_json(path / PLAN, self.to_dict())
        if config is not None:
            self.config(config).save(path / CONFIG)
        return path

    def config(self, config: RunConfig) -> RunConfig:
        """A config with the recommendation put in, for as many iterations as the budget allows."""
        best, iterations = self.recommended, self.iterations()
        flat = config.flat() | {"adapt": best.adapt, "steps": best.steps, "lr": best.lr, "l2": best.l2}
        flat |= {"tasks": best.tasks, "sampling": best.sampling, "iterations": iterations, "validate_every": max(1, iterations // 8)}
        return RunConfig.from_flat({k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()})


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "never"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s"


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
