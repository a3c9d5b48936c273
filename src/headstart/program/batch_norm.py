"""Batch normalisation in training whose second derivative takes a few passes over the activations, instead of some twenty.

With x̂ = (x − μ)/σ, the backward pass is g = γ/σ (dy − a − x̂ b), where a and b are the means of dy and dy·x̂ over a channel; so it is its own
adjoint. A direction u for g, with means p and q of u and u·x̂ and r of u·dy, gives

    ∂⟨u, g⟩/∂dy = γ/σ (u − p − x̂ q)                                        the backward pass again, of u
    ∂⟨u, g⟩/∂γ  = M/σ (r − p a − q b)                                      over the M numbers of a channel
    ∂⟨u, g⟩/∂x  = −γ/σ² (b u + q dy − (p b + a q) + (r − p a − 3 q b) x̂)

and directions for the gradients of γ and β add what is linear in dy and x̂.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm``: the same values and derivatives.

    torch's own runs in evaluation mode, in half precision, on accelerators, under ``vmap`` and in forward mode, and without weights.
    """
    given = [v for v in (input, weight, bias) if v is not None]
    ours = training and len(given) == 3 and all(_plain(v) for v in given)
    if not ours:
        with torch._C.DisableTorchFunctionSubclass():
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _Forward.apply(input, weight, bias, running_mean, running_var, momentum, eps)  # type: ignore[no-any-return]


def _plain(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    return forward_ad.unpack_dual(x).tangent is None


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, momentum: float, eps: float
    ) -> Tensor:
        y, *saved = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
        ctx.save_for_backward(x, weight, *saved)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, mean, scale = ctx.saved_tensors
        dx, dweight, dbias = _Backward.apply(dy, x, weight, mean, scale, ctx.eps)
        return dx, dweight, dbias, None, None, None, None


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, ...]:
        dx, dweight, dbias = _backward(dy, x, weight, mean, scale, eps)
        ctx.save_for_backward(dy, x, weight, mean, scale, dweight, dbias)
        ctx.eps = eps
        return dx, dweight, dbias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor, uweight: Tensor, ubias: Tensor) -> Any:
        dy, x, weight, mean, scale, dweight, dbias = ctx.saved_tensors  # scale is 1/σ
        count, over = x.numel() // x.shape[1], [d for d in range(x.dim()) if d != 1]
        wide = lambda v: v.reshape([-1 if d == 1 else 1 for d in range(x.dim())])  # noqa: E731
        gy, q, p = _backward(u, x, weight, mean, scale, ctx.eps)
        a, b, p, q, r = dbias / count, dweight / count, p / count, q / count, (u * dy).sum(over) / count
        inner = r - p * a - q * b
        # ∂/∂dy: γ/σ(…) of u, and those of Σ dy x̂ and Σ dy.
        slope = uweight * scale
        gy = torch.addcmul(gy, x, wide(slope)).add_(wide(ubias - slope * mean))
        # ∂/∂x as one line in u, dy and x for each channel: γ and β as above, Σ dy x̂ through x̂ = (x − μ)/σ.
        k = weight * scale * scale
        of_xhat = -k * (inner - 2 * q * b) - uweight * scale * b
        constant = k * (p * b + a * q) - uweight * scale * a - of_xhat * scale * mean
        gx = torch.addcmul(wide(constant), u, wide(-k * b))
        gx.addcmul_(dy, wide(uweight * scale - k * q)).addcmul_(x, wide(of_xhat * scale))
        return gy, gx, scale * count * inner, None, None, None


def _backward(dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = torch.ops.aten.native_batch_norm_backward(
        dy, x, weight, None, None, mean, scale, True, eps, [True, True, True]
    )
    return found
