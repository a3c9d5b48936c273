"""Finds the part of a model that does not depend on the adapted parameters, by running it on a few examples and watching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from headstart.running import replaced_forwards
from headstart.types import Params, Tree

Calls = dict[nn.Module, list[tuple[Any, Any, Any]]]
"""Arguments, keyword arguments and output of every call of every module."""


@dataclass(frozen=True)
class Recorded:
    """A submodule that is replayed: how to take its output apart and put it together again.

    ``batch_dims`` names, for each tensor of the output, the dimension that counts examples; None for a constant.
    """

    name: str
    module: nn.Module
    batch_dims: tuple[int | None, ...]


@dataclass
class Found:
    """What a probe found.

    Args:
        outputs: the length of the model's output.
        head: the linear layer, when it is all that adapts and its output is the model's.
        recorded: the largest submodules that can be replayed.
    """

    outputs: int
    head: nn.Linear | None = None
    recorded: list[Recorded] = field(default_factory=list)


def probe(model: nn.Module, adapted: set[str], run: Callable[[Params, Tree], Tensor], examples: Tree) -> Found:
    """Looks for what can run once.

    Args:
        model: any module.
        adapted: names of the adapted parameters.
        run: (parameters, examples) to the model's logits.
        examples: three examples.
    """
    three, logits = _watch(model, adapted, run, examples)
    two, _ = _watch(model, adapted, run, few_examples(examples, 2))
    adapted_ids = {id(p) for name, p in model.named_parameters() if name in adapted}
    found = Found(logits.shape[-1])
    head = _only_linear(model, adapted_ids)
    calls = three.get(head, []) if head is not None else []
    if len(calls) == 1:
        args, kwargs, out = calls[0]
        z = args[0] if len(args) == 1 and not kwargs else None
        if out is logits and isinstance(z, Tensor) and z.dim() == 2 and len(z) == 3 and not z.requires_grad:
            found.head = head
            return found

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
                found.recorded.append(Recorded(name, module, dims))
                return
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    return found


def _watch(model: nn.Module, adapted: set[str], run: Callable[[Params, Tree], Tensor], examples: Tree) -> tuple[Calls, Tensor]:
    """Every call of every module in one run in which only w requires a gradient, so that dependence on w shows."""
    seen: Calls = {}

    def watching(module: nn.Module) -> Callable[..., Any]:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            seen.setdefault(module, []).append((args, kwargs, out))
            return out

        return forward

    params = {n: p.detach().requires_grad_(n in adapted) for n, p in model.named_parameters()}
    with torch.enable_grad(), replaced_forwards({m: watching(m) for m in model.modules()}):
        logits = run(params, examples)
    return seen, logits


def _only_linear(model: nn.Module, adapted: set[int]) -> nn.Linear | None:
    """The linear layer that holds exactly the adapted parameters, if there is one and nothing is hooked into it."""
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            continue
        own = "weight" in module._parameters and "bias" in module._parameters  # and not made anew by a parametrization
        plain = own and type(module).forward is nn.Linear.forward and "forward" not in module.__dict__
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


def few_examples(examples: Tree, count: int) -> Tree:
    size = len(tree_leaves(examples)[0])
    return tree_map(lambda v: v[torch.arange(count, device=v.device) % size], examples)
