"""The inner problem of a group of tasks: everything that the inner loop and the hypergradients may ask of it.

A hypergradient sees T tasks as two functions, L_S and L_D, of three sets of tensors, and nothing of models or images:

- ``start``: w_0 of every task, (T, …) each;
- ``shared``: what the tasks' losses depend on besides w — recorded features of each task and those shared parameters that
  run in every step;
- ``theta``: the inner solver's own learned parameters.

The gradient into ``shared`` is Proposition 1's ∂/∂φ; the learner carries it on through the recorded part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headstart.counting import CVP, GRAD_PHI_QUERY, GRAD_W_QUERY, GRAD_W_SUPPORT, HVP, Calls, current, tapped
from headstart.errors import MethodError
from headstart.inner.leaves import cotangents
from headstart.inner.runner import Runner
from headstart.inner.shared import Shared
from headstart.loss import Loss
from headstart.program.description import FEATURES, Program
from headstart.program.run import head_parameters
from headstart.tasks import Tasks
from headstart.types import Params, ParamsLike

SUPPORT, QUERY = "support", "query"
Regulariser = Callable[[Params, Params], Tensor]
Part = slice | None


@dataclass
class InnerProblem:
    """T tasks, ready for an inner loop.

    Args:
        program: how the model runs for these parameters.
        runner: runs it on the examples of these tasks.
        tasks: the tasks, over the pool that was recorded.
        loss: the loss of an example.
        start: name to (T, …) w_0, leaves.
        shared: leaves of all else that the losses depend on.
        regulariser: (w, start) to the (T,) inner regulariser of an inner solver.
        theta: the solver's learned parameters, leaves.
        step_weights: weight of the query loss after 0 … N steps; None for the last alone.
        support_chunk: support examples whose graph is held at a time; None for all.
    """

    program: Program
    runner: Runner
    tasks: Tasks
    loss: Loss
    start: Params
    shared: Shared
    regulariser: Regulariser | None = None
    theta: Params = field(default_factory=dict)
    step_weights: Tensor | None = None
    support_chunk: int | None = None

    # -- what hypergradients use ---------------------------------------------------------------------------------------

    def support_parts(self) -> list[Part]:
        """The parts of the support sets whose losses add up to L_S: one, or chunks that are held in memory one at a time.

        Raises:
            MethodError: the loss of the whole is not the sum over parts.
        """
        size = self.tasks.support.index.shape[1]
        if self.support_chunk is None or size <= self.support_chunk or self.program.head is not None:
            return [None]
        why = ""
        if self.loss.per_task or (self.tasks.support.blank and self.tasks.support.y.dim() > 2):
            why = f"the loss {self.loss.name!r} of a support set is not a sum over its examples"
        elif self.program.mixes:
            why = "what runs per step mixes examples with one another in this mode, as batch normalisation does in training"
        if why:
            raise MethodError(f"support_chunk={self.support_chunk}: {why}; leave support_chunk out")
        return [slice(i, i + self.support_chunk) for i in range(0, size, self.support_chunk)]

    def support_loss(self, w: Params, part: Part = None) -> Tensor:
        """(T,) L_S(w, φ), or the share of a part in it; the regulariser belongs to the first part."""
        loss = self.mean_loss(self.outputs(w, SUPPORT, part), SUPPORT, part, w)
        if self.regulariser is None or (part is not None and part.start):
            return loss
        return loss + self.regulariser(w, self.start)

    def support_gradient(self, w: Params, create_graph: bool = False) -> Params:
        """∇_w L_S(w, φ) of every task; the tasks do not touch one another, so one backward serves all."""
        total: Params = {}
        with torch.enable_grad():
            for part in self.support_parts():
                found = cotangents([self.support_loss(w, part).sum()], list(w.values()), create_graph=create_graph)
                total = dict(zip(w, found, strict=True)) if not total else {k: total[k] + g for k, g in zip(w, found, strict=True)}
        return total

    def counted_gradient(self, w: Params, create_graph: bool) -> Params:
        """:meth:`support_gradient` as a step of the inner loop, entered into the ledger."""
        gradient = self.support_gradient(w, create_graph)
        self.note(GRAD_W_SUPPORT)
        return dict(zip(gradient, self.differentiated(list(gradient.values())), strict=True)) if create_graph else gradient

    def support_product(self, w: Params, p: Params, others: Sequence[Tensor]) -> list[Tensor]:
        """``∇⟨∇_w L_S(w), p⟩`` into the tensors of w, then into others: H p, C p and more, by differentiating twice.

        Raises:
            MethodError: the model marks its inputs, so that the iterates of a plain loop depend on them.
        """
        total: list[Tensor] = []
        for part in self.support_parts():
            found = self._held(w, part, others)[1](p)
            total = found if not total else [a + b for a, b in zip(total, found, strict=True)]
        return total

    def held_gradient(self, w: Params, others: Sequence[Tensor]) -> tuple[Params, Callable[[Params], list[Tensor]] | None]:
        """∇_w L_S(w), and :meth:`support_product` at w as a function of p that holds its graph; None where parts bound the graph."""
        if self.support_parts() != [None]:
            return self.support_gradient(w), None
        return self._held(w, None, others)

    def _held(self, w: Params, part: Part, others: Sequence[Tensor]) -> tuple[Params, Callable[[Params], list[Tensor]]]:
        if self.program.marks_inputs:
            raise MethodError(
                f"{type(self.program.model).__name__} lets its inputs ask for a gradient (x.requires_grad_()), so that in a plain loop the"
                " adapted weights depend on them; use Unrolled(), or x = x.detach().requires_grad_() in forward, which holds the weights"
                " fixed and works with every method"
            )
        with torch.enable_grad():
            gradient = cotangents([self.support_loss(w, part).sum()], list(w.values()), create_graph=True)
        product = lambda p: list(cotangents(gradient, [*w.values(), *others], list(p.values())))  # noqa: E731
        return {k: g.detach() for k, g in zip(w, gradient, strict=True)}, product

    def query_loss(self, w: Params) -> tuple[Tensor, Tensor]:
        """(T,) L_D(w, φ), and the (T, Q, …) outputs it was taken from."""
        outputs = self.outputs(w, QUERY)
        return self.mean_loss(outputs, QUERY, None, w), outputs

    def mean_loss(self, outputs: Tensor, side: str, part: Part = None, w: Params | None = None) -> Tensor:
        """(T,) weighted mean over the examples of one side, without the regulariser."""
        own = self.tasks.support if side == SUPPORT else self.tasks.query
        y, weight = own.y, own.weight
        if part is not None:
            weight = self.shares(side)
            weight = torch.full_like(own.index, 1 / y.shape[1], dtype=outputs.dtype) if weight is None else weight
            y, weight = y[:, part], weight[:, part]
        means = self.loss.means(outputs, y, weight, own.blank and part is None, lambda t, names: self._extras(side, part, w, t, names))
        if side == SUPPORT:
            return means
        if self.tasks.weight is not None:  # the losses stay what they are; their gradients count by the task's weight
            means = means.detach() + self.tasks.weight * (means - means.detach())
        return tapped(lambda: self.calls(GRAD_W_QUERY, GRAD_PHI_QUERY), [means])[0]

    def _extras(self, side: str, part: Part, w: Params | None, t: int, names: tuple[str, ...]) -> dict[str, Any]:
        """What a loss of its own takes besides outputs and targets, for one task."""
        found: dict[str, Any] = {}
        if "inputs" in names:
            inputs = self.runner.inputs(side == SUPPORT, t)
            found["inputs"] = inputs if part is None else torch.utils._pytree.tree_map(lambda v: v[part], inputs)
        if "weights" in names:
            if w is None:
                raise MethodError(f"the loss {self.loss.name!r} takes weights, which are not at hand in this form of the inner loop")
            found["weights"] = {k: v[t] for k, v in w.items()}
        return found

    def shares(self, side: str) -> Tensor | None:
        """(T, n) what each example counts in its task's mean, summing to one; None for the same everywhere."""
        own = self.tasks.support if side == SUPPORT else self.tasks.query
        if own.y.is_floating_point() or own.y.dim() > 2 or (not own.blank and self.loss.ignore == -100):
            return own.weight
        labelled = (own.y != self.loss.ignore).float() * (1.0 if own.weight is None else own.weight)
        return labelled / labelled.sum(1, keepdim=True).clamp_min(1e-30)

    # -- what is asked of the model ------------------------------------------------------------------------------------

    def outputs(self, w: Params, side: str, part: Part = None) -> Tensor:
        """(T, n, …) outputs of the support or the query examples at w."""
        return self.runner.outputs(w, self.shared, side == SUPPORT, slice(None) if part is None else part)

    @property
    def head_names(self) -> tuple[str, ...]:
        """The names of the weight and bias of the linear head that is all that adapts; empty if something else does."""
        return self.program.head_names

    def head_parameters(self, w: ParamsLike) -> tuple[Tensor, Tensor | None]:
        """The weight and, if there is one, the bias of the linear head."""
        return head_parameters(self.program, w)

    def features(self, side: str) -> Tensor:
        """(T, n, D) what the linear head sees of one side."""
        return (self.shared.support if side == SUPPORT else self.shared.query)[FEATURES]

    # -- counting ------------------------------------------------------------------------------------------------------

    def calls(self, *oracles: str) -> dict[str, Calls]:
        """One call per task of each of these oracles; of those that return something in φ, none where nothing is shared."""
        n_w = sum(v[0].numel() for v in self.start.values())
        n_phi = sum(p.numel() for p in self.program.partition.split()[1].values())
        found = {}
        for oracle in oracles:
            side = self.tasks.query if oracle in (GRAD_W_QUERY, GRAD_PHI_QUERY) else self.tasks.support
            size = n_phi if oracle in (GRAD_PHI_QUERY, CVP) else n_w
            if size:
                found[oracle] = Calls(len(self.tasks), len(self.tasks) * size, side.count)
        return found

    def note(self, *oracles: str) -> None:
        """Enters one call per task of each of these oracles into the open ledger, if there is one."""
        self.noting(*oracles)()

    def noting(self, *oracles: str) -> Callable[[], None]:
        """:meth:`note` for later, in whatever thread, for the ledger that is open now."""
        book = current()
        calls = {} if book is None else self.calls(*oracles)

        def enter() -> None:
            if book is not None:
                for oracle, own in calls.items():
                    book.add(oracle, own.calls, own.numbers, own.examples)

        return enter

    def differentiated(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of a support gradient that stays in a graph: a backward pass through them is one H·v and one C·v."""
        return tapped(lambda: self.calls(HVP, CVP), gradient)


def step_weights(problem: InnerProblem, steps: int) -> list[float]:
    """The weight of the query loss after 0 … N steps: all on the last unless the problem says otherwise."""
    if problem.step_weights is None:
        return [0.0] * steps + [1.0]
    return [float(v) for v in problem.step_weights]
