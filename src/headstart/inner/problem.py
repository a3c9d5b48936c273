"""The inner problem of a group of tasks: everything that the inner loop and the hypergradients may ask of it.

A hypergradient sees T tasks as functions of three sets of tensors, and nothing of models or images:

- ``start``: w_0 of every task, (T, …) each;
- ``shared``: what the tasks' losses depend on besides w — recorded features of each task and those shared parameters that
  run in every step;
- ``theta``: the inner solver's own learned parameters.

The gradient into ``shared`` is Proposition 1's ∂/∂φ; the learner carries it on through the recorded part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from headstart.counting import CVP, GRAD_PHI_QUERY, GRAD_W_QUERY, HVP, Calls, current, tapped
from headstart.errors import MethodError, TaskError
from headstart.losses import Loss
from headstart.replay import Replay
from headstart.running import CHECKPOINTING, channels_last, twice_differentiable
from headstart.tasks import TaskBatch
from headstart.types import Params, ParamsLike

SUPPORT, QUERY = "support", "query"
Regulariser = Callable[[Params, Params], Tensor]


def cotangents(outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor] | None = None, **kw: Any) -> tuple[Tensor, ...]:
    """``torch.autograd.grad`` with zeros where an output does not depend on an input."""
    kept = [i for i, o in enumerate(outputs) if o.requires_grad]
    if not kept or not inputs:
        return tuple(torch.zeros_like(x) for x in inputs)
    chosen = None if grads is None else [grads[i] for i in kept]
    return torch.autograd.grad([outputs[i] for i in kept], inputs, chosen, allow_unused=True, materialize_grads=True, **kw)


@dataclass
class InnerProblem:
    """T tasks, ready for an inner loop.

    Args:
        replay: how the model runs for these parameters.
        tasks: the tasks, over the pool that was recorded.
        loss: the loss of an example.
        start: name to (T, …) w_0, leaves.
        shared: key to tensor, leaves: ``support:K`` and ``query:K`` are recorded rows (T, S|Q, …), ``constant:K`` recorded
            constants, and ``phi:NAME`` parameters.
        fixed: as ``shared``, for recorded tensors that carry no gradient (integers, masks).
        specs: how recorded outputs are put together.
        regulariser: (w, start) to the (T,) inner regulariser of an inner solver.
        theta: the solver's learned parameters, leaves.
        step_weights: weight of the query loss after 0 … N steps; None for the last alone.
        vectorised: whether tasks run under ``vmap`` or one after the other.
        seed: for dropout, which draws one mask per task and keeps it over the steps.
    """

    replay: Replay
    tasks: TaskBatch
    loss: Loss
    start: Params
    shared: Params
    fixed: Params = field(default_factory=dict)
    specs: Mapping[str, Any] = field(default_factory=dict)
    regulariser: Regulariser | None = None
    theta: Params = field(default_factory=dict)
    step_weights: Tensor | None = None
    vectorised: bool = False
    seed: int = 0

    # -- what hypergradients use ---------------------------------------------------------------------------------------

    def support_loss(self, w: Params) -> Tensor:
        """(T,) L_S(w, φ), with the inner regulariser."""
        loss = self.mean_loss(self.logits(w, SUPPORT), SUPPORT)
        return loss if self.regulariser is None else loss + self.regulariser(w, self.start)

    def support_gradient(self, w: Params, create_graph: bool = False) -> Params:
        """∇_w L_S(w, φ) of every task; the tasks do not touch one another, so one backward serves all."""
        with torch.enable_grad():
            grads = cotangents([self.support_loss(w).sum()], list(w.values()), create_graph=create_graph)
        return dict(zip(w, grads, strict=True))

    def query_loss(self, w: Params) -> tuple[Tensor, Tensor]:
        """(T,) L_D(w, φ), and the (T, Q, C) logits it was taken from."""
        logits = self.logits(w, QUERY)
        return self.mean_loss(logits, QUERY), logits

    def mean_loss(self, logits: Tensor, side: str) -> Tensor:
        """(T,) weighted mean over the examples of one side, without the regulariser."""
        y = self.tasks.support_y if side == SUPPORT else self.tasks.query_y
        weight = self.tasks.support.weight if side == SUPPORT else self.tasks.query.weight
        losses = self.loss(logits, y)
        if losses.shape[:2] != y.shape[:2]:
            raise TaskError(
                f"the loss {self.loss.name!r} returned shape {tuple(losses.shape)} for targets {tuple(y.shape)} and outputs"
                f" {tuple(logits.shape)}; it must give one value per example, (tasks, examples), and not reduce them"
            )
        if losses.dim() > 2:
            losses = losses.flatten(2).mean(2)
        means = losses.mean(1) if weight is None else (losses * weight).sum(1)
        if side == SUPPORT:
            return means
        if self.tasks.weight is not None:  # the losses stay what they are; their gradients count by the task's weight
            means = means.detach() + self.tasks.weight * (means - means.detach())
        return tapped(self.calls(GRAD_W_QUERY, GRAD_PHI_QUERY), [means])[0]

    # -- counting ------------------------------------------------------------------------------------------------------

    def calls(self, *oracles: str) -> dict[str, Calls]:
        """One call per task of each of these oracles; of those that return something in φ, none where nothing is shared."""
        n_w = sum(v[0].numel() for v in self.start.values())
        n_phi = sum(p.numel() for p in self.replay.partition.split()[1].values())
        found = {}
        for oracle in oracles:
            on_query = oracle in (GRAD_W_QUERY, GRAD_PHI_QUERY)
            index, weight = (
                (self.tasks.query.index, self.tasks.query.weight) if on_query else (self.tasks.support.index, self.tasks.support.weight)
            )
            size = n_phi if oracle in (GRAD_PHI_QUERY, CVP) else n_w
            if size:
                examples = index.numel() if weight is None else int((weight > 0).sum())
                found[oracle] = Calls(len(self.tasks), len(self.tasks) * size, examples)
        return found

    def note(self, *oracles: str) -> None:
        """Enters one call per task of each of these oracles into the open ledger, if there is one."""
        book = current()
        if book is not None:
            for oracle, own in self.calls(*oracles).items():
                book.add(oracle, own.calls, own.numbers, own.examples)

    def differentiated(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of a support gradient that stays in a graph: a backward pass through them is one H·v and one C·v."""
        return tapped(self.calls(HVP, CVP), gradient)

    # -- running the model ---------------------------------------------------------------------------------------------

    def logits(self, w: Params, side: str) -> Tensor:
        """(T, S|Q, C) logits of the support or the query examples at w."""
        rows = self.rows(side)
        if self.replay.head is not None:
            weight, bias = self.replay.head_parameters(w)
            product = rows["features"] @ weight.mT
            return product if bias is None else product + bias.unsqueeze(-2)
        phi = {k.removeprefix("phi:"): v for k, v in self.shared.items() if k.startswith("phi:")}
        constants = self._tensors("constant:")
        x = self.tasks.support_x if side == SUPPORT else self.tasks.query_x
        x = channels_last_examples(x) if self.replay.channels_last else x
        buffers = self._buffers()

        def one(w: ParamsLike, rows: ParamsLike, x: Any, buffers: ParamsLike) -> Tensor:
            return self.replay.forward({**phi, **w}, rows, constants, self.specs, x, buffers)

        with twice_differentiable(self.replay.model), self._same_randomness(side):
            if self.vectorised:
                if self.replay.vmap_refusal:
                    raise MethodError(f"the model cannot run under vmap ({self.replay.vmap_refusal}); use MetaLearner(…, vectorise=False)")
                return torch.func.vmap(one, randomness="different")(w, rows, x, buffers)
            try:
                return torch.stack([self._one(one, w, rows, x, buffers, side, t) for t in range(len(self.tasks))])
            except RuntimeError as error:
                if CHECKPOINTING in str(error):
                    raise MethodError(CHECKPOINTING) from error
                raise

    def _one(self, run: Callable[..., Tensor], w: Params, rows: Params, x: Any, buffers: Params, side: str, t: int) -> Tensor:
        """The logits of one task; examples of weight zero are left out where they would enter batch statistics."""
        rows, x = {k: v[t] for k, v in rows.items()}, tree_map(lambda v: v[t], x)
        w, buffers = {k: v[t] for k, v in w.items()}, {k: v[t] for k, v in buffers.items()}
        weight = self.tasks.support.weight if side == SUPPORT else self.tasks.query.weight
        if weight is None or not self._training():
            return run(w, rows, x, buffers)
        kept = (weight[t] > 0).nonzero()[:, 0]
        found = run(w, {k: v[kept] for k, v in rows.items()}, tree_map(lambda v: v[kept], x), buffers)
        return found.new_zeros(weight.shape[1], *found.shape[1:]).index_copy(0, kept, found)

    def rows(self, side: str) -> Params:
        """(T, S|Q, …) recorded rows of one side."""
        return self._tensors(f"{side}:")

    def _tensors(self, prefix: str) -> Params:
        both = {**self.fixed, **self.shared}
        return {k.removeprefix(prefix): v for k, v in both.items() if k.startswith(prefix)}

    def _buffers(self) -> Params:
        """A copy of the buffers per task where a module trains: what a step changes (batch statistics) stays in the step."""
        if not self._training():
            return {}
        count = len(self.tasks)
        return {n: b.expand(count, *b.shape).clone() for n, b in self.replay.model.named_buffers()}

    def _training(self) -> bool:
        return any(m.training for m in self.replay.model.modules())

    @contextlib.contextmanager
    def _same_randomness(self, side: str) -> Iterator[None]:
        """Dropout draws the same mask whenever the loss of these tasks is evaluated: L_S is one function of (w, φ).

        Without this the iterates would not be gradient descent on anything, and Proposition 1 would not hold.
        """
        if not self._training():
            yield
            return
        device = next(iter(self.start.values())).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(2 * self.seed + (side == QUERY))
            yield


def channels_last_examples(x: Any) -> Any:
    """(T, S, …) examples with each image in the memory order that convolutions are fastest with."""

    def reorder(v: Tensor) -> Tensor:
        return channels_last(v.flatten(0, 1)).unflatten(0, v.shape[:2]) if v.dim() == 5 else v

    return tree_map(reorder, x)


def leaves(tensors: ParamsLike) -> Params:
    """The same values as new leaves of a graph that ask for a gradient."""
    return {k: v.detach().requires_grad_() for k, v in tensors.items()}


def device_of(x: Any) -> torch.device:
    """The device of the first tensor in a tree."""
    return tree_leaves(x)[0].device
