"""Independent truth for meta-gradients: Proposition 1 with dense matrices, and finite differences of the meta-objective.

Nothing here uses the engine: losses are written out again and parameters are one flat vector.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from headstart import TaskBatch

Flat = Callable[[Tensor, Tensor], Tensor]


def mean_loss(kind: str, logits: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    if kind == "cross_entropy":
        each = -logits.log_softmax(-1).gather(-1, y[:, None])[:, 0]
    else:
        target = F.one_hot(y, logits.shape[-1]).to(logits) if not y.is_floating_point() else y.reshape(logits.shape)
        each = 0.5 * ((logits - target) ** 2).sum(-1)
    return each.mean() if weight is None else (each * weight).sum() / weight.sum()


class Truth:
    """The losses of every task as functions of flat (w, φ)."""

    def __init__(self, model: nn.Module, adapted: tuple[str, ...], tasks: TaskBatch, loss: str, l2: float, prox: float = 0.0) -> None:
        own = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        self.names = ([n for n in own if n in adapted], [n for n in own if n not in adapted])
        self.shapes = {n: p.shape for n, p in own.items()}
        self.w, self.phi = (torch.cat([own[n].reshape(-1) for n in group]) if group else torch.zeros(0) for group in self.names)
        self.model, self.tasks, self.loss, self.l2, self.prox = model, tasks, loss, l2, prox

    def unflatten(self, w: Tensor, phi: Tensor) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for group, flat in zip(self.names, (w, phi), strict=True):
            at = 0
            for n in group:
                size = self.shapes[n].numel()
                out[n] = flat[at : at + size].view(self.shapes[n])
                at += size
        return out

    def side(self, t: int, side: str) -> Flat:
        x = getattr(self.tasks, f"{side}_x")
        y = getattr(self.tasks, f"{side}_y")[t]
        weight = getattr(self.tasks, side).weight
        x = {k: v[t] for k, v in x.items()} if isinstance(x, dict) else x[t]

        def value(w: Tensor, phi: Tensor) -> Tensor:
            args, kwargs = ((), x) if isinstance(x, dict) else ((x,), {})
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
                out = functional_call(self.model, self.unflatten(w, phi), args, kwargs)
            logits = getattr(out, "logits", out)
            loss = mean_loss(self.loss, logits, y, None if weight is None else weight[t])
            if side == "support":
                loss = loss + 0.5 * self.l2 * w @ w + 0.5 * self.prox * (w - self.w) @ (w - self.w)
            return loss

        return value

    def path(self, t: int, steps: int, lr: float, w: Tensor, phi: Tensor) -> list[Tensor]:
        path, L_S = [w], self.side(t, "support")
        for _ in range(steps):
            w = w.detach().requires_grad_()
            w = w.detach() - lr * torch.autograd.grad(L_S(w, phi), w)[0]
            path.append(w)
        return path

    def proposition_1(self, steps: int, lr: float, first_order: bool = False) -> dict[str, Tensor]:
        """∂/∂w = Π (I − α H_m) g and ∂/∂φ = ∇_φ L_D − α Σ_m C_m Π_{j>m} (I − α H_j) g, products written out, dense matrices."""
        dw, dphi = torch.zeros_like(self.w), torch.zeros_like(self.phi)
        eye = torch.eye(len(self.w))
        for t in range(len(self.tasks)):
            L_S, L_D = self.side(t, "support"), self.side(t, "query")
            path = self.path(t, steps, lr, self.w, self.phi)
            g = torch.func.grad(L_D, argnums=0)(path[-1], self.phi)
            direct = torch.func.grad(L_D, argnums=1)(path[-1], self.phi) if len(self.phi) else self.phi
            if first_order:
                dw, dphi = dw + g, dphi + direct
                continue
            H = [_jacobian(lambda w: _gradient(L_S, w, self.phi), path[m]) for m in range(steps)]  # noqa: B023
            C = [_jacobian(lambda p, m=m: _gradient(L_S, path[m], p), self.phi).T for m in range(steps)]  # noqa: B023
            total = g
            for m in range(steps):
                total = (eye - lr * H[steps - 1 - m]) @ total
            dw = dw + total
            for m in range(steps):
                tail = g
                for j in range(steps - 1, m, -1):
                    tail = (eye - lr * H[j]) @ tail
                direct = direct - lr * C[m] @ tail
            dphi = dphi + direct
        count = len(self.tasks)
        return {k: v.clone() for k, v in self.unflatten(dw / count, dphi / count).items()}

    def objective(self, steps: int, lr: float, w: Tensor, phi: Tensor) -> float:
        total = 0.0
        for t in range(len(self.tasks)):
            total += float(self.side(t, "query")(self.path(t, steps, lr, w, phi)[-1], phi))
        return total / len(self.tasks)

    def directional(self, steps: int, lr: float, dw: Tensor, dphi: Tensor, h: float = 2e-3) -> float:
        """The derivative of the meta-objective along (dw, dphi), by a six-point stencil (error h⁶)."""
        f = lambda k: self.objective(steps, lr, self.w + k * h * dw, self.phi + k * h * dphi)  # noqa: E731
        return (45 * (f(1) - f(-1)) - 9 * (f(2) - f(-2)) + (f(3) - f(-3))) / (60 * h)

    def flat(self, grads: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        w, phi = (torch.cat([grads[n].reshape(-1) for n in group]) if group else torch.zeros(0) for group in self.names)
        return w, phi


def _gradient(loss: Flat, w: Tensor, phi: Tensor) -> Tensor:
    if not w.requires_grad:
        w = w.requires_grad_()
    return torch.autograd.grad(loss(w, phi), w, create_graph=True)[0]


def _jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """d function / d at, one row per output, by one backward each."""
    if not len(at):
        return torch.zeros(len(function(at)), 0)
    at = at.detach().requires_grad_()
    out = function(at)
    rows = [torch.autograd.grad(o, at, retain_graph=True, allow_unused=True)[0] for o in out]
    return torch.stack([torch.zeros_like(at) if r is None else r for r in rows]).detach()


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest relative difference of two gradients, taken over all parameters together."""
    scale = max(float(v.norm()) for v in b.values())
    return max(float((a[k] - b[k]).norm()) for k in b) / scale
