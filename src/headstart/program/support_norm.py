"""Batch normalisation in use: what adapts is normalised by the support examples of its task, what is shared by training examples.

In training the inner loop normalises by the examples of a task. Normalised so, a layer's outputs do not depend on the size of its
weights; by the running averages of training they do, and steps that were learned for the one do harm in the other: Omniglot 5-way
1-shot with the last block and the head adapted has 41 % by running averages, 85 % by support examples and 87 % by support and query
examples, with the same weights. Statistics of the support examples alone, at the adapted weights, keep a prediction independent of other
queries (Bronskill et al., ICML 2020, compare such choices).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.partition import Partition
from headstart.program.cache import program_for
from headstart.program.description import Output
from headstart.program.modes import evaluating
from headstart.types import Tree

Statistics = tuple[Tensor, Tensor]


@contextmanager
def in_use(partition: Partition, examples: Tree, output: Output) -> Iterator[SupportNorm | None]:
    """Evaluation mode for a while, with what runs per step normalised by each task's support examples.

    Frozen layers (:meth:`Partition.frozen_norms`) go by their running averages.

    Args:
        partition: what adapts, and of which model.
        examples: a few, as the model takes them.
        output: takes the outputs out of what the model returns.

    Yields:
        What is at work; None where no batch normalisation runs per step.
    """
    frozen = partition.frozen_norms()
    with evaluating(partition.model), SupportNorm.set_aside(partition.model):
        layers = {} if frozen is None else {n: m for n, m in _per_step(partition, examples, output) if n not in frozen}
        if not layers:
            yield None
            return
        own = SupportNorm(layers)
        with own.at_work(partition.model):
            yield own


def _per_step(partition: Partition, examples: Tree, output: Output) -> list[tuple[str, nn.Module]]:
    """The layers of batch normalisation that keep running averages and are not in what runs once, by name."""
    norms = [(n, m) for n, m in partition.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return []
    program = program_for(partition, examples, output)
    if program.head is not None:
        return []
    once = tuple(f"{r.name}." for r in program.recorded)
    return [(n, m) for n, m in norms if not f"{n}.".startswith(once)]


class SupportNorm:
    """Lets layers of batch normalisation go by the examples they are given, and gives them statistics that they had before.

    Their own ``forward`` runs in evaluation mode: without running averages it takes statistics of its input.

    Args:
        layers: by name.
    """

    _at_work: ClassVar[dict[int, SupportNorm]] = {}

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = dict(layers)
        self.taken: dict[nn.Module, list[Statistics]] = {}
        self._calls: dict[nn.Module, int] = {}
        self._own: dict[nn.Module, tuple[Any, Any]] = {}
        self._phase: Literal["", "taking", "giving"] = ""
        self._hooks: list[Any] = []

    @classmethod
    def of(cls, model: nn.Module) -> SupportNorm | None:
        """What is at work in a model."""
        return cls._at_work.get(id(model))

    @classmethod
    @contextmanager
    def set_aside(cls, model: nn.Module) -> Iterator[None]:
        """The model as if nothing were at work in it, for a while."""
        before = cls._at_work.get(id(model))
        if before is None:
            yield
            return
        before._let_go(model)
        try:
            yield
        finally:
            before._take_hold(model)

    @contextmanager
    def at_work(self, model: nn.Module) -> Iterator[None]:
        """For a while; afterwards the layers have their running averages as they were."""
        self._take_hold(model)
        try:
            yield
        finally:
            self._let_go(model)

    def _take_hold(self, model: nn.Module) -> None:
        self._at_work[id(model)] = self
        self._hooks = [m.register_forward_pre_hook(self._before, with_kwargs=True) for m in self.layers.values()]
        self._hooks += [m.register_forward_hook(self._after, always_call=True) for m in self.layers.values()]

    def _let_go(self, model: nn.Module) -> None:
        del self._at_work[id(model)]
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Inside, the statistics of every call are kept."""
        self.taken = {m: [] for m in self.layers.values()}
        self._phase = "taking"
        try:
            yield
        finally:
            self._phase = ""

    @contextmanager
    def giving(self) -> Iterator[None]:
        """Inside, every call is normalised by the statistics that were kept of the same call."""
        self._calls = dict.fromkeys(self.layers.values(), 0)
        self._phase = "giving"
        try:
            yield
        finally:
            self._phase = ""

    def put_into(self, module: nn.Module) -> None:
        """Makes what was taken the running averages of a copy of the model.

        Raises:
            MethodError: a layer was called more than once, with other statistics each time.
        """
        with torch.no_grad():
            for name, layer in self.layers.items():
                found = self.taken[layer]
                if len(found) > 1:
                    raise MethodError(
                        f"{name!r} is called {len(found)} times, and an adapted model can hold one mean and variance for it; use a"
                        " layer of its own for every call, or freeze it (layer.eval())"
                    )
                own = module.get_submodule(name)
                for mean, var in found:
                    own.running_mean.copy_(mean)  # type: ignore[operator, union-attr]
                    own.running_var.copy_(var)  # type: ignore[operator, union-attr]

    def _before(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs["input"]
        self._own[layer] = layer._buffers["running_mean"], layer._buffers["running_var"]
        given: tuple[Tensor | None, Tensor | None] = (None, None)
        if self._phase == "giving":
            given = self.taken[layer][self._calls[layer]]
            self._calls[layer] += 1
        elif self._phase == "taking":
            like = layer._buffers["running_mean"]
            over = [d for d in range(x.dim()) if d != 1]
            var, mean = torch.var_mean(x.detach().to(like.dtype if like is not None else x.dtype), over, correction=0)
            self.taken[layer].append((mean, var))
        layer._buffers["running_mean"], layer._buffers["running_var"] = given

    def _after(self, layer: nn.Module, args: Any, out: Any) -> None:
        if layer in self._own:
            layer._buffers["running_mean"], layer._buffers["running_var"] = self._own.pop(layer)
