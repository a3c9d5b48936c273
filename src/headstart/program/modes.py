"""Ways to run a module for a while that leave no trace: another mode, other forwards, its own tensors and attributes afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from headstart.types import Tree

_ONE_AT_A_TIME = threading.RLock()
"""While a model runs for us its modules have other modes, forwards and tensors, which threads cannot share."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, for one thread at a time; afterwards every module is in the mode it was in."""
    with _ONE_AT_A_TIME:
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


class Kept:
    """The tensors and attributes of a model's modules, to be put back after it has run.

    Args:
        model: the model.
        state: whether buffers that a run assigns anew move on to the new values, as in training, or stay.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in model.modules()]

    def changed(self) -> bool:
        """Whether an attribute or a tensor is another object than it was."""
        return any(
            not _same(m.__dict__, attributes) or not _same(m._parameters, parameters) or not _same(m._buffers, buffers)
            for m, attributes, parameters, buffers in self.modules
        )

    def put_back(self, state: bool = False) -> None:
        """Every module has its own objects again; with ``state`` the values of buffers that were assigned anew are kept in them."""
        for module, attributes, parameters, buffers in self.modules:
            if not _same(module._buffers, buffers):
                for name, own in buffers.items():
                    new = module._buffers.get(name)
                    if not state or own is None or new is None or new is own or new.shape != own.shape:
                        continue
                    if not torch._C._functorch.is_functorch_wrapped_tensor(new):  # type: ignore[attr-defined]
                        with torch.no_grad():
                            own.copy_(new.detach())
                _restore(module._buffers, buffers)
            if not _same(module._parameters, parameters):
                _restore(module._parameters, parameters)
            if not _same(module.__dict__, attributes):
                training = module.__dict__.get("training")
                _restore(module.__dict__, attributes)
                module.__dict__["training"] = training


def _same(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return len(now) == len(before) and all(k in now and now[k] is v for k, v in before.items() if k not in ("training", "forward"))


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [k for k in now if k not in before]:
        if name != "forward":
            del now[name]
    now.update({k: v for k, v in before.items() if k != "forward"})


@contextmanager
def undisturbed(model: nn.Module, examples: Tree, randomness: bool = True) -> Iterator[None]:
    """Puts back buffers, attributes and, if ``randomness``, the random state afterwards, so that a run leaves no trace."""
    kept = Kept(model)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    devices = sorted({leaf.get_device() for leaf in tree_leaves(examples) if leaf.is_cuda})
    try:
        with torch.random.fork_rng(devices, enabled=randomness):
            yield
    finally:
        kept.put_back()
        with torch.no_grad():
            for name, b in model.named_buffers():
                if name in buffers and b.shape == buffers[name].shape:  # some models make a buffer when they first run
                    b.copy_(buffers[name])
