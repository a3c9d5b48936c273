"""Numbers that two ways of running a model must agree on, before the faster one is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from headstart.program.description import Program, detached
from headstart.program.run import Live, Record, apart, record, take
from headstart.types import Params, Tree


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two results are the same up to rounding in their type."""
    if a.shape != b.shape:
        return False
    if a.numel() == 0:
        return True
    if not a.is_floating_point():
        return bool((a == b).all())
    tolerance = 1e-8 if b.dtype == torch.float64 else 1e-3 if b.dtype == torch.float32 else 3e-2
    a, b = a.detach(), b.detach()
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, torch.zeros_like(a), a - b).abs().max()
    scale = b.where(b.isfinite(), torch.zeros_like(b)).abs().max()
    return bool(difference <= tolerance * (float(scale) + 1e-6))


def vmap_refusal(program: Program, examples: Tree) -> str:
    """Why what runs per step cannot run under ``vmap``, or "".

    It must run there, and give the loop's outputs, first and second derivatives: compared in float64, where the model runs in it,
    so that rounding is no difference.
    """
    kept = record(program, examples, None, gradient=False) if not program.reason else Record()
    try:
        refusal = _vmap_differs(program, kept, examples, lambda v: v.double() if v.is_floating_point() else v)
    except Exception:  # a model may insist on its own type
        refusal = None
    if refusal is not None and not refusal:
        try:  # in its own type it must run too
            return _vmap_differs(program, kept, examples, lambda v: v, compare=False)
        except Exception as error:
            return _first_line(error)
    if refusal is None:
        try:
            refusal = _vmap_differs(program, kept, examples, lambda v: v)
        except Exception as error:  # whatever it is, the loop is there
            return _first_line(error)
    return refusal


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _vmap_differs(program: Program, kept: Record, examples: Tree, cast: Callable[[Tensor], Tensor], compare: bool = True) -> str:
    """What differs between two tasks under vmap and one after the other, with all tensors cast."""
    params = {n: cast(p) for n, p in detached(program.model).items()}
    generator = torch.Generator().manual_seed(0)
    orders = [torch.tensor([0, 1, 2]), torch.tensor([2, 1, 0])]
    two = lambda v: torch.stack([cast(v.detach()[t.to(v.device)]) for t in orders])  # noqa: E731
    rows, x = {k: two(v) for k, v in kept.rows.items()}, tree_map(two, examples)
    constants = {k: cast(v.detach()) for k, v in kept.constants.items()}
    own = {n: cast(b) for n, b in program.model.named_buffers()}
    buffers = {n: torch.stack([own[n], own[n]]) for n in program.live_buffers}
    fixed = {n: b for n, b in own.items() if n not in buffers}
    noise = lambda v: 0.1 * torch.randn(2, *v.shape, generator=generator, dtype=torch.float32).to(v)  # noqa: E731
    start = {n: (params[n] + noise(params[n])).requires_grad_() for n in program.partition.adapted}

    def one(w: Params, rows: Any, x: Tree, buffers: Params) -> Tensor:
        return live.outputs({**params, **w}, rows, constants, apart(x), {**fixed, **buffers})[0]

    def alone() -> Tensor:
        part = lambda tree, t: tree_map(lambda v: v[t].clone() if tree is buffers else v[t], tree)  # noqa: E731
        return torch.stack([one(part(start, t), part(rows, t), part(x, t), part(buffers, t)) for t in range(2)])

    def together() -> Tensor:
        return torch.func.vmap(one, randomness="different")(start, rows, x, {n: b.clone() for n, b in buffers.items()})

    with torch.enable_grad(), Live(program, kept.specs) as live, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if not compare or program.random:
            _derivatives(together(), start)
            return ""
        by_vmap, by_loop = _derivatives(together(), start), _derivatives(alone(), start)
    same = len(by_vmap) == len(by_loop) and all(alike(a, b) for a, b in zip(by_vmap, by_loop, strict=True))
    return "" if same else "it gives other numbers there than one task after the other"


def _derivatives(outputs: Tensor, start: Params) -> list[Tensor]:
    """Outputs, the gradient of a function of them, and, where there is one, a product with its second derivative."""
    found, inputs = [outputs], list(start.values())
    if not outputs.requires_grad:
        return found
    first = torch.autograd.grad(outputs.double().square().sum(), inputs, create_graph=True, allow_unused=True)
    g = [torch.zeros_like(v) if u is None else u for u, v in zip(first, inputs, strict=True)]
    found.append(_flat(g))
    product = sum((a * b.detach().sign()).sum() for a, b in zip(g, inputs, strict=True))
    if isinstance(product, Tensor) and product.requires_grad:
        try:
            second = torch.autograd.grad(product, inputs, allow_unused=True)
        except RuntimeError:  # no second derivative: neither way has one
            return found
        found.append(_flat([torch.zeros_like(v) if u is None else u for u, v in zip(second, inputs, strict=True)]))
    return found


def _flat(tensors: list[Tensor]) -> Tensor:
    """One vector, so that what is zero but for rounding is compared at the size of the rest."""
    return torch.cat([v.detach().reshape(-1) for v in tensors])


def live_mixes(program: Program, examples: Tree) -> bool:
    """Whether an example's outputs depend on the examples beside it, in what runs per step, in the mode it is in."""
    kept = record(program, examples, None, gradient=False) if not program.reason else Record()
    own = dict(program.model.named_buffers())

    def first(order: list[int]) -> Tensor:
        index = torch.tensor(order)
        rows = {k: v[index.to(v.device)] for k, v in kept.rows.items()}
        buffers = {n: own[n].clone() for n in program.live_buffers}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs, _ = live.outputs(detached(program.model), rows, kept.constants, apart(take(examples, index)), buffers)
        return outputs[0]

    with Live(program, kept.specs) as live:
        expected = first([0, 1, 2])
        return not all(alike(first(order), expected) for order in ([0, 2, 1], [0, 1, 1], [0, 0, 0]))
