"""What analysing a model for a partition gives: an immutable description of what runs once and what runs per step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from headstart.errors import TaskError
from headstart.partition import Partition
from headstart.program.precision import Precision
from headstart.types import Params, Tree

Output = Callable[[Any], Tensor]
Key = tuple[str, int]
"""A recorded tensor: the submodule's name, and which tensor of its output."""
FEATURES: Key = ("", 0)
"""The input of a linear head."""


@dataclass(frozen=True)
class Recorded:
    """A submodule that is replayed: how to take its output apart and put it together again.

    ``batch_dims`` names, for each tensor of the output, the dimension that counts examples; None for a constant.
    """

    name: str
    module: nn.Module
    batch_dims: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """How a model is run for one partition, in one mode and for one kind of input.

    Args:
        partition: the split into w and φ.
        output: takes the outputs that losses are for from what the model returns.
        shape: (3, …) of the outputs of three examples.
        head: the linear layer, when it is all that adapts and its output is the model's.
        head_names: the names of its weight and, if it has one, bias.
        recorded: the submodules that are replayed.
        live: names of the shared parameters that every inner step uses.
        reason: why nothing is replayed, or "".
        step_flops: work of an inner step's forward pass on one example.
        channels_last: whether images go in that memory order, which convolutions are fastest with.
        vmap_refusal: why what runs per step cannot run under ``vmap``, or "".
        random: whether what runs per step draws random numbers in this mode.
        buffers: names of the buffers that change when the model runs.
        assigns: whether running it leaves other objects in its attributes.
        special: whether it calls functions that :mod:`headstart.program.kernels` computes in another way.
        mixes: whether what runs per step mixes examples with one another in this mode, as batch normalisation does in training.
        marks_inputs: whether the model lets its inputs ask for a gradient, to differentiate by them.
        features: the recorded tensor that is all that the layer with the adapted parameters is given, where there is one.
        ties: further names of tied parameters and buffers, and the first name of each.
        modules: all modules; they stay alive as long as the description, so that their identity names them.
        last: the layer whose output is the model's.
        precision: that the model runs in; None for what torch is set to.
    """

    partition: Partition
    output: Output
    shape: torch.Size
    head: nn.Linear | None
    head_names: tuple[str, ...]
    recorded: tuple[Recorded, ...]
    live: tuple[str, ...]
    reason: str
    step_flops: float = 0.0
    channels_last: bool = False
    vmap_refusal: str = ""
    random: bool = False
    buffers: tuple[str, ...] = ()
    assigns: bool = False
    special: bool = True
    mixes: bool = False
    marks_inputs: bool = False
    features: Key | None = None
    ties: tuple[tuple[str, str], ...] = ()
    modules: tuple[nn.Module, ...] = ()
    last: nn.Module | None = None
    precision: Precision | None = None

    @property
    def model(self) -> nn.Module:
        """The model that is run."""
        return self.partition.model

    @property
    def live_buffers(self) -> tuple[str, ...]:
        """Those of the buffers that change which are not inside a recorded submodule."""
        if self.head is not None:
            return ()
        inside = tuple(f"{r.name}." for r in self.recorded)
        return tuple(n for n in self.buffers if not n.startswith(inside))

    @property
    def training(self) -> bool:
        """Whether some module of the model trains."""
        return any(m.training for m in self.modules)


def key_of(model: nn.Module, examples: Tree) -> Hashable:
    """What a description depends on: the kind of the input, and the model's modules, modes, parameters and settings.

    Sizes of the input are no part of it: a text of another length needs no new analysis.
    """
    kind = tuple((v.dim(), v.dtype, v.device) for v in tree_leaves(examples))
    return kind, _structure(examples), tuple(_fingerprint(m) for m in model.modules())


def _structure(x: Tree) -> Any:
    if isinstance(x, dict):
        return tuple((k, _structure(v)) for k, v in x.items())
    return (type(x).__name__, *map(_structure, x)) if isinstance(x, tuple | list) else None


_SIMPLE = (bool, int, float, str, type(None))
_OWN = ("training", "_parameters", "_buffers", "_modules", "forward")


def _fingerprint(module: nn.Module) -> Hashable:
    """Whatever of a module can send its forward another way: a branch that is switched on must be noticed."""
    settings = []
    for name, value in module.__dict__.items():
        if name in _OWN:
            continue
        if isinstance(value, _SIMPLE) or (isinstance(value, tuple) and all(isinstance(v, _SIMPLE) for v in value)):
            settings.append((name, value))
        elif isinstance(value, dict) and name.endswith("_hooks"):
            settings.append((name, len(value)))
        elif callable(value) and not isinstance(value, type):
            settings.append((name, id(value)))
    own = tuple((name, id(p), p.requires_grad) for name, p in module._parameters.items() if p is not None)
    forward = module.__dict__.get("forward")
    return id(module), module.training, None if forward is None else id(forward), own, tuple(module._modules), tuple(settings)


def default_output(out: Any) -> Tensor:
    """The outputs in what a model returns: a tensor itself, or the ``logits`` of a dictionary or output object."""
    if isinstance(out, Tensor):
        return out
    if isinstance(out, Mapping) and isinstance(out.get("logits"), Tensor):
        return out["logits"]  # type: ignore[no-any-return]
    if isinstance(getattr(out, "logits", None), Tensor):
        return out.logits  # type: ignore[no-any-return]
    raise TaskError(
        f"the model returns {type(out).__name__}, which has no single tensor of logits; say which one with MetaLearner(…, output=f)"
    )


def ties_of(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Further names of tied parameters and buffers, and the first name of each."""
    found = []
    for every in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        first: dict[int, str] = {}
        for name, tensor in every:
            if first.setdefault(id(tensor), name) != name:
                found.append((name, first[id(tensor)]))
    return tuple(found)


def detached(model: nn.Module) -> Params:
    """The model's parameters as constants: it runs on them without a graph, and may itself differentiate by its inputs."""
    return {n: p.detach() for n, p in model.named_parameters()}
