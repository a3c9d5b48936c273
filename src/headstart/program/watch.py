"""Watches a model run on a few examples: what it calls, what depends on the adapted parameters, and what a run changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from headstart.program.description import Key, Output, Recorded
from headstart.program.kernels import Special, one_path
from headstart.program.modes import Kept, replaced_forwards
from headstart.program.run import apart, call
from headstart.types import Tree

Calls = dict[nn.Module, list[tuple[Any, Any, Any]]]
"""Arguments, keyword arguments and output of every call of every module."""


@dataclass
class Seen:
    """One run, in which only w requires a gradient, so that dependence on w shows.

    Args:
        calls: every call of every module.
        outputs: what the output function took.
        random: whether random numbers were drawn.
        buffers: names of the buffers that the run changed.
        assigns: whether it left other objects in attributes.
        special: whether it called functions that are computed in another way.
        marks_inputs: whether it let its inputs ask for a gradient.
    """

    calls: Calls = field(default_factory=dict)
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    random: bool = False
    buffers: tuple[str, ...] = ()
    assigns: bool = False
    special: bool = False
    marks_inputs: bool = False


def watch(model: nn.Module, adapted: set[str], output: Output, examples: Tree) -> Seen:
    """Runs a model on examples and notes what happened; the model has its own tensors and attributes afterwards."""
    seen = Seen()

    def watching(module: nn.Module) -> Callable[..., Any]:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            seen.calls.setdefault(module, []).append((args, kwargs, out))
            return out

        return forward

    kept, before = Kept(model), {n: b.clone() for n, b in model.named_buffers()}
    own = dict(model.named_buffers())
    params = {n: p.detach().requires_grad_(n in adapted and p.is_floating_point()) for n, p in model.named_parameters()}
    state = _random_state(examples)
    with torch.enable_grad(), one_path(), Special() as special, replaced_forwards({m: watching(m) for m in model.modules()}):
        given = apart(examples)
        seen.outputs = output(call(model, params, given))
    seen.marks_inputs = any(v.requires_grad for v in tree_leaves(given))
    after = _random_state(examples)
    seen.random = any(not torch.equal(a, b) for a, b in zip(state, after, strict=True))
    seen.special = bool(special.seen)
    now = dict(model.named_buffers())
    seen.buffers = tuple(n for n, b in before.items() if n in now and (now[n] is not own[n] or not _equal(now[n], b)))
    seen.assigns = kept.changed()
    kept.put_back()
    with torch.no_grad():
        for n, b in before.items():
            own[n].copy_(b)
    return seen


def _random_state(examples: Tree) -> list[Tensor]:
    devices = sorted({leaf.device for leaf in tree_leaves(examples) if leaf.is_cuda}, key=str)
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def only_linear(model: nn.Module, adapted: set[int]) -> nn.Linear | None:
    """The linear layer that holds exactly the adapted parameters, if there is one and nothing is hooked into it."""
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            continue
        own = "weight" in module._parameters and "bias" in module._parameters  # and not made anew by a parametrization
        plain = own and type(module).forward is nn.Linear.forward and "forward" not in module.__dict__
        if plain and not module._forward_hooks and not module._forward_pre_hooks and {id(p) for p in module.parameters()} == adapted:
            return module
    return None


def find_head(model: nn.Module, adapted: set[int], seen: Seen) -> nn.Linear | None:
    """The linear layer that is all that adapts, whose output is the model's, and whose input does not depend on w."""
    head = only_linear(model, adapted)
    calls = seen.calls.get(head, []) if head is not None else []
    if len(calls) != 1:
        return None
    args, kwargs, out = calls[0]
    z = args[0] if len(args) == 1 and not kwargs else None
    alone = out is seen.outputs and isinstance(z, Tensor) and z.dim() == 2 and len(z) == len(seen.outputs) and not z.requires_grad
    return head if alone else None


def find_last(seen: Seen) -> nn.Module | None:
    """The layer of one tensor whose output is the model's, called once: a linear one, a cosine head, or another without submodules."""
    for module, calls in seen.calls.items():
        if len(calls) == 1 and calls[0][2] is seen.outputs and not any(module.children()):
            args, kwargs, _ = calls[0]
            return module if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else None
    return None


def find_features(model: nn.Module, adapted: set[int], seen: Seen, recorded: Sequence[Recorded]) -> Key | None:
    """The recorded tensor that is all that the one module with adapted parameters of its own is given."""
    holders = [m for m in model.modules() if adapted & {id(p) for p in m.parameters(recurse=False)}]
    calls = seen.calls.get(holders[0], []) if len(holders) == 1 else []
    if len(calls) != 1 or len(calls[0][0]) != 1 or calls[0][1]:
        return None
    for r in recorded:
        tensors = [leaf for leaf in tree_leaves(seen.calls[r.module][0][2]) if isinstance(leaf, Tensor)]
        for i, tensor in enumerate(tensors):
            if tensor is calls[0][0][0]:
                return r.name, i
    return None


def find_recorded(model: nn.Module, adapted: set[int], three: Seen, two: Seen) -> list[Recorded]:
    """The largest submodules without adapted parameters, called once, that do not depend on w."""
    found: list[Recorded] = []
    visited: set[nn.Module] = set()

    def visit(name: str, module: nn.Module) -> None:
        if module in visited:
            return
        visited.add(module)
        calls, fewer = three.calls.get(module, []), two.calls.get(module, [])
        shared = not any(id(p) in adapted for p in module.parameters())
        if shared and len(calls) == 1 and len(fewer) == 1:
            dims = _batch_dims(calls[0][2], fewer[0][2])
            if dims is not None:
                found.append(Recorded(name, module, dims))
                return
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    return found


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


def few_examples(examples: Tree, count: int) -> Tree:
    """The first examples, over again if they are fewer."""
    size = len(tree_leaves(examples)[0])
    return tree_map(lambda v: v[torch.arange(count, device=v.device) % size], examples)
