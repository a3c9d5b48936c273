"""Checks of the engine: its meta-gradients are Proposition 1, and its oracle calls are those the paper counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from headstart.counting import ledger
from headstart.errors import MethodError
from headstart.hypergradient.first_order import FirstOrder
from headstart.hypergradient.implicit import Implicit
from headstart.hypergradient.recursive import Recursive
from headstart.hypergradient.sample_space import SampleSpace
from headstart.hypergradient.unrolled import Unrolled
from headstart.inner.descent import GradientDescent
from headstart.learner import MetaLearner
from headstart.measuring.predicted import predicted_calls
from headstart.partition import Partition
from headstart.tasks import TaskBatch
from headstart.verifying.problems import Losses, proposition_1
from headstart.verifying.table import Row
from headstart.verifying.zoo import Case

AGREEMENT, QUOTIENT = 1e-10, 1e-7
"""Largest relative difference of two exact gradients in float64, and of one from a difference quotient."""
STEPS, LR, L2 = 4, 0.4, 0.3
TASKS, EXAMPLES, WAYS = 3, 5, 3

MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    # n_w ≠ n_φ, so a mixed derivative that is transposed has the wrong shape
    "head of an MLP": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, WAYS)), "head"),
    "last two layers": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, WAYS)), "last:2"),
    # w and φ have the same shape, so it would have the right one, and must be seen to be wrong
    "w like φ": (lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False)), "head"),
    "MAML": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, WAYS)), "all"),
}


def modes() -> dict[str, tuple[Any, dict[str, Any]]]:
    """The exact ways to a meta-gradient, with options of the learner."""
    return {
        "recursive": (Recursive("double-backward"), {}),
        "recursive, forward": (Recursive("forward-over-reverse"), {"replay": False, "vectorise": False}),
        "recursive, no replay": (Recursive("double-backward"), {"replay": False}),
        "unrolled": (Unrolled(), {}),
        "sample space": (SampleSpace(), {}),
    }


def exactness(cases: Sequence[Case], pairs: int, seed: int) -> Iterator[Row]:
    """Proposition 1: the engine's gradients against dense matrices, and those against difference quotients."""
    for name in MODELS:
        partition, tasks, losses = _model(name, seed)
        w, phi = (torch.cat([v.detach().reshape(-1) for v in group.values()] or [torch.zeros(0).double()]) for group in partition.split())
        truth = [proposition_1(losses, w, phi, torch.tensor(t), STEPS, LR) for t in range(TASKS)]
        exact = torch.cat([torch.stack(part).mean(0) for part in zip(*truth, strict=True)])
        yield Row(
            "proposition 1",
            name,
            f"N={STEPS}, α={LR}, λ={L2}",
            "difference quotient",
            4,
            _quotients(losses, w, phi, exact, seed) / QUOTIENT,
        )
        for mode, (hypergradient, options) in modes().items():
            learner = MetaLearner(partition, GradientDescent(STEPS, LR, L2), hypergradient, **options)
            try:
                grads, _ = learner.meta_gradient(tasks)
            except MethodError:  # sample space is for heads alone
                continue
            found = torch.cat([grads[k].reshape(-1) for group in partition.split() for k in group])
            yield Row(
                "proposition 1", name, f"N={STEPS}, α={LR}, λ={L2}", mode, TASKS, float((found - exact).norm() / exact.norm()) / AGREEMENT
            )


def calls(cases: Sequence[Case], pairs: int, seed: int) -> Iterator[Row]:
    """The ledger of a meta-gradient against the calls that are predicted, which are the paper's table."""
    every = {**modes(), "first order": (FirstOrder(), {}), "implicit": (Implicit(iterations=5, stationary=None), {})}
    for name in MODELS:
        partition, tasks, _ = _model(name, seed)
        for mode, (hypergradient, options) in every.items():
            if mode == "implicit" and name != "head of an MLP":
                continue  # the inner loss is strongly convex for a linear head alone
            learner = MetaLearner(partition, GradientDescent(STEPS, LR, L2), hypergradient, **options)
            try:
                with ledger() as book:
                    _, stats = learner.meta_gradient(tasks)
            except MethodError:
                continue
            agree = book == predicted_calls(learner, tasks, stats.info.get("iterations"))
            yield Row("ledger", name, f"N={STEPS}", mode, len(book.entries), 0.0 if agree else float("inf"))


def _model(name: str, seed: int) -> tuple[Partition, TaskBatch, Losses]:
    """A small model in float64 with random tasks, and its losses written out again for flat parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name][0]().double()
        x, x_q = (torch.randn(TASKS, EXAMPLES, 4, dtype=torch.float64) for _ in range(2))
        y, y_q = (torch.randint(WAYS, (TASKS, EXAMPLES)) for _ in range(2))
    partition = Partition(model, MODELS[name][1])
    shapes = [{k: v.shape for k, v in group.items()} for group in partition.split()]

    def unflatten(flat: Tensor, like: dict[str, torch.Size]) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in like.values()])
        return {k: part.view(shape) for part, (k, shape) in zip(parts, like.items(), strict=True)}

    def mean_cross_entropy(w: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
        own = {**unflatten(w, shapes[0]), **unflatten(phi, shapes[1])}
        return -functional_call(model, own, (x,)).log_softmax(-1).gather(-1, y[:, None]).mean()

    def support(w: Tensor, phi: Tensor, task: Tensor) -> Tensor:
        return mean_cross_entropy(w, phi, x[int(task)], y[int(task)]) + L2 / 2 * w @ w

    def query(w: Tensor, phi: Tensor, task: Tensor) -> Tensor:
        return mean_cross_entropy(w, phi, x_q[int(task)], y_q[int(task)])

    return partition, TaskBatch(x, y, x_q, y_q), Losses(support, query)


def _quotients(losses: Losses, w: Tensor, phi: Tensor, exact: Tensor, seed: int, h: float = 1e-3) -> float:
    """The largest relative error of the exact gradient along random directions, by a six-point stencil (error h⁶)."""
    generator, worst = torch.Generator().manual_seed(seed), 0.0
    for _ in range(4):
        d = torch.randn(len(exact), generator=generator, dtype=torch.float64)
        d = d / d.norm()

        def F(k: int) -> float:
            at = torch.cat([w, phi]) + k * h * d  # noqa: B023
            each = [losses.objective(at[: len(w)], at[len(w) :], torch.tensor(t), STEPS, LR) for t in range(TASKS)]
            return float(torch.stack(each).mean())

        measured = (45 * (F(1) - F(-1)) - 9 * (F(2) - F(-2)) + (F(3) - F(-3))) / (60 * h)
        worst = max(worst, abs(measured - float(exact @ d)) / float(exact.norm()))
    return worst
