"""Runs the model on the examples of a group of tasks: as a linear head, under vmap, or one task after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from headstart.errors import MethodError
from headstart.inner.shared import Shared
from headstart.program.description import FEATURES, Program
from headstart.program.kernels import channels_last
from headstart.program.run import Live, head_parameters
from headstart.program.support_norm import SupportNorm
from headstart.tasks import Side, Tasks
from headstart.types import Params, Tree

EVERYTHING = slice(None)
Given = tuple[dict[Any, Tensor], Tree]
"""Recorded rows, and the examples themselves."""


class Runner(Protocol):
    """The outputs of T tasks as a function of their w: all that an inner problem knows of a model."""

    vectorised: bool
    together: bool

    def outputs(self, w: Params, shared: Shared, support: bool, part: slice = EVERYTHING) -> Tensor:
        """(T, n, …) outputs of a part of the support or query examples."""

    def inputs(self, support: bool, t: int) -> Tree:
        """The examples of one task."""

    def take_statistics(self, w: Params, shared: Shared) -> None:
        """Lets what is at work in the model know what the support examples are normalised by at w."""


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

    def take_statistics(self, w: Params, shared: Shared) -> None:
        """None: a head is not normalised."""


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
        self.norms = SupportNorm.of(self.program.model)

    def outputs(self, w: Params, shared: Shared, support: bool, part: slice = EVERYTHING) -> Tensor:
        """(T, n, …) outputs."""
        with self._ready(support):
            return (self._together if self.vectorised else self._one_by_one)(w, shared, support, part)

    def take_statistics(self, w: Params, shared: Shared) -> None:
        """Lets what is at work in the model know what the support examples of the last task are normalised by at w."""
        if self.norms is not None:
            with self._ready(True), self.norms.taking():
                self._one_by_one(w, shared, True, EVERYTHING)

    def inputs(self, support: bool, t: int) -> Tree:
        """The examples of one task."""
        return _of(self.examples, self.tasks.support if support else self.tasks.query, t)

    def forget(self) -> None:
        """Lets go of the examples that were gathered."""
        self._gathered.clear()
        self._of_task.clear()

    def _together(self, w: Params, shared: Shared, support: bool, part: slice) -> Tensor:
        buffers = {n: b.expand(len(self.tasks), *b.shape).clone() for n, b in self.live_buffers.items()}

        def one(w: Params, given: Given, before: Given | tuple[()], buffers: Params) -> tuple[Tensor, Params]:
            return self._run({**shared.phi, **w}, shared, given, before, buffers)

        before = self._before(shared, support)
        found, after = torch.func.vmap(one, randomness="different")(w, self._given(shared, support, part), before, buffers)
        self._note({n: b if b.dim() else b.expand(len(self.tasks)) for n, b in after.items()})
        return found

    def _one_by_one(self, w: Params, shared: Shared, support: bool, part: slice) -> Tensor:
        found, after = [], []
        given = self._given(shared, support, part)
        before = self._before(shared, support)
        for t in range(len(self.tasks)):
            own, there = self._of_one(given, support, t, part)
            buffers = {n: b.clone() for n, b in self.live_buffers.items()}
            params = {**shared.phi, **{k: v[t] for k, v in w.items()}}
            first = self._of_one(before, True, t, EVERYTHING)[0] if before else ()
            outputs, moved = self._run(params, shared, own, first, buffers)
            if there is not None:
                whole = tree_leaves(given[1])[0].shape[1]
                outputs = outputs.new_zeros(whole, *outputs.shape[1:]).index_copy(0, there, outputs)
            found.append(outputs)
            after.append(moved)
        if self.moved is None and after[0]:
            self._note({n: torch.stack([a[n] for a in after]) for n in after[0]})
        return torch.stack(found)

    def _run(self, params: Params, shared: Shared, given: Given, before: Given | tuple[()], buffers: Params) -> tuple[Tensor, Params]:
        """One task on recorded rows and examples, normalised as ``before`` was, if there is such."""
        if not before or self.norms is None:
            return self.live.outputs(params, given[0], shared.constants, given[1], buffers)
        with self.norms.taking():
            self.live.outputs(params, before[0], shared.constants, before[1], {n: b.clone() for n, b in buffers.items()})
        with self.norms.giving():
            return self.live.outputs(params, given[0], shared.constants, given[1], buffers)

    def _before(self, shared: Shared, support: bool) -> Given | tuple[()]:
        """The support sets, where query examples are normalised as they were."""
        return () if support or self.norms is None else self._given(shared, True, EVERYTHING)

    def _given(self, shared: Shared, support: bool, part: slice) -> Given:
        rows = {k: v[:, part] for k, v in (shared.support if support else shared.query).items()}
        return rows, tree_map(lambda v: v[:, part], self._examples(support))

    def _of_one(self, given: Given, support: bool, t: int, part: slice) -> tuple[Given, Tensor | None]:
        """What one task runs on, and which of its examples these are, if not all."""
        rows, x = tree_map(lambda v: v[t], given[0]), self._inputs_of(support, t, given[1], part)
        weight = (self.tasks.support if support else self.tasks.query).weight
        if weight is None or not self.program.mixes:
            return (rows, x), None
        there = (weight[t, part] > 0).nonzero()[:, 0]  # what is not there must not enter batch statistics
        return (tree_map(lambda v: v[there], rows), tree_map(lambda v: v[there], x)), there

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
    def _ready(self, support: bool) -> Iterator[None]:
        with contextlib.nullcontext() if self.held else self.live, self._same_randomness(support):
            yield

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
