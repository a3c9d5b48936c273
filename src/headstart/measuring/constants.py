"""The constants of the convergence theory, measured on a model and its tasks: μ, L, ρ, τ, M, and the variances over tasks.

The theorems assume constants that hold everywhere. A measurement sees some points, so what it gives for a Lipschitz constant is
a lower estimate: predictions made from it are predictions, not guarantees. What is proven says so, and what it holds for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from headstart.container import write_json
from headstart.errors import ConfigError
from headstart.inner.problem import QUERY, SUPPORT
from headstart.learner import MetaLearner
from headstart.measuring.access import regularisation
from headstart.measuring.lanczos import operator_norm
from headstart.measuring.lipschitz import Change, first_direction, random_like
from headstart.measuring.proven import head_bounds
from headstart.measuring.spectrum import QUANTILES, Geometry, Spectrum, inner_spectrum
from headstart.measuring.surface import Surface, at_rest, inner_paths, task_gradients
from headstart.tasks import TaskBatch

Kind = Literal["sampled lower estimate", "proven upper bound", "proven lower bound", "measured eigenvalue", "sample deviation"]
ROUGH = "not Lipschitz? At a quarter of the distance the estimate is {:.2g} times as large, as for ReLU or max-pooling"


@dataclass(frozen=True)
class Estimate:
    """One constant, and how far it can be trusted.

    Args:
        value: the estimate; None where there is no such constant.
        kind: what it is.
        of: what it is the constant of, in words.
        quantiles: the 0, 25, 50, 75 and 100 % points over tasks; empty where it is not a value per task.
        note: what else to know.

    Example:
        >>> print(Estimate(1.5, "sampled lower estimate", "L_D"))
        1.5      sampled lower estimate  L_D
    """

    value: float | None
    kind: Kind
    of: str
    quantiles: tuple[float, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        value = "none" if self.value is None else f"{self.value:.4g}"
        return f"{value:<8} {self.kind:<23} {self.of}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True, eq=False)
class MeasuredConstants:
    """The constants of a learner on some tasks.

    Args:
        spectrum: the inner Hessian's eigenvalues along the path.
        estimates: by name: ``mu``, ``L_w`` (in w), ``L``, ``rho``, ``tau``, ``M`` (in (w, φ)), ``sigma_w``, ``sigma_phi``.
        proven: by name: bounds that hold for all w with φ fixed; empty where the model allows none.
        tasks: how many were measured.
    """

    spectrum: Spectrum
    estimates: dict[str, Estimate]
    proven: dict[str, Estimate]
    tasks: int

    @property
    def geometry(self) -> Geometry:
        """Which column of the theory applies."""
        return self.spectrum.geometry

    def to_bounds(self) -> dict[str, float]:
        """mu, L, M, rho and tau for the formulas; mu is 0 unless the inner loss is strongly convex.

        They are estimates from below for L, M, rho and tau, so a step size computed from them may be too large.
        """
        value = lambda name: float(self.estimates[name].value or 0.0)  # noqa: E731
        mu = self.spectrum.mu if self.geometry == "strongly convex" else 0.0
        L = max(value("L"), self.spectrum.L)
        return {"mu": mu, "L": L, "M": value("M"), "rho": value("rho"), "tau": value("tau")}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and text."""
        return {
            "geometry": self.geometry,
            "reason": self.spectrum.reason,
            "tasks": self.tasks,
            "estimates": {k: asdict(v) for k, v in self.estimates.items()},
            "proven": {k: asdict(v) for k, v in self.proven.items()},
            "spectrum": {
                "method": self.spectrum.method,
                "smallest": self.spectrum.smallest.tolist(),
                "largest": self.spectrum.largest.tolist(),
                "converged": self.spectrum.converged.tolist(),
            },
        }

    def save(self, path: str | Path) -> None:
        """Writes :meth:`to_dict` as JSON."""
        write_json(path, self.to_dict(), indent=2)

    def __str__(self) -> str:
        rows = [f"{self.tasks} tasks; {self.geometry}: {self.spectrum.reason}", f"{'':<10} {'value':<8} {'kind':<23} of"]
        rows += [f"{name:<10} {own}" for name, own in self.estimates.items()]
        if self.proven:
            rows += ["for all w, with φ as it is:", *(f"{name:<10} {own}" for name, own in self.proven.items())]
        return "\n".join(rows)


