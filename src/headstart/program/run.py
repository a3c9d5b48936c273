"""Runs a program: the shared part once over a pool of examples, and what adapts on recorded rows, as often as it is asked.

Contexts are entered once for any number of runs; afterwards the model has its own tensors and attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from headstart.errors import MethodError, TaskError
from headstart.program.description import FEATURES, Key, Program, Recorded, detached
from headstart.program.kernels import channels_last, explained, one_path, twice_differentiable
from headstart.program.modes import Kept, replaced_forwards
from headstart.program.precision import autocast, in_single, products, single
from headstart.types import Params, ParamsLike, Tree

_TENSOR = object()  # stands for a tensor in a recorded output that is taken apart
ANOTHER_WAY = (
    "the model took another way through its submodules than on the first examples of these tasks;"
    " use MetaLearner(…, replay=False), which runs the whole model in every step"
)


@dataclass
class Record:
    """What one run of the shared part left behind: rows per example, and constants, with the graph back to φ."""

    rows: dict[Key, Tensor] = field(default_factory=dict)
    constants: dict[Key, Tensor] = field(default_factory=dict)
    specs: dict[str, Any] = field(default_factory=dict)

    def detached(self) -> Record:
        """Without the graph."""
        rows, constants = ({k: v.detach() for k, v in values.items()} for values in (self.rows, self.constants))
        return Record(rows, constants, self.specs)


def call(model: nn.Module, params: ParamsLike, x: Tree, tied: bool = True) -> Any:
    """The model's own return value with some parameters (and buffers) replaced.

    ``tied=False`` saves torch a walk over the modules in every call: each name of a tied tensor is given then.
    """
    args, kwargs = (x, {}) if isinstance(x, tuple) else ((), x) if isinstance(x, dict) else ((x,), {})
    return functional_call(model, dict(params), tuple(args), kwargs, tie_weights=tied)


def apart(x: Tree) -> Tree:
    """Other tensors over the same values: a model may mark its inputs as asking for a gradient, and the user's are not to be marked."""
    return tree_map(lambda v: v.detach(), x)


# -- what runs once --------------------------------------------------------------------------------------------------------


def record(program: Program, examples: Tree, chunk: int | None, gradient: bool = True, moves: bool = False) -> Record:
    """Runs the shared part once over a pool of P examples, in chunks.

    A chunk that fits the cache is faster on a CPU. Where batch normalisation trains it takes its statistics over a
    chunk, so the examples are first put into a fixed shuffled order: a chunk must not be a few classes only.

    Args:
        program: how the model runs.
        examples: (P, …) each.
        chunk: examples that run together; None for all.
        gradient: whether gradients flow back into the model's φ.
        moves: whether the model's buffers move on, as in training.
    """
    size = len(tree_leaves(examples)[0])
    if program.reason:
        return Record()
    if program.head is program.model:
        return Record({FEATURES: tree_leaves(apart(examples))[0]})  # nothing runs before the head
    params: Params = {} if gradient else detached(program.model)
    if not moves and program.buffers:
        params |= {n: b.clone() for n, b in program.model.named_buffers()}
    whole = chunk is None or size <= chunk
    shuffled = not whole and _takes_statistics(program.model)
    parts: list[Any] = [slice(None)] if whole else balanced(size, chunk, shuffled)
    with torch.set_grad_enabled(True), one_path(), products(program.precision, tree_leaves(examples)[0].device):
        records = [_record_part(program, params, examples if whole else take(examples, part), moves) for part in parts]
    if len(records) == 1:
        return records[0]
    rows = {k: torch.cat([r.rows[k] for r in records]) for k in records[0].rows}
    if shuffled:
        back = torch.cat(parts).argsort()
        rows = {k: v[back.to(v.device)] for k, v in rows.items()}
    return Record(rows, records[0].constants, records[0].specs)


def _takes_statistics(model: nn.Module) -> bool:
    return any(m.training for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def _record_part(program: Program, params: Params, examples: Tree, moves: bool) -> Record:
    found = Record()
    waiting = {program.head} if program.head is not None else {r.module for r in program.recorded}

    def capture_input(z: Tensor) -> Tensor:
        found.rows[FEATURES] = z
        raise _AllRecorded

    def capturing(recorded: Recorded) -> Callable[..., Any]:
        original = recorded.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if recorded.module not in waiting:
                raise MethodError(ANOTHER_WAY)
            out = original(*args, **kwargs)
            leaves, spec = tree_flatten(out)
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            if len(tensors) != len(recorded.batch_dims):
                raise MethodError(ANOTHER_WAY)
            for i, (leaf, dim) in enumerate(zip(tensors, recorded.batch_dims, strict=True)):
                if dim is None:
                    found.constants[recorded.name, i] = leaf
                else:
                    found.rows[recorded.name, i] = leaf.movedim(dim, 0)
            found.specs[recorded.name] = (spec, [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves])
            waiting.discard(recorded.module)
            if not waiting:
                raise _AllRecorded
            # A clone: what follows in this run may write into the output, and the record must keep it as it was.
            return tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, out)

        return forward

    if program.head is not None:
        wrapped: dict[nn.Module, Callable[..., Any]] = {program.head: capture_input}
    else:
        wrapped = {r.module: capturing(r) for r in program.recorded}
    kept = Kept(program.model) if program.assigns else None
    try:
        with replaced_forwards(wrapped), autocast(program.precision, tree_leaves(examples)[0].device):
            call(program.model, params, apart(channels_last(examples) if program.channels_last else examples))
    except _AllRecorded:
        exact = lambda tensors: {k: single(program.precision, v) for k, v in tensors.items()}  # noqa: E731
        return Record(exact(found.rows), exact(found.constants), found.specs)
    finally:
        if kept is not None:
            kept.put_back(state=moves)
    raise MethodError(ANOTHER_WAY)


