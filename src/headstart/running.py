"""Ways to run a module for a while: in another mode, with other forwards, with kernels that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves, tree_map

from headstart.types import Tree

CHECKPOINTING = (
    "gradient checkpointing cannot be used in what runs per inner step; switch it off in the model"
    " (gradient_checkpointing_disable() in transformers), and use Recursive() to save memory"
)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module is in the mode it was in."""
    was = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was.items():
            module.training = training


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
def undisturbed(model: nn.Module, examples: Tree, randomness: bool = True) -> Iterator[None]:
    """Restores buffers and, if ``randomness``, the random state afterwards, so that a run leaves no trace."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    devices = sorted({leaf.get_device() for leaf in tree_leaves(examples) if leaf.is_cuda})
    try:
        with torch.random.fork_rng(devices, enabled=randomness):
            yield
    finally:
        with torch.no_grad():
            for name, b in model.named_buffers():
                if name in buffers:  # some models make a buffer when they first run
                    b.copy_(buffers[name])


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Kernels that have a second derivative, where the default ones have none, or a wrong one.

    Fused attention and fused recurrent layers have none. That of fused weight normalisation is wrong in torch 2.13 on a CPU:
    second derivatives differ from finite differences by some percent (tests/test_hard_models.py).

    Gradient checkpointing would run parts of the model again after the adapted parameters are gone: refused.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.autograd.graph.disable_saved_tensors_hooks(CHECKPOINTING))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(one_path())
        norms = [m for m in model.modules() if isinstance(m, parametrizations._WeightNorm)]
        stack.enter_context(replaced_forwards({m: _weight_norm(m) for m in norms}))
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


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
