"""Runs the part of a model that does not depend on the adapted parameters once, and replays it in every inner step.

A probe finds the largest submodules that hold no adapted parameter, whose input depends on none, and that are called once.
Their outputs are recorded for every example; in the inner steps they return the recorded rows. When all that adapts is a
linear layer that produces the model's output, its input is recorded instead and the rest of the model is not run at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from headstart.errors import TaskError
from headstart.partition import Partition
from headstart.types import Params, ParamsLike, Tree

Output = Callable[[Any], Tensor]
_TENSOR = object()  # stands for a tensor in a recorded output that is taken apart


def default_output(out: Any) -> Tensor:
    """The logits in what a model returns: a tensor itself, or the ``logits`` of a dictionary or output object."""
    if isinstance(out, Tensor):
        return out
    if isinstance(out, Mapping) and isinstance(out.get("logits"), Tensor):
        return out["logits"]
    if isinstance(getattr(out, "logits", None), Tensor):
        return out.logits
    raise TaskError(
        f"the model returns {type(out).__name__}, which has no single tensor of logits; say which one with MetaLearner(…, output=f)"
    )


@dataclass(frozen=True)
class Recorded:
    """A submodule that is replayed: how to take its output apart and put it together again.

    ``batch_dims`` names, for each tensor of the output, the dimension that counts examples; None for a constant.
    """

    name: str
    module: nn.Module
    batch_dims: tuple[int | None, ...]


@dataclass
class Record:
    """What one run of the shared part left behind: rows per example, and constants, with the graph back to φ."""

    rows: dict[str, Tensor]
    constants: dict[str, Tensor]
    specs: dict[str, Any] = field(default_factory=dict)


class Replay:
    """How a model is run for one partition: what is recorded, and what runs in every inner step.

    Args:
        partition: the split into w and φ.
        examples: a few examples, as the model takes them, for the probe.
        output: takes the logits out of what the model returns.
        enabled: False runs the whole model in every step.

    Attributes:
        head: the linear layer, when it is all that adapts and its output is the model's.
        recorded: the submodules that are replayed.
        live: names of the shared parameters that every inner step uses.
        reason: why nothing is replayed, or "".
        outputs: the length of the model's output.
    """

    def __init__(self, partition: Partition, examples: Tree, output: Output = default_output, enabled: bool = True) -> None:
        self.partition, self.output = partition, output
        self.model = partition.model
        self.head: nn.Linear | None = None
        self.recorded: list[Recorded] = []
        self.live = partition.shared
        self.reason = ""
        few = _few(examples, 3)
        with _undisturbed(self.model, few):
            try:
                self.outputs = self._plan(few).shape[-1]
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                shapes = ", ".join(f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in tree_leaves(few))
                raise TaskError(
                    f"{type(self.model).__name__} cannot run on these examples (three of them: {shapes}): {error}."
                    " Give examples in the shape and type that the model takes"
                ) from error
            if not enabled:
                self.head, self.recorded, self.reason = None, [], "switched off"
            if not self.reason and not self._verified(few):
                self.head, self.recorded, self.live = None, [], partition.shared
                self.reason = "replaying changed the model's output; every step runs the whole model"

    # -- planning ------------------------------------------------------------------------------------------------------

    def _plan(self, examples: Tree) -> Tensor:
        three, logits = self._watch(examples)
        two, _ = self._watch(_few(examples, 2))
        adapted_ids = {id(p) for name, p in self.model.named_parameters() if name in set(self.partition.adapted)}
        head = _only_linear(self.model, adapted_ids)
        calls = three.get(head, []) if head is not None else []
        if head is not None and len(calls) == 1:
            (args, kwargs, out) = calls[0]
            z = args[0] if len(args) == 1 and not kwargs else None
            if out is logits and isinstance(z, Tensor) and z.dim() == 2 and len(z) == 3 and not z.requires_grad:
                self.head = head
                return logits

        seen: set[nn.Module] = set()

        def visit(name: str, module: nn.Module) -> None:
            if module in seen:
                return
            seen.add(module)
            calls, fewer = three.get(module, []), two.get(module, [])
            shared = not any(id(p) in adapted_ids for p in module.parameters())
            if shared and len(calls) == 1 and len(fewer) == 1:
                dims = _batch_dims(calls[0][2], fewer[0][2])
                if dims is not None:
                    self.recorded.append(Recorded(name, module, dims))
                    return
            for child_name, child in module.named_children():
                visit(f"{name}.{child_name}" if name else child_name, child)

        visit("", self.model)
        if not self.recorded:
            self.reason = "no submodule is independent of the adapted parameters and called exactly once"
        return logits

    def _watch(self, examples: Tree) -> tuple[dict[nn.Module, list[tuple[Any, Any, Any]]], Tensor]:
        """Every call of every submodule in one run in which only w requires a gradient, so that dependence on w shows."""
        seen: dict[nn.Module, list[tuple[Any, Any, Any]]] = {}

        def watching(module: nn.Module) -> Callable[..., Any]:
            original = module.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                out = original(*args, **kwargs)
                seen.setdefault(module, []).append((args, kwargs, out))
                return out

            return forward

        own = dict(self.model.named_parameters())
        adapted = set(self.partition.adapted)
        params = {n: p.detach().requires_grad_(n in adapted) for n, p in own.items()}
        with torch.enable_grad(), replaced_forwards({m: watching(m) for m in self.model.modules()}):
            logits = self.output(self.call(params, examples))
        return seen, logits

    def _verified(self, examples: Tree) -> bool:
        """Whether replaying gives the model's own output for other adapted parameters; notes which φ the steps use.

        In evaluation mode, so that dropout and batch statistics do not hide the comparison.
        """
        was = {m: m.training for m in self.model.modules()}
        self.model.eval()
        try:
            own = dict(self.model.named_parameters())
            generator = torch.Generator().manual_seed(0)
            params: Params = {n: p.detach() for n, p in own.items()}
            for n in self.partition.adapted:
                noise = torch.randn(own[n].shape, generator=generator).to(own[n])
                params[n] = params[n] + (own[n].detach().abs().mean() + 0.1) * noise
            with torch.no_grad():
                expected = self.output(self.call(params, examples))
            record = self.record(examples, None)
            phi = {n: params[n].requires_grad_() for n in self.partition.shared}
            with torch.enable_grad():
                rows = {k: v.detach() for k, v in record.rows.items()}
                constants = {k: v.detach() for k, v in record.constants.items()}
                logits = self.forward(params, rows, constants, record.specs, examples)
                if phi and logits.requires_grad:
                    grads = torch.autograd.grad(logits.float().sum(), list(phi.values()), allow_unused=True)
                    self.live = tuple(n for n, g in zip(phi, grads, strict=True) if g is not None)
                else:
                    self.live = ()
            scale = float(expected.abs().max()) + 1e-6
            tolerance = 1e-8 if expected.dtype == torch.float64 else 1e-3
            return expected.shape == logits.shape and float((expected - logits.detach()).abs().max()) <= tolerance * scale
        finally:
            for module, training in was.items():
                module.training = training

    # -- running -------------------------------------------------------------------------------------------------------

    def call(self, params: ParamsLike, x: Tree, buffers: ParamsLike | None = None) -> Any:
        """The model's own return value with some parameters (and buffers) replaced."""
        args, kwargs = (x, {}) if isinstance(x, tuple) else ((), x) if isinstance(x, dict) else ((x,), {})
        return functional_call(self.model, {**params, **(buffers or {})}, tuple(args), kwargs)

    def record(self, examples: Tree, chunk: int | None) -> Record:
        """Runs the shared part once over a pool of P examples, in chunks; gradients flow back into the model's φ.

        A chunk that fits the cache is faster on a CPU. In training mode batch normalisation takes its statistics over a
        chunk, so the examples are first put into a fixed shuffled order: a chunk must not be a few classes only.
        """
        size = len(tree_leaves(examples)[0])
        if self.reason:
            return Record({}, {})
        parts = [torch.arange(size)] if chunk is None or size <= chunk else _balanced(size, chunk)
        records = [self._record_part(examples if len(parts) == 1 else _take(examples, part)) for part in parts]
        if len(records) == 1:
            return records[0]
        back = torch.cat(parts).argsort()
        rows = {}
        for key, value in records[0].rows.items():
            rows[key] = torch.cat([r.rows[key] for r in records])[back.to(value.device)]
        return Record(rows, records[0].constants, records[0].specs)

    def _record_part(self, examples: Tree) -> Record:
        record = Record({}, {})
        waiting = {self.head} if self.head is not None else {r.module for r in self.recorded}

        def done(module: nn.Module) -> None:
            waiting.discard(module)
            if not waiting:
                raise _AllRecorded

        def capture_input(z: Tensor) -> Tensor:
            record.rows["features"] = z
            raise _AllRecorded

        def capturing(recorded: Recorded) -> Callable[..., Any]:
            original = recorded.module.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                out = original(*args, **kwargs)
                leaves, spec = tree_flatten(out)
                tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
                for i, (leaf, dim) in enumerate(zip(tensors, recorded.batch_dims, strict=True)):
                    if dim is None:
                        record.constants[f"{recorded.name}#{i}"] = leaf
                    else:
                        record.rows[f"{recorded.name}#{i}"] = leaf.movedim(dim, 0)
                record.specs[recorded.name] = (spec, [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves])
                done(recorded.module)
                # A clone: what follows in this run may write into the output, and the record must keep it as it was.
                return tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, out)

            return forward

        if self.head is not None:
            wrapped: dict[nn.Module, Callable[..., Any]] = {self.head: capture_input}
        else:
            wrapped = {r.module: capturing(r) for r in self.recorded}
        try:
            with replaced_forwards(wrapped):
                self.call({}, channels_last(examples))
        except _AllRecorded:
            pass
        return record

    def forward(
        self,
        params: ParamsLike,
        rows: ParamsLike,
        constants: ParamsLike,
        specs: Mapping[str, Any],
        x: Tree,
        buffers: ParamsLike | None = None,
    ) -> Tensor:
        """The logits of some examples from their recorded rows and the parameters that the steps use.

        Args:
            params: w and the live part of φ.
            rows, constants, specs: what :meth:`record` kept, for these examples.
            x: the examples themselves, for what is not replayed.
            buffers: buffers to use (and let the model change) instead of its own.
        """
        if self.head is not None:
            weight, bias = self.head_parameters(params)
            return F.linear(rows["features"], weight, bias)

        def replaying(recorded: Recorded) -> Callable[..., Any]:
            def forward(*_: Any, **__: Any) -> Any:
                spec, leaves = specs[recorded.name]
                tensors = iter(
                    constants[f"{recorded.name}#{i}"].clone() if dim is None else rows[f"{recorded.name}#{i}"].movedim(0, dim).clone()
                    for i, dim in enumerate(recorded.batch_dims)
                )
                return tree_unflatten([next(tensors) if leaf is _TENSOR else leaf for leaf in leaves], spec)

            return forward

        with replaced_forwards({r.module: replaying(r) for r in self.recorded}):
            return self.output(self.call(params, x, buffers))

    def head_parameters(self, params: ParamsLike) -> tuple[Tensor, Tensor | None]:
        """The weight and bias of the linear head, by whatever names the model gives them."""
        weight, *bias = (params[name] for name in self.head_names)
        return weight, bias[0] if bias else None

    @property
    def head_names(self) -> tuple[str, ...]:
        """The names of the head's weight and, if it has one, bias."""
        assert self.head is not None
        names = {id(p): n for n, p in self.model.named_parameters()}
        own = (self.head.weight, self.head.bias)
        return tuple(names[id(p)] for p in own if p is not None)