class _AllRecorded(Exception):
    """Everything that is recorded has run; the rest of the model need not."""


def take(examples: Tree, index: Tensor | slice) -> Tree:
    """Some of the examples."""
    return tree_map(lambda v: v[index.to(v.device) if isinstance(index, Tensor) else index], examples)


def balanced(size: int, chunk: int | None, shuffled: bool) -> list[Any]:
    """The examples in parts of nearly equal size, none above ``chunk``: in order, or in a fixed shuffled order."""
    count = 1 if chunk is None else -(-size // chunk)
    if shuffled:
        return list(torch.randperm(size, generator=torch.Generator().manual_seed(0)).chunk(count))
    each = -(-size // count)
    return [slice(first, min(first + each, size)) for first in range(0, size, each)]


# -- what runs per step ----------------------------------------------------------------------------------------------------


class Live:
    """Runs what depends on w, on recorded rows; a context manager, entered once for any number of runs.

    Args:
        program: how the model runs.
        specs: how recorded outputs are put together, from the record.
        buffers: whether what buffers become is returned too.
    """

    def __init__(self, program: Program, specs: Mapping[str, Any], buffers: bool = False) -> None:
        self.program, self.specs = program, specs
        self.model = _WithBuffers(program.model, program.live_buffers) if buffers else program.model
        self.with_buffers = buffers
        self.prefix = "model." if buffers else ""
        self.rows: Mapping[Key, Tensor] = {}
        self.constants: Mapping[Key, Tensor] = {}
        self.used: list[str] = []

    def __enter__(self) -> Live:
        self._stack, self._kept = ExitStack(), None
        if self.program.head is not None:
            return self
        self._stack.enter_context(twice_differentiable(self.program.model, self.program.special))
        self._stack.enter_context(replaced_forwards({r.module: self._replaying(r) for r in self.program.recorded}))
        if self.program.precision == "bf16" and self.program.last is not None:
            self._stack.enter_context(replaced_forwards({self.program.last: in_single(self.program.last)}))
        self._kept = Kept(self.program.model) if self.program.assigns else None
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
        if isinstance(error[1], RuntimeError):
            better = explained(error[1], self.program.model)
            if better is not error[1]:
                raise better from error[1]

    def outputs(
        self, params: ParamsLike, rows: Mapping[Key, Tensor], constants: Mapping[Key, Tensor], x: Tree, buffers: ParamsLike
    ) -> tuple[Tensor, Params]:
        """The outputs of n examples from their recorded rows and the parameters that the steps use, and what buffers become.

        Args:
            params: w and the live part of φ.
            rows, constants: what was recorded for these examples.
            x: the examples themselves, for what is not replayed.
            buffers: those to use, and let the model change, instead of its own.
        """
        if self.program.head is not None:
            weight, bias = head_parameters(self.program, params)
            return F.linear(rows[FEATURES], weight, bias), {}
        self.rows, self.constants, self.used = rows, constants, []
        try:
            given = {**params, **buffers}
            for name, first in self.program.ties:
                if first in given:
                    given[name] = given[first]
            with (
                torch.enable_grad(),
                autocast(self.program.precision, tree_leaves(x)[0].device),
            ):  # where nothing asks for a gradient there is no graph, but a model may ask for one itself
                out = call(self.model, {self.prefix + k: v for k, v in given.items()}, x, tied=False)
        except ValueError as error:  # such as batch normalisation over one example
            n = len(tree_leaves(x)[0])
            raise TaskError(
                f"{type(self.program.model).__name__} cannot run on the {n} examples of a task: {error}. Give tasks that it can run on,"
                " or put what minds into evaluation mode"
            ) from error
        finally:
            if self._kept is not None:
                self._kept.put_back()
        out, after = out if self.with_buffers else (out, {})
        if len(self.used) != len(self.program.recorded):
            raise MethodError(ANOTHER_WAY)
        found = single(self.program.precision, self.program.output(out))
        n = len(tree_leaves(x)[0])
        if found.dim() == 0 or len(found) != n:
            raise TaskError(rows_of(found, n))
        return found, after

    def _replaying(self, recorded: Recorded) -> Callable[..., Any]:
        def forward(*_: Any, **__: Any) -> Any:
            self.used.append(recorded.name)
            spec, leaves = self.specs[recorded.name]
            tensors = iter(
                self.constants[recorded.name, i].clone() if dim is None else self.rows[recorded.name, i].movedim(0, dim).clone()
                for i, dim in enumerate(recorded.batch_dims)
            )
            return tree_unflatten([next(tensors) if leaf is _TENSOR else leaf for leaf in leaves], spec)

        return forward


class _WithBuffers(nn.Module):
    """A model that also returns what some of its buffers are after it has run."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.model(*args, **kwargs)
        own = dict(self.model.named_buffers())
        return out, {n: own[n].detach() for n in self.names if n in own}


def head_parameters(program: Program, params: ParamsLike) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of the linear head, by whatever names the model gives them."""
    weight, *bias = (params[name] if name in params else program.model.get_parameter(name) for name in program.head_names)
    return weight, bias[0] if bias else None


def rows_of(outputs: Tensor, n: int) -> str:
    """What to say of outputs that are not one row for each of n examples."""
    return (
        f"the model gives outputs of shape {tuple(outputs.shape)} for {n} examples; it must give one row per example. A recurrent net"
        " that takes time first needs batch_first=True; else choose the right output with MetaLearner(…, output=f)"
    )