def measure(
    learner: MetaLearner,
    tasks: TaskBatch,
    *,
    points: int = 2,
    directions: int = 2,
    iterations: int = 4,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> MeasuredConstants:
    """Measures the constants of the theory along the inner paths of some tasks.

    The model runs in evaluation mode, and is left as it was. φ are all shared parameters of the model. The work, for each task
    and point, is about ``4 · iterations · (directions + 3)`` Hessian-vector products with the whole model.

    - mu, L_w: eigenvalues of the inner Hessian along the path (:func:`inner_spectrum`).
    - L: the norm of the Hessians of L_S and L_D in (w, φ) together, by Lanczos.
    - M: the largest gradient of L_D in (w, φ).
    - rho, tau: the largest ``‖(H(x) − H(y)) v‖ / ‖x − y‖`` with unit v, and the same of the mixed derivative, for y around x. The
      first direction from x to y is along the path in w and random in φ, each further one that in which the change grows fastest.
    - sigma_w, sigma_phi: the standard deviation over tasks of the meta-gradient of one task.

    Examples count by their weights. The meta-objective is the mean of the tasks' L_D times their weights, so what is said of L_D and of
    meta-gradients is said of these.

    Args:
        learner: any learner whose inner solver takes steps.
        tasks: T tasks; ``tasks[:8]`` is usually enough.
        points: iterates of each path at which the Lipschitz constants are sampled, evenly spaced.
        directions: directions tried at each.
        iterations: of the power method for each operator norm; Lanczos takes twice as many.
        tolerance: of :func:`inner_spectrum`.
        seed: of the random directions.

    Raises:
        MethodError: the inner solver is a closed form; or SciPy is needed and missing.
        ConfigError: a number is out of its range.

    Example:
        >>> import headstart as hs
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=2, lr=0.5, l2=0.1)
        >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
        >>> found = measure(learner, TaskBatch(x, y, x, y)[:2])
        >>> found.geometry, sorted(found.to_bounds())
        ('strongly convex', ['L', 'M', 'mu', 'rho', 'tau'])
    """
    for name, value in (("points", points), ("directions", directions), ("iterations", iterations)):
        if value < 1:
            raise ConfigError(f"{name}={value}: it must be at least 1")
    spectrum = inner_spectrum(learner, tasks, tolerance=tolerance)
    generator = torch.Generator().manual_seed(seed)
    sampled: dict[str, list[float]] = {"L": [], "M": [], "rho": [], "tau": []}
    outs: dict[str, Literal["w", "phi"]] = {"rho": "w", "tau": "phi"} if learner.partition.shared else {"rho": "w"}
    growth = {"rho": 0.0, "tau": 0.0}
    bounds = []
    with at_rest(learner, tasks):
        for problem, path in inner_paths(learner, tasks):
            surface = Surface(learner, problem)
            places = [surface.point(w) for w in path]
            chosen = sorted({round(i * (len(path) - 1) / max(points - 1, 1)) for i in range(points)})
            best: dict[str, float] = dict.fromkeys(sampled, 0.0)
            best["M"] = max(float(surface.gradient(x, QUERY).norm()) for x in places)
            for x in (places[i] for i in chosen):
                products = {side: surface.product(x, side) for side in (SUPPORT, QUERY)}
                norms = [operator_norm(product, random_like(x, generator), 2 * iterations)[0] for product in products.values()]
                best["L"] = max(best["L"], *norms)
                for name, out in outs.items():
                    first = first_direction(surface, places, generator)
                    found, grown = Change(surface, x, products[SUPPORT], out).largest(first, directions, iterations, generator)
                    best[name], growth[name] = max(best[name], found), max(growth[name], grown)
            for name, own in best.items():
                sampled[name].append(own)
            bounds.append(head_bounds(problem, regularisation(learner)))
    low, high = (q.tolist() for q in spectrum.quantiles())
    steps = f"at {spectrum.smallest.shape[1]} iterates"
    over = "in (w, φ)" if learner.partition.shared else "in w"
    estimates = {
        "mu": Estimate(spectrum.mu, "measured eigenvalue", f"∇²_w L_S, the smallest {steps}", tuple(low)),
        "L_w": Estimate(spectrum.L, "measured eigenvalue", f"∇²_w L_S, the largest {steps}", tuple(high)),
        "L": _lower(sampled["L"], f"‖∇²L_S‖ and ‖∇²L_D‖ {over}"),
        "rho": _lower(sampled["rho"], f"Lipschitz, ∇²_w L_S {over}", growth["rho"]),
        "tau": _lower(sampled["tau"], f"Lipschitz, ∇_φ∇_w L_S {over}", growth["tau"]),
        "M": _lower(sampled["M"], f"‖∇L_D‖ {over}"),
        **_deviations(learner, tasks),
    }
    if not learner.partition.shared:
        estimates["tau"] = Estimate(None, "sampled lower estimate", "∇_φ∇_w L_S", note="everything adapts: there is no φ")
    return MeasuredConstants(spectrum, estimates, _proven([b for b in bounds if b is not None]), len(tasks))


# -- the parts -------------------------------------------------------------------------------------------------------------


def _over_tasks(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(torch.tensor(values, dtype=torch.float64).quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist())


def _lower(values: Sequence[float], of: str, growth: float = 0.0) -> Estimate:
    return Estimate(max(values), "sampled lower estimate", of, _over_tasks(values), ROUGH.format(growth) if growth > 1.5 else "")


def _proven(bounds: Sequence[Any]) -> dict[str, Estimate]:
    if not bounds:
        return {}
    column = lambda name: [getattr(b, name) for b in bounds]  # noqa: E731
    upper = lambda name, of: Estimate(max(column(name)), "proven upper bound", of, _over_tasks(column(name)))  # noqa: E731
    return {
        "mu": Estimate(min(column("mu")), "proven lower bound", "smallest eigenvalue of ∇²_w L_S", _over_tasks(column("mu"))),
        "L": upper("L", "‖∇²_w L_S‖"),
        "L_query": upper("L_query", "‖∇²_w L_D‖"),
        "rho": upper("rho", "Lipschitz in w, ∇²_w L_S"),
        "M": Estimate(None, "proven upper bound", "‖∇_w L_D‖", note="squared error is not Lipschitz")
        if None in column("M")
        else upper("M", "‖∇_w L_D‖"),
    }


def _deviations(learner: MetaLearner, tasks: TaskBatch) -> dict[str, Estimate]:
    """σ_w and σ_φ: root of the unbiased variance, over tasks, of the meta-gradient of one task times its weight."""
    blocks = {"sigma_w": learner.partition.adapted, "sigma_phi": learner.partition.shared}
    of = {"sigma_w": "∂L_D/∂w over tasks, standard deviation", "sigma_phi": "∂L_D/∂φ over tasks, standard deviation"}
    few, none = "one task has no deviation; give two or more", "everything adapts: there is no φ"
    found = {k: Estimate(None, "sample deviation", of[k], note=few if names else none) for k, names in blocks.items()}
    if len(tasks) < 2:
        return found
    flat: dict[str, list[Tensor]] = {k: [] for k, names in blocks.items() if names}
    for grads in task_gradients(learner, tasks):
        for k, own in flat.items():
            own.append(torch.cat([grads[n].reshape(-1) for n in blocks[k]]).detach().cpu())
    for k, own in flat.items():
        mean = torch.stack(own).double().mean(0)
        away = [float((g.double() - mean).norm()) for g in own]
        value = math.sqrt(sum(a * a for a in away) / (len(own) - 1))
        found[k] = Estimate(value, "sample deviation", of[k], _over_tasks(away), "quantiles: of each task's distance from the mean")
    return found
