"""A plain loop in float64: inner steps by autograd with their graph, one more gradient outside. Slow, and the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import headstart as hs

Update = Callable[[int, dict[str, Tensor], dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]


def plain_gradient(
    model: nn.Module,
    adapted: tuple[str, ...],
    tasks: hs.TaskBatch,
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    lr: float,
    update: Update | None = None,
    first_order: bool = False,
) -> dict[str, Tensor]:
    """The gradient, by name, of the mean over tasks of ``loss(outputs, y)`` after adaptation; buffers stay as they are."""
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    losses = []
    for t in range(len(tasks)):
        pick = lambda x: {k: v[t].clone() for k, v in x.items()} if isinstance(x, dict) else (x[t].clone(),)  # noqa: B023, E731
        run = lambda p, x: functional_call(  # noqa: E731
            model, {**{n: b.clone() for n, b in model.named_buffers()}, **p}, *((), x) if isinstance(x, dict) else (x,)
        )
        params, state = dict(own), dict[str, Any]()
        for m in range(steps):
            value = loss(run(params, pick(tasks.support_x)), tasks.support_y[t])
            w = {n: params[n] for n in adapted}
            found = torch.autograd.grad(value, list(w.values()), create_graph=not first_order, allow_unused=True)
            g = {n: torch.zeros_like(w[n]) if v is None else v for n, v in zip(w, found, strict=True)}
            params |= update(m, w, g, state) if update else {n: w[n] - lr * g[n] for n in w}
        losses.append(loss(run(params, pick(tasks.query_x)), tasks.query_y[t]))
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(own.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g.detach() for (n, p), g in zip(own.items(), grads, strict=True)}


def off_by(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest entry of all."""
    scale = max(float(v.abs().max()) for v in expected.values()) + 1e-12
    worst = [float((found[n].detach() - v).abs().max()) / scale for n, v in expected.items()]
    return max(float("inf") if v != v else v for v in worst)