class _AllRecorded(Exception):
    """Everything that is recorded has run; the rest of the model need not."""


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Lets modules run another ``forward`` for a while; their hooks run as always."""
    own = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, before in own.items():
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before


@contextmanager
def _undisturbed(model: nn.Module, examples: Tree) -> Iterator[None]:
    """Restores buffers and the random state afterwards, so that a probe leaves no trace."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    devices = sorted({leaf.get_device() for leaf in tree_leaves(examples) if leaf.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for name, b in model.named_buffers():
                b.copy_(buffers[name])


def channels_last(x: Tree) -> Tree:
    """Images in the memory order that convolutions are fastest with; the values stay the same."""
    return tree_map(lambda v: v.contiguous(memory_format=torch.channels_last) if isinstance(v, Tensor) and v.dim() == 4 else v, x)


def _only_linear(model: nn.Module, adapted: set[int]) -> nn.Linear | None:
    """The linear layer that holds exactly the adapted parameters, if there is one and nothing is hooked into it."""
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            continue
        plain = type(module).forward is nn.Linear.forward and "forward" not in module.__dict__
        if plain and not module._forward_hooks and not module._forward_pre_hooks and {id(p) for p in module.parameters()} == adapted:
            return module
    return None


def _batch_dims(out: Any, fewer: Any) -> tuple[int | None, ...] | None:
    """The dimension of each output tensor that grew from 2 to 3 with the examples; None if w shows in it or it has none such."""
    leaves = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    fewer_leaves = [leaf for leaf in tree_leaves(fewer) if isinstance(leaf, Tensor)]
    if not leaves or len(leaves) != len(fewer_leaves) or any(leaf.requires_grad for leaf in leaves):
        return None
    dims: list[int | None] = []
    for leaf, other in zip(leaves, fewer_leaves, strict=True):
        if leaf.dim() != other.dim():
            return None
        grown = [d for d in range(leaf.dim()) if leaf.shape[d] != other.shape[d]]
        if len(grown) > 1 or (grown and (leaf.shape[grown[0]], other.shape[grown[0]]) != (3, 2)):
            return None
        dims.append(grown[0] if grown else None)
    return tuple(dims)


def _few(examples: Tree, count: int) -> Tree:
    size = len(tree_leaves(examples)[0])
    return tree_map(lambda v: v[torch.arange(count, device=v.device) % size], examples)


def _take(examples: Tree, index: Tensor) -> Tree:
    return tree_map(lambda v: v[index.to(v.device)], examples)


def _balanced(size: int, chunk: int) -> list[Tensor]:
    """A fixed shuffled order of the examples in parts of nearly equal size, none above ``chunk``."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return list(order.chunk(-(-size // chunk)))
