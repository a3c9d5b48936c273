"""Kernels that can be differentiated twice, where the default ones cannot, are slow at it, or give something else under vmap."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_map

from headstart.errors import MethodError
from headstart.program.batch_norm import batch_norm
from headstart.program.modes import replaced_forwards
from headstart.types import Tree

CHECKPOINTING = (
    "gradient checkpointing cannot be used in what runs per inner step; switch it off in the model"
    " (gradient_checkpointing_disable() in transformers), and use Recursive() to save memory"
)
REMEDY = "use FirstOrder(), which needs no second derivative, or adapt a part of the model that comes after it"


@contextmanager
def twice_differentiable(model: nn.Module, special: bool = True) -> Iterator[None]:
    """Kernels that have a second derivative, where the default ones have none, or a wrong one.

    Fused attention and fused recurrent layers have none. That of fused weight normalisation is wrong in torch 2.13 on a CPU:
    second derivatives differ from finite differences by some percent (tests/test_hard_models.py).

    Gradient checkpointing would run parts of the model again after the adapted parameters are gone: refused.

    Args:
        model: what runs inside.
        special: whether it calls one of :data:`SPECIAL`, which are then computed in another way.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.autograd.graph.disable_saved_tensors_hooks(CHECKPOINTING))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(one_path())
        norms = [m for m in model.modules() if isinstance(m, parametrizations._WeightNorm)]
        if norms:
            stack.enter_context(replaced_forwards({m: _weight_norm(m) for m in norms}))
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        if special:
            stack.enter_context(Special())
        yield


class Special(TorchFunctionMode):
    """Computes the functions of :data:`SPECIAL` in another way, and notes which were called.

    Attributes:
        seen: names of those that were called.
        names: whether names of all functions are kept in ``seen``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        way = SPECIAL.get(func)
        if way is None:
            return func(*args, **(kwargs or {}))
        self.seen.add(resolve_name(func) or getattr(func, "__name__", str(func)))
        return way(*args, **(kwargs or {}))


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    return _norm(difference, p, "torch.cdist")


def _pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    found = _norm(x1 - x2 + eps, p, "pairwise_distance")
    return found.unsqueeze(-1) if keepdim else found


def _norm(x: Tensor, p: float, name: str) -> Tensor:
    """The p-norm over the last dimension, with derivative 0 where it is 0."""
    if p == 2:
        square = x.square().sum(-1)
        return torch.where(square > 0, square.where(square > 0, 1.0).sqrt(), 0.0)
    if p == 1:
        return x.abs().sum(-1)
    raise MethodError(f"{name} with p={p:g} has no second derivative here, only with p=1 and p=2 has it; {REMEDY}")


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3.0) / 6.0


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """An embedding whose padding row gets no gradient, under vmap too."""
    if max_norm is not None or scale_grad_by_freq:
        what = "max_norm, which changes the weights while they are used" if max_norm is not None else "scale_grad_by_freq"
        raise MethodError(f"torch.nn.Embedding with {what} cannot adapt or run per inner step; leave it out, or adapt what comes after it")
    if padding_idx is not None:
        row = torch.arange(weight.shape[0], device=weight.device)[:, None] == padding_idx % weight.shape[0]
        weight = torch.where(row, weight.detach(), weight)
    return _plain_embedding(input, weight)


def _plain_embedding(input: Tensor, weight: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return torch.embedding(weight, input)


def _embedding_bag(input: Tensor, weight: Tensor, offsets: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """A bag of embeddings out of an embedding and a reduction."""
    bound = _BAG.bind(input, weight, offsets, *args, **kwargs)
    bound.apply_defaults()
    own = bound.arguments
    if offsets is not None or input.dim() != 2:
        raise MethodError(f"torch.nn.EmbeddingBag with offsets has no second derivative; give (n, length) bags, or {REMEDY}")
    rows = _embedding(input, weight, own["padding_idx"], own["max_norm"], scale_grad_by_freq=own["scale_grad_by_freq"])
    there = torch.ones_like(input, dtype=weight.dtype)
    if own["padding_idx"] is not None:
        there = (input != own["padding_idx"] % weight.shape[0]).to(weight.dtype)
    if own["mode"] == "max":
        rows = rows.masked_fill(there.unsqueeze(-1) == 0, -torch.inf)
        found = rows.amax(1)
        return torch.where(found.isinf(), torch.zeros_like(found), found)
    scale = there if own["per_sample_weights"] is None else there * own["per_sample_weights"]
    total = (rows * scale.unsqueeze(-1)).sum(1)
    return total / there.sum(1, keepdim=True).clamp_min(1) if own["mode"] == "mean" else total


_BAG = inspect.signature(F.embedding_bag)
SPECIAL: dict[Any, Callable[..., Any]] = {
    torch.cdist: _cdist,
    torch.pairwise_distance: _pairwise_distance,
    F.pairwise_distance: _pairwise_distance,
    F.hardsigmoid: _hardsigmoid,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.batch_norm: batch_norm,
}
"""Functions whose second derivative is missing or slow, or with other results under vmap, and how they are computed: the same values."""


def _weight_norm(module: nn.Module) -> Callable[..., Tensor]:
    """Weight normalisation out of operations whose derivatives are right."""

    def forward(g: Tensor, v: Tensor) -> Tensor:
        others = [d for d in range(v.dim()) if d != module.dim]  # module.dim is -1 for one norm over everything
        return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=module.dim != -1))

    return forward


def has_old_weight_norm(module: nn.Module) -> bool:
    """Whether ``torch.nn.utils.weight_norm``, the older kind that cannot be replaced, is at work in a module."""
    return any(isinstance(hook, WeightNorm) for m in module.modules() for hook in m._forward_pre_hooks.values())


@contextmanager
def one_path() -> Iterator[None]:
    """PyTorch's transformer layers take the same way with and without gradients; else a replay could miss its submodules."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def channels_last(x: Tree) -> Tree:
    """Images in the memory order that convolutions are fastest with; the values stay the same."""
    return tree_map(lambda v: v.contiguous(memory_format=torch.channels_last) if isinstance(v, Tensor) and v.dim() == 4 else v, x)


def explained(error: RuntimeError, model: nn.Module) -> Exception:
    """What an error of torch's in an inner loop means, as an error that says what to do; the error itself where that is not known."""
    text = str(error)
    if CHECKPOINTING in text:
        return MethodError(CHECKPOINTING)
    if "once_differentiable" in text:
        operation = "a function that is marked as once differentiable"
    elif "derivative for" in text and "not implemented" in text:
        operation = text.partition("derivative for")[2].partition("is not implemented")[0].strip().removeprefix("aten::")
    else:
        return error
    key = operation.strip("_").removesuffix("_backward").replace("_", "")
    kinds = sorted({type(m).__name__ for m in model.modules() if key and key in type(m).__name__.lower()})
    where = f" of {', '.join(kinds)}" if kinds else f", in {type(model).__name__} or its loss,"
    return MethodError(f"{operation}{where} has no second derivative, which an exact meta-gradient needs; {REMEDY}")
