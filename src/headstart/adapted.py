"""What adapting to one task gives: a model for that task, with tensors of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from headstart.errors import MethodError
from headstart.keeping import KeptAdapted
from headstart.loss import Kind, Loss
from headstart.program.description import Output
from headstart.program.support_norm import SupportNorm
from headstart.target_scale import InUnit, TargetScale
from headstart.task_checks import as_tensors
from headstart.types import Params, Tree


@dataclass(frozen=True)
class Reading:
    """How outputs are read.

    Args:
        loss: the loss they are for.
        kind: what they mean.
        class_dim: the dimension that counts classes.
        unseen: (C,) which outputs are of classes that the support set has no example of, where there are some.
    """

    loss: Loss
    kind: Kind
    class_dim: int = 1
    unseen: Tensor | None = None

    @classmethod
    def of(cls, loss: Loss, outputs: torch.Size, y: Tensor) -> Reading:
        """For (n, …) outputs and labels like the (S, …) ones given."""
        kind = loss.kind_for(y)
        dense = kind == "classes" and not y.is_floating_point()
        if not dense:
            return cls(loss, kind)
        unseen = None
        if y.dim() == 1 and len(outputs) == 2 and bool((y >= 0).any()):
            unseen = torch.ones(outputs[1], dtype=torch.bool, device=y.device)
            unseen[y[y >= 0]] = False
        found = unseen if unseen is not None and bool(unseen.any()) else None
        return cls(loss, kind, loss.class_dimension(outputs, torch.Size((outputs[0], *y.shape[1:]))), found)

    def possible(self, outputs: Tensor) -> Tensor:
        """(n, …) outputs; those of classes without an example say that it is impossible, as nothing was learned of them."""
        if self.unseen is None:
            return outputs
        never = 0.0 if self.loss.scores == "probabilities" else -torch.inf
        return outputs.masked_fill(self.unseen.to(outputs.device), never)


@dataclass(frozen=True, eq=False)
class Adapted(KeptAdapted):
    """A model adapted to one task: a value, which further training does not change and many threads may use.

    Args:
        module: an ordinary module in evaluation mode, with the adapted weights.
        w: its adapted parameters, by name.
        output: takes the outputs out of what it returns.
        reading: how outputs are read, by the loss it was adapted by.
        target_scale: the unit of real targets, in which outputs are given.

    Example:
        >>> import headstart as hs
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=3, lr=0.5)
        >>> adapted = learner.adapt(torch.randn(6, 4), torch.tensor([0, 1] * 3))
        >>> adapted.predict(torch.randn(3, 4)).shape
        torch.Size([3])
        >>> x = torch.randn(3, 4)
        >>> adapted.logits(x).shape, adapted.predict_proba(x).sum(1).allclose(torch.ones(3)), adapted.to_module()(x).shape
        (torch.Size([3, 2]), True, torch.Size([3, 2]))
    """

    module: nn.Module
    w: Params
    output: Output
    reading: Reading
    target_scale: TargetScale | None = None

    def __repr__(self) -> str:
        numbers = sum(v.numel() for v in self.w.values())
        return f"Adapted({type(self.module).__name__}, {numbers} numbers adapted in {', '.join(self.w)})"

    @classmethod
    def of(
        cls,
        snapshot: Snapshot,
        model: nn.Module,
        w: Params,
        head_names: tuple[str, ...],
        output: Output,
        reading: Reading,
        target_scale: TargetScale | None,
        norms: SupportNorm | None = None,
    ) -> Adapted:
        """The adapted model of a task, from its w and what its support examples were normalised by; φ is the model's as it stands.

        Raises:
            MethodError: the model cannot be copied, or a layer was normalised in more than one way.

        Example:
            >>> import headstart as hs
            >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=3, lr=0.5)
            >>> one = learner.adapt(torch.randn(6, 4), torch.tensor([0, 1] * 3))
            >>> two = Adapted.of(Snapshot(), learner.model, one.w, learner.partition.head, one.output, one.reading, None)
            >>> x = torch.randn(3, 4)
            >>> two.logits(x).equal(one.logits(x))
            True
        """
        w = in_type_of(w, dict(model.named_parameters()), head_names)
        with SupportNorm.set_aside(model):
            module = snapshot.module(model, w)
        fitted_head(module, head_names)
        if norms is not None:
            norms.put_into(module)
        return cls(module, w, output, reading, target_scale)

    def logits(self, x: Tree) -> Tensor:
        """(n, …) outputs for (n, …) examples: a tensor, an array, a list, or a tuple or dictionary of these for several inputs."""
        x = tree_map(lambda v: v.detach(), as_tensors(x))
        args, kwargs = (x, {}) if isinstance(x, tuple) else ((), x) if isinstance(x, dict) else ((x,), {})
        # No parameter asks for a gradient; a model that differentiates by its inputs still may.
        with torch.enable_grad():
            outputs = self.output(self.module(*args, **kwargs)).detach()
        return outputs if self.target_scale is None else self.target_scale.back(outputs)

    def predict(self, x: Tree) -> Tensor:
        """(n,) class indices for (n, …) examples, or (n, …) of positions; 0 or 1 for yes-or-no questions; for a regression the outputs."""
        return self.reading.loss.predict(self.reading.possible(self.logits(x)), self.reading.kind, self.reading.class_dim)

    def predict_proba(self, x: Tree) -> Tensor:
        """Class probabilities in the shape of the outputs, such as (n, C); (n, 2) for one yes-or-no question, (n, k) for several.

        A class that the support set has no example of, where the model has more outputs than the task has classes, gets 0.

        Raises:
            TaskError: the targets are real numbers.
        """
        return self.reading.loss.probabilities(self.reading.possible(self.logits(x)), self.reading.kind, self.reading.class_dim)

    def to_module(self) -> nn.Module:
        """An ordinary, independent module with the adapted weights, in evaluation mode."""
        found = copy.deepcopy(self.module)
        for p in found.parameters():
            p.requires_grad_(True)
        return found if self.target_scale is None else InUnit(found, self.target_scale)


@dataclass
class Snapshot:
    """The parameters of a model as they are, shared by all that is adapted until one of them changes."""

    versions: tuple[tuple[int, int], ...] = ()
    values: dict[str, Tensor] = field(default_factory=dict)

    def module(self, model: nn.Module, w: Mapping[str, Tensor]) -> nn.Module:
        """A copy of a model in evaluation mode, in which w stands for the parameters of those names.

        Raises:
            MethodError: the model cannot be copied.
        """
        own = dict(model.named_parameters())
        versions = tuple((id(p), p._version) for p in own.values())
        if versions != self.versions:
            self.versions, self.values = versions, {n: p.detach().clone() for n, p in own.items()}
        memo: dict[int, object] = {id(p): nn.Parameter(w[n] if n in w else self.values[n], requires_grad=False) for n, p in own.items()}
        for module in model.modules():  # activations that the model keeps have a graph, and no copy
            for value in tree_leaves([v for k, v in module.__dict__.items() if k not in ("_parameters", "_buffers", "_modules")]):
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
        try:
            found = copy.deepcopy(model, memo)
        except Exception as error:  # whatever an attribute of the model has against being copied
            raise MethodError(
                f"{type(model).__name__} cannot be copied, which an adapted model needs ({error}); leave what cannot be copied out of its"
                " attributes, or give the module that holds it a __deepcopy__"
            ) from error
        return found.eval()


def fitted_head(module: nn.Module, head_names: tuple[str, ...]) -> None:
    """Lets a linear layer whose weight has other rows than it was built with say so."""
    if head_names:
        path = head_names[0].rpartition(".")[0]
        layer = module.get_submodule(path)
        layer.out_features = module.get_parameter(head_names[0]).shape[0]  # type: ignore[assignment]


def in_type_of(w: Params, like: Mapping[str, Tensor], head_names: tuple[str, ...]) -> Params:
    """Adapted weights in the types of the model's own; biases of half-precision heads are shifted into their range, all alike."""
    found = dict(w)
    if len(head_names) == 2 and like[head_names[1]].dtype.itemsize < 4:
        bias = found[head_names[1]]
        found[head_names[1]] = (bias - bias.max()).clamp_min(torch.finfo(like[head_names[1]].dtype).min / 4)
    return {k: v.to(like[k].dtype) for k, v in found.items()}
