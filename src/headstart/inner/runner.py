"""Runs the model on the examples of a group of tasks: as a linear head, under vmap, or one task after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from headstart.errors import MethodError
from headstart.inner.shared import Shared
from headstart.program.description import FEATURES, Program
from headstart.program.kernels import channels_last
from headstart.program.run import Live, head_parameters
from headstart.tasks import Side, Tasks
from headstart.types import Params, Tree

EVERYTHING = slice(None)


class Runner(Protocol):
    """The outputs of T tasks as a function of their w: all that an inner problem knows of a model."""

    vectorised: bool
    together: bool

    def outputs(self, w: Params, shared: Shared, support: bool, part: slice = EVERYTHING) -> Tensor:
        """(T, n, …) outputs of a part of the support or query examples."""

    def inputs(self, support: bool, t: int) -> Tree:
        """The examples of one task."""


class HeadRunner:
    """A linear head on recorded features: one product of matrices for all tasks."""

    vectorised, together = False, True

    def __init__(self, program: Program, tasks: Tasks, examples: Tree | None) -> None:
        self.program, self.tasks, self.examples = program, tasks, examples

    def outputs(self, w: Params, shared: Shared, support: bool, part: slice = EVERYTHING) -> Tensor:
        """(T, n, C) outputs."""
        weight, bias = head_parameters(self.program, w)
        z = (shared.support if support else shared.query)[FEATURES][:, part]
        if z.dtype != weight.dtype:  # half-precision features under weights in single precision
            dtype = torch.promote_types(z.dtype, weight.dtype)
            z, weight, bias = z.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        product = z @ weight.mT
        return product if bias is None else product + bias.unsqueeze(-2)

    def inputs(self, support: bool, t: int) -> Tree:
        """The examples of one task."""
        return _of(self.examples, self.tasks.support if support else self.tasks.query, t)


class LiveRunner:
    """What adapts runs as a model, under ``vmap`` or in a loop.

    Args:
        live: the context of runs.
        tasks: the tasks.
        examples: the pool.
        vectorised: whether tasks run under ``vmap``.
        held: whether that context is entered already; else it is for every run.
        seed: of random numbers, which are the same whenever the loss of these tasks is evaluated: L_S is one function of (w, φ).

    Attributes:
        moved: the mean over tasks of what buffers became when the model first ran, where they move on in training.
    """

    together = False

    def __init__(self, live: Live, tasks: Tasks, examples: Tree, vectorised: bool, seed: int, held: bool = True) -> None:
        self.live, self.program, self.tasks, self.vectorised, self.seed = live, live.program, tasks, vectorised, seed
        if vectorised and self.program.vmap_refusal:
            why = self.program.vmap_refusal
            raise MethodError(f"the model cannot run under vmap ({why}); use MetaLearner(…, vectorise=False)")
        self.held = held
        own = dict(self.program.model.named_buffers()) if self.program.live_buffers else {}
        self.live_buffers = {n: own[n] for n in self.program.live_buffers}
        self.examples = examples
        self._gathered: dict[bool, Tree] = {}
        self._of_task: dict[tuple[bool, int], Tree] = {}
        self.moved: Params | None = None

    def outputs(self, w: Params, shared: Shared, support: bool, part: slice = EVERYTHING) -> Tensor:
        """(T, n, …) outputs."""
        rows = {k: v[:, part] for k, v in (shared.support if support else shared.query).items()}
        x = tree_map(lambda v: v[:, part], self._examples(support))
        with contextlib.nullcontext() if self.held else self.live, self._same_randomness(support):
            run = self._together if self.vectorised else self._one_by_one
            return run(w, shared, rows, x, support, part)

    def inputs(self, support: bool, t: int) -> Tree:
        """The examples of one task."""
        return _of(self.examples, self.tasks.support if support else self.tasks.query, t)

    def forget(self) -> None:
        """Lets go of the examples that were gathered."""
        self._gathered.clear()
        self._of_task.clear()

    def _together(self, w: Params, shared: Shared, rows: Any, x: Tree, support: bool, part: slice) -> Tensor:
        buffers = {n: b.expand(len(self.tasks), *b.shape).clone() for n, b in self.live_buffers.items()}

        def one(w: Params, rows: Any, x: Tree, buffers: Params) -> tuple[Tensor, Params]:
            return self.live.outputs({**shared.phi, **w}, rows, shared.constants, x, buffers)

        found, after = torch.func.vmap(one, randomness="different")(w, rows, x, buffers)
        self._note({n: b if b.dim() else b.expand(len(self.tasks)) for n, b in after.items()})
        return found

    def _one_by_one(self, w: Params, shared: Shared, rows: Any, x: Tree, support: bool, part: slice) -> Tensor:
        found, after = [], []
        weight = (self.tasks.support if support else self.tasks.query).weight
        weight = None if weight is None else weight[:, part]
        for t in range(len(self.tasks)):
            of = lambda tree: tree_map(lambda v: v[t], tree)  # noqa: B023, E731
            own_rows, own_x = of(rows), self._inputs_of(support, t, x, part)
            kept = None
            if weight is not None and self.program.mixes:  # what is not there must not enter batch statistics
                kept = (weight[t] > 0).nonzero()[:, 0]
                own_rows, own_x = (tree_map(lambda v: v[kept], tree) for tree in (own_rows, own_x))  # noqa: B023
            buffers = {n: b.clone() for n, b in self.live_buffers.items()}
            outputs, moved = self.live.outputs({**shared.phi, **of(w)}, own_rows, shared.constants, own_x, buffers)
            if kept is not None and weight is not None:
                outputs = outputs.new_zeros(weight.shape[1], *outputs.shape[1:]).index_copy(0, kept, outputs)
            found.append(outputs)
            after.append(moved)
        if self.moved is None and after[0]:
            self._note({n: torch.stack([a[n] for a in after]) for n in after[0]})
        return torch.stack(found)

    def _inputs_of(self, support: bool, t: int, x: Tree, part: slice) -> Tree:
        """The inputs of one task. Where a model marks them, they are the same tensors in every step, as in a plain loop."""
        if not self.program.marks_inputs or part != EVERYTHING:
            return tree_map(lambda v: v[t].detach(), x)
        if (support, t) not in self._of_task:
            self._of_task[support, t] = tree_map(lambda v: v[t].detach(), x)
        return self._of_task[support, t]

    def _note(self, after: Params) -> None:
        """Keeps the mean over tasks of what buffers became, the first time."""
        if self.moved is None and after:
            self.moved = {n: b.mean(0) if b.is_floating_point() else b[0] for n, b in after.items()}

    def _examples(self, support: bool) -> Tree:
        """(T, n, …) examples, gathered once, with images in the memory order that convolutions are fastest with."""
        if support not in self._gathered:
            side = self.tasks.support if support else self.tasks.query

            def gather(leaf: Tensor) -> Tensor:
                if not self.program.channels_last or leaf.dim() != 4:
                    return leaf[side.index]
                flat: Tensor = channels_last(leaf[side.index.reshape(-1)])
                return flat.unflatten(0, side.index.shape)

            self._gathered[support] = tree_map(gather, self.examples)
        return self._gathered[support]

    @contextlib.contextmanager
    def _same_randomness(self, support: bool) -> Iterator[None]:
        # Without this the iterates would not be gradient descent on anything, and Proposition 1 would not hold.
        if not self.program.random:
            yield
            return
        device = self.tasks.support.index.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(2 * self.seed + (not support))
            yield


def _of(examples: Tree | None, side: Side, t: int) -> Tree:
    if examples is None:
        raise MethodError("the loss takes inputs, but only embedded examples are at hand; evaluate without embedding them first")
    index: Tensor = side.index[t]
    pick: Callable[[Tensor], Tensor] = lambda v: v[index]  # noqa: E731
    return tree_map(pick, examples)
