"""Iterations and oracle calls to an accuracy, over the number of inner steps N: measured on the zoo, beside the worst case.

Algorithm 1 runs with the step sizes of :mod:`headstart.theory.bounds` and all tasks in every iteration, until the means of
‖∂F/∂w‖² and of ‖∂F/∂φ‖² over the iterations so far are both at most ε: the quantities that the convergence bound bounds.

- Strongly convex, α = μ/L², from a start far off in w: every inner step takes a share of that way, so Δ and ℓ_ww fall with N, and
  with them the iterations; the calls fall until nothing of it is left, and rise from there. So does the worst case, from N = 2. It
  is not so from every start: the constant ℓ_φφ grows with N to its limit, and where Δ does not fall, iterations rise with N.
- Nonconvex, α small and fixed: all four constants grow with N, so iterations and calls rise.

``python -m headstart.experiments.convergence --out docs/figures`` writes convergence.svg and convergence.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from headstart.container import make_folder, write_atomically, write_json
from headstart.errors import ConfigError
from headstart.experiments.drawing import BLUE, GREEN, GREY
from headstart.theory.bounds import step_sizes
from headstart.theory.oracle_counts import oracle_calls
from headstart.verifying.problems import Problem, log_cosh


@dataclass(frozen=True)
class Point:
    """One number of inner steps.

    Args:
        steps: N.
        lr: α.
        delta: F at the start less a lower bound of F, mean over starts.
        iterations_w, iterations_phi: until the mean square of ∂F/∂w, and of ∂F/∂φ, is at most ε.
        worst_w, worst_phi: the same by the convergence bound, ``2Δ/(ε β)``.
        calls, worst_calls: oracle calls of all tasks until both are.
    """

    steps: int
    lr: float
    delta: float
    iterations_w: int
    iterations_phi: int
    worst_w: int
    worst_phi: int
    calls: int
    worst_calls: int


@dataclass(frozen=True, eq=False)
class Study:
    """A problem with what to run on it.

    Args:
        title: of its column in the figure.
        problem: the problem.
        steps: values of N.
        lr: α.
        eps: ε.
        start_w, start_phi: norm of w at the start, and of φ.
    """

    title: str
    problem: Problem
    steps: Sequence[int]
    lr: float
    eps: float
    start_w: float
    start_phi: float

    def starts(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """(count, n_w) and (count, n_φ) starts in random directions."""
        generator = torch.Generator().manual_seed(seed)
        w, phi = (torch.randn(count, n, generator=generator, dtype=torch.float64) for n in (self.problem.n_w, self.problem.n_phi))
        return self.start_w * w / w.norm(dim=1, keepdim=True), self.start_phi * phi / phi.norm(dim=1, keepdim=True)


def studies() -> tuple[Study, Study]:
    """One study for each geometry of the inner loss."""
    convex = log_cosh("strongly convex", mu=1.0, terms=4, scale=0.2, coupling=0.6)
    concave = log_cosh("nonconvex", mu=0.0, terms=4, concave=True)
    c = convex.constants
    return (
        Study("strongly convex, α = μ/L²", convex, (1, 2, 3, 4, 5, 6, 8, 12, 16), c.mu / c.L**2, 0.02, 140.0, 6.0),
        Study("nonconvex, α = 0.02/L", concave, (1, 2, 3, 4, 6, 8, 12, 16), 0.02 / concave.constants.L, 0.2, 4.0, 4.0),
    )


def measure(study: Study, steps: int, starts: int = 3, seed: int = 1, limit: int = 5000) -> Point:
    """Runs Algorithm 1 from some starts at once, until both gradients are small on average.

    Args:
        study: the problem.
        steps: N.
        starts: runs; means are over them.
        seed: of their directions.
        limit: iterations after which to give up.

    Raises:
        ConfigError: ε is not reached within the limit.

    Example:
        >>> point = measure(studies()[1], steps=1, starts=1)
        >>> point.iterations_w <= point.worst_w and point.iterations_phi <= point.worst_phi
        True
    """
    problem, T = study.problem, len(study.problem.tasks)
    beta = step_sizes(problem.constants, study.lr, steps)
    w, phi = study.starts(starts, seed)
    tasks = problem.tasks.repeat(starts, 1)
    values = problem.values(w.repeat_interleave(T, 0), phi.repeat_interleave(T, 0), tasks, steps, study.lr)
    delta = float(values.mean()) - (problem.lower or 0.0)
    total, reached = [0.0, 0.0], [0, 0]
    for k in range(1, limit + 1):
        each = problem.gradients(w.repeat_interleave(T, 0), phi.repeat_interleave(T, 0), tasks, steps, study.lr)
        g_w, g_phi = (g.unflatten(0, (starts, T)).mean(1) for g in each)
        for i, g in enumerate((g_w, g_phi)):
            total[i] += float(g.square().sum(1).mean())
            if total[i] / k <= study.eps and not reached[i]:
                reached[i] = k
        if all(reached):
            break
        w, phi = w - beta.w * g_w, phi - beta.phi * g_phi
    else:
        raise ConfigError(f"eps={study.eps} is not reached in {limit} iterations with N={steps}; raise eps or the limit")
    (k_w, k_phi), (worst_w, worst_phi) = reached, (math.ceil(2 * delta / (study.eps * b)) for b in (beta.w, beta.phi))
    each_time = sum(oracle_calls(steps, T).values())
    return Point(steps, study.lr, delta, k_w, k_phi, worst_w, worst_phi, max(reached) * each_time, max(worst_w, worst_phi) * each_time)


def draw(results: Sequence[tuple[Study, Sequence[Point]]], path: Path) -> None:
    """The figure: iterations above, oracle calls below, a column for each study."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "headstart"
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots(2, len(results), sharex="col", squeeze=False)
    for column, (study, points) in enumerate(results):
        N = [p.steps for p in points]
        upper, lower = axes[0][column], axes[1][column]
        for name, colour, symbol in (("w", BLUE, "∂F/∂w"), ("phi", GREEN, "∂F/∂φ")):
            upper.plot(N, [getattr(p, f"worst_{name}") for p in points], "--", color=colour, label=f"{symbol}, worst case")
            upper.plot(N, [getattr(p, f"iterations_{name}") for p in points], "o", color=colour, label=f"{symbol}, measured")
        lower.plot(N, [p.worst_calls for p in points], "--", color=GREY, label="both, worst case")
        lower.plot(N, [p.calls for p in points], "o", color=GREY, label="both, measured")
        upper.set_title(study.title)
        upper.set_ylabel(f"iterations to ε = {study.eps:g}")
        lower.set_ylabel(f"oracle calls to ε = {study.eps:g}")
        lower.set_xlabel("inner steps N")
        lower.set_xticks([n for n in N if n not in (3, 5)])
        for axis in (upper, lower):
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
            axis.legend(frameon=False, fontsize="small")
    write_atomically(path, lambda p: figure.savefig(p, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures both studies, and writes the figure and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="folder for convergence.svg and convergence.json")
    out: Path = parser.parse_args(arguments).out
    make_folder(out)
    results = [(study, [measure(study, N) for N in study.steps]) for study in studies()]
    draw(results, out / "convergence.svg")
    numbers = [
        {"title": s.title, "eps": s.eps, "constants": asdict(s.problem.constants), "points": [asdict(p) for p in points]}
        for s, points in results
    ]
    write_json(out / "convergence.json", numbers)
    for study, points in results:
        print(study.title)
        for p in points:
            print(
                f"  N={p.steps:<3} iterations {max(p.iterations_w, p.iterations_phi):>6,}  calls {p.calls:>9,}  worst {p.worst_calls:>11,}"
            )


if __name__ == "__main__":
    main()
