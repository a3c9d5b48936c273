"""Runs the part of a model that does not depend on the adapted parameters once, and replays it in every inner step.

A probe finds the largest submodules that hold no adapted parameter, whose input depends on none, and that are called once.
Their outputs are recorded for every example; in the inner steps they return the recorded rows. When all that adapts is a
linear layer that produces the model's output, its input is recorded instead and the rest of the model is not run at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from headstart.errors import HeadstartError, MethodError, TaskError
from headstart.partition import Partition
from headstart.probe import Recorded, few_examples, probe
from headstart.running import (
    channels_last,
    evaluating,
    has_old_weight_norm,
    one_path,
    replaced_forwards,
    twice_differentiable,
    undisturbed,
)
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
        step_flops: work of an inner step's forward pass on one example.
        channels_last: whether images go in that memory order, which convolutions are fastest with.
        vmap_refusal: why what runs per step cannot run under ``vmap``, or "".
    """

    def __init__(self, partition: Partition, examples: Tree, output: Output = default_output, enabled: bool = True) -> None:
        self.partition, self.output = partition, output
        self.model = partition.model
        self.head: nn.Linear | None = None
        self.recorded: list[Recorded] = []
        self.live = partition.shared
        self.reason = ""
        self.channels_last = False
        self.forward_mode: bool | None = None  # whether forward-mode derivatives agree; Recursive finds out
        few = few_examples(examples, 3)
        with undisturbed(self.model, few):
            try:
                found = probe(self.model, set(partition.adapted), lambda p, x: output(self.call(p, x)), few)
            except HeadstartError:
                raise
            except Exception as error:
                shapes = ", ".join(f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in tree_leaves(few))
                raise TaskError(
                    f"{type(self.model).__name__} cannot run on these examples (three of them: {shapes}): {error}."
                    " Give examples in the shape and type that the model takes"
                ) from error
            self.outputs = found.outputs
            if not enabled:
                self.reason = "switched off"
            elif found.head is None and not found.recorded:
                self.reason = "no submodule is independent of the adapted parameters and called exactly once"
            else:
                self.head, self.recorded = found.head, found.recorded
                if not self._safely_verified(few):
                    self.head, self.recorded, self.live = None, [], partition.shared
                    self.reason = "replaying changed the model's output; every step runs the whole model"
            self._refuse_old_weight_norm()
            self.channels_last = self._takes_channels_last(few)
            with FlopCounterMode(display=False) as counter, evaluating(self.model), torch.no_grad():
                record = self.record(few, None)
                before = counter.get_total_flops()
                self.forward({}, record.rows, record.constants, record.specs, few)
                self.step_flops = (counter.get_total_flops() - before) / 3
            self.vmap_refusal = self._try_vmap(record, few)

    # -- planning ------------------------------------------------------------------------------------------------------

    def _safely_verified(self, examples: Tree) -> bool:
        try:
            return self._verified(examples)
        except HeadstartError:
            raise
        except Exception:  # whatever goes wrong in a replayed model went well in the model itself, so the replay is at fault
            return False

    def _verified(self, examples: Tree) -> bool:
        """Whether replaying gives the model's own output for other adapted parameters; notes which φ the steps use.

        In evaluation mode, so that dropout and batch statistics do not hide the comparison.
        """
        with evaluating(self.model):
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
                    seen = {n for n, g in zip(phi, grads, strict=True) if g is not None}
                else:
                    seen = set()
            # Besides what these examples used in this mode: whatever is not inside a recorded submodule.
            inside = {id(p) for r in self.recorded for p in r.module.parameters()}
            outside = set() if self.head is not None else {n for n in phi if id(own[n]) not in inside}
            self.live = tuple(n for n in phi if n in seen | outside)
            # Other examples, in another number and order: a submodule that mixes examples or keeps something of them shows here.
            other = [2, 0]
            with torch.no_grad():
                some = _take(examples, torch.tensor(other))
                again = self.forward(params, {k: v[other] for k, v in rows.items()}, constants, record.specs, some)
                afresh = self.output(self.call(params, some))
            return _alike(logits, expected) and _alike(again, afresh)

    def _refuse_old_weight_norm(self) -> None:
        inside = {m for r in self.recorded for m in r.module.modules()}
        if self.head is None and any(has_old_weight_norm(m) for m in self.model.modules() if m not in inside and not list(m.children())):
            raise MethodError(
                "torch.nn.utils.weight_norm in what runs per inner step has a wrong second derivative;"
                " use torch.nn.utils.parametrizations.weight_norm, which headstart computes in another way"
            )

    def _takes_channels_last(self, examples: Tree) -> bool:
        """Whether the model runs on images in that memory order; a ``view`` of them does not."""
        try:
            with torch.no_grad(), evaluating(self.model):
                self.call({}, channels_last(examples))
        except RuntimeError:
            return False
        return True

    def _try_vmap(self, record: Record, examples: Tree) -> str:
        """Runs one task under vmap: some models look at values, and some kernels have no batching rule."""
        if self.head is not None:
            return ""
        w, phi = self.partition.split()
        one = tree_map(lambda v: v.detach()[None], (dict(w), record.rows, examples, dict(self.model.named_buffers())))

        def run(w: Params, rows: Params, x: Tree, buffers: Params) -> Tensor:
            return self.forward({**phi, **w}, rows, record.constants, record.specs, x, tree_map(torch.clone, buffers))

        try:
            with torch.enable_grad(), twice_differentiable(self.model):
                torch.func.vmap(run, randomness="different")(*one)
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return ""

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
            with replaced_forwards(wrapped), one_path():
                self.call({}, channels_last(examples) if self.channels_last else examples)
        except _AllRecorded:
            return record
        raise MethodError(
            "the model took another way through its submodules than on the first examples of these tasks;"
            " use MetaLearner(…, replay=False), which runs the whole model in every step"
        )

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
        weight, *bias = (params[name] if name in params else self.model.get_parameter(name) for name in self.head_names)
        return weight, bias[0] if bias else None

    @property
    def head_names(self) -> tuple[str, ...]:
        """The names of the head's weight and, if it has one, bias."""
        assert self.head is not None
        names = {id(p): n for n, p in self.model.named_parameters()}
        own = (self.head.weight, self.head.bias)
        return tuple(names[id(p)] for p in own if p is not None)


def _alike(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-8 if b.dtype == torch.float64 else 1e-3 if b.dtype == torch.float32 else 3e-2
    return a.shape == b.shape and float((a.detach() - b).abs().max()) <= tolerance * (float(b.abs().max()) + 1e-6)


class _AllRecorded(Exception):
    """Everything that is recorded has run; the rest of the model need not."""


def _take(examples: Tree, index: Tensor) -> Tree:
    return tree_map(lambda v: v[index.to(v.device)], examples)


def _balanced(size: int, chunk: int) -> list[Tensor]:
    """A fixed shuffled order of the examples in parts of nearly equal size, none above ``chunk``."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return list(order.chunk(-(-size // chunk)))
