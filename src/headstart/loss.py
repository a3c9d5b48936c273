"""A loss: a function of torch's kind, of flat examples, its mean over each task, and how the outputs it is taken of are read."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import ConfigError, TaskError
from headstart.tasks import NO_LABEL, Side
from headstart.types import Linearised, Params, Tree

Kind = Literal["classes", "binary", "real"]
WANTS = ("inputs", "weights")


@dataclass(frozen=True)
class Loss:
    """A loss per example, and what the outputs it is taken of mean.

    Args:
        name: how it is called in messages and configs.
        per_example: (n, …) outputs and (n, …) targets of any n examples to (n,) losses, or (n, …) ones, whose mean counts. With
            ``per_task`` it gets the examples of one task, and may return one number for all of them. If it has a parameter named
            ``inputs`` it also gets the examples, and if one named ``weights``, the adapted parameters by name.
        residual: (…, C) outputs and (…) or (…, C) targets to the (…, C) derivative of the losses in the outputs; None where only
            autograd knows it. The linear head in sample space needs it.
        kind: ``"classes"``: outputs are a score for each class, targets class indices or a probability for each class;
            ``"binary"``: an output for each yes-or-no question; ``"real"``: targets are numbers. None goes by the targets: whole
            numbers are classes.
        scores: what the outputs are: ``"logits"``, ``"log_probabilities"`` or ``"probabilities"``.
        per_task: call it once for each task.
        ignore: the class index that stands for no label.
        class_dim: the dimension of dense outputs that counts classes, 1 (as in torch) or -1; None finds it by the shapes.
        line: outputs and targets to the residual, and a function from (…, C) directions to the products of its (symmetric) derivative
            in the outputs with them; None lets autograd find it.

    Raises:
        ConfigError: a reducing criterion of torch's was given.

    Example:
        >>> import headstart as hs
        >>> own, outputs, y = hs.losses.cross_entropy, torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> own.kind_for(y), own.class_dimension(outputs.shape, y.shape), own.wants, own.predict(outputs, "classes").tolist()
        ('classes', 1, (), [0, 1])
        >>> own.probabilities(outputs, "classes").shape, own.means(outputs[None], y[None]).shape
        (torch.Size([2, 2]), torch.Size([1]))
        >>> own.hits(outputs[None], y[None])[0].tolist(), len(own.judged(outputs[None], y[None]))
        ([[1.0, 0.0]], 3)
        >>> own.right(outputs[None], hs.Side(torch.arange(2)[None], y[None]))[0].item(), own.arranged(outputs, y)[0].shape
        (1.0, torch.Size([2, 2]))
        >>> own.check(outputs.shape, y[None], ways=2), own.linearised(outputs, y)[1](torch.ones(2, 2)).abs().max() < 1e-6
        (None, tensor(True))
    """

    name: str
    per_example: Callable[..., Tensor]
    residual: Callable[[Tensor, Tensor], Tensor] | None = None
    kind: Kind | None = None
    scores: Literal["logits", "log_probabilities", "probabilities"] = "logits"
    per_task: bool = False
    ignore: int = NO_LABEL
    class_dim: int | None = None
    line: Callable[[Tensor, Tensor], Linearised] | None = None

    def __post_init__(self) -> None:
        if self.kind not in (None, "classes", "binary", "real"):
            raise ConfigError(f'kind={self.kind!r}: use "classes", "binary", "real" or None')

    def linearised(self, outputs: Tensor, y: Tensor) -> Linearised:
        """The residual at some outputs, and the products of its derivative there.

        Raises:
            ConfigError: the residual is not known.
        """
        if self.line is not None:
            return self.line(outputs, y)
        if self.residual is None:
            raise ConfigError(f"the loss {self.name!r} has no residual; give its Loss one")
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            residual = self.residual(outputs, y)
        return residual.detach(), lambda v: torch.autograd.grad([residual], [outputs], [v])[0]

    # -- values --------------------------------------------------------------------------------------------------------

    def means(self, outputs: Tensor, y: Tensor, weight: Tensor | None = None, blank: bool = False, extras: Extras | None = None) -> Tensor:
        """(T,) weighted mean losses over the (T, n, …) examples of each task, over those that have a label.

        Args:
            outputs, y: (T, n, …).
            weight: (T, n), summing to one; None for equal weights.
            blank: whether some label is missing.
            extras: (task) to its inputs and weights, for a loss that takes them.

        Raises:
            TaskError: shapes do not fit, or the loss does not give a value per example.
        """
        if self.per_task or self.wants:
            return torch.stack([self._of_task(t, outputs, y, weight, extras) for t in range(len(y))])
        values = self._values(outputs.flatten(0, 1), y.flatten(0, 1)).unflatten(0, y.shape[:2])
        share = self._labelled(values, y) if blank or self.ignore != NO_LABEL else None
        return _mean(values, weight, share)

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """(T, n) the loss of each of the (T, n, …) examples."""
        values = self._values(outputs.flatten(0, 1), y.flatten(0, 1)).unflatten(0, y.shape[:2])
        return values.flatten(2).mean(2) if values.dim() > 2 else values

    @functools.cached_property
    def wants(self) -> tuple[str, ...]:
        """Which of the inputs and the adapted weights it takes."""
        function = self.per_example
        try:
            own = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
        except (TypeError, ValueError):
            return ()
        return tuple(name for name in WANTS if name in own)

    def _of_task(self, t: int, outputs: Tensor, y: Tensor, weight: Tensor | None, extras: Extras | None) -> Tensor:
        kept = slice(None) if weight is None else weight[t] > 0
        more = extras(t, self.wants) if extras is not None and self.wants else {}
        if "inputs" in more and weight is not None:
            more["inputs"] = torch.utils._pytree.tree_map(lambda v: v[kept], more["inputs"])
        values = self._raw(outputs[t][kept], y[t][kept], **more)
        if values.dim() == 0:
            return values
        self._check_values(values, outputs[t][kept], y[t][kept])
        share = self._labelled(values[None], y[t][kept][None]) if not y.is_floating_point() else None
        return _mean(values[None], None if weight is None else weight[t][kept][None], share)[0]

    def _values(self, outputs: Tensor, y: Tensor) -> Tensor:
        values = self._raw(outputs, y)
        self._check_values(values, outputs, y)
        return values

    def _raw(self, outputs: Tensor, y: Tensor, **more: Any) -> Tensor:
        # Half-precision models keep their weights in half; the loss is always taken in single precision or better.
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        outputs, y = self.arranged(outputs, y)
        return self.per_example(outputs, y, **more)

    def _check_values(self, values: Tensor, outputs: Tensor, y: Tensor) -> None:
        good = {y.shape[:1], y.shape, outputs.shape, outputs.shape[:-1], outputs.shape[:1] + outputs.shape[2:]}
        if not isinstance(values, Tensor) or values.shape not in good:
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise TaskError(
                f"the loss {self.name!r} returned shape {found} for {len(y)} examples with targets {tuple(y.shape)} and outputs"
                f" {tuple(outputs.shape)}; it must give one value per example, and not reduce or broadcast them (a loss of a whole"
                " task: hs.losses.Loss(name, f, per_task=True))"
            )

    def _labelled(self, values: Tensor, y: Tensor) -> Tensor | None:
        """Of which (T, n, …) values there is a label, as numbers."""
        if y.is_floating_point():
            return None
        there = (y != self.ignore).to(values.dtype)
        if there.shape == values.shape:
            return there
        return there.flatten(2).mean(2) if there.dim() > 2 else there

    # -- shapes --------------------------------------------------------------------------------------------------------

    def arranged(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets of n examples in the shapes that torch's losses take.

        Raises:
            TaskError: they do not fit together; the message names the argument that helps.
        """
        kind = self.kind_for(y)
        if kind == "classes" and not y.is_floating_point():
            dim = self.class_dimension(outputs.shape, y.shape)
            return (outputs if dim == 1 else outputs.movedim(dim, 1)), y
        if kind == "classes" and outputs.shape != y.shape:
            raise TaskError(
                f"the targets are real numbers of shape {tuple(y.shape)}, but the loss is {self.name} over outputs"
                f" {tuple(outputs.shape)}; use loss='squared_error' for real targets, 'binary_cross_entropy' for yes or no, or give a"
                " probability for each class"
            )
        if kind == "binary":
            return outputs, self._like(outputs, y).to(outputs.dtype)
        if kind == "real" and self.kind == "real":
            if not y.is_floating_point() and y.dim() == 1 and outputs.dim() == 2 and outputs.shape[1] > 1:
                return outputs, F.one_hot(y, outputs.shape[1]).to(outputs.dtype)
            return outputs, self._like(outputs, y).to(outputs.dtype)
        return outputs, y

    def _like(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Targets in the shape of the outputs, where they are the same numbers."""
        if y.shape == outputs.shape:
            return y
        squeezed = [tuple(s for s in v.shape[1:] if s != 1) for v in (outputs, y)]
        if squeezed[0] != squeezed[1]:
            raise TaskError(
                f"targets have shape {tuple(y.shape)} and outputs {tuple(outputs.shape)}: give one target per output, or build the"
                f" model with as many outputs as there are targets"
            )
        return y.reshape(outputs.shape)

    def kind_for(self, y: Tensor) -> Kind:
        """What outputs for such targets mean."""
        return self.kind or ("real" if y.is_floating_point() else "classes")

    def class_dimension(self, outputs: torch.Size, y: torch.Size) -> int:
        """The dimension of (n, …) outputs that counts classes, for class indices of shape y.

        Raises:
            TaskError: there is none, or it could be either of two.
        """
        if len(outputs) == 2 and len(y) == 1:
            if outputs[1] == 1 and self.name == "cross_entropy":
                raise TaskError(
                    'the model has one output, which cannot tell classes apart by cross_entropy; use loss="binary_cross_entropy"'
                )
            return 1
        if len(outputs) == 1 and len(y) == 1:
            raise TaskError(
                f"outputs have shape {tuple(outputs)} and labels {tuple(y)}: there is no score for each class; use"
                ' loss="binary_cross_entropy" for one output per example, or output=f that gives (n, classes)'
            )
        first, last = outputs[:1] + outputs[2:] == y, outputs[:-1] == y
        if self.class_dim is not None and (first if self.class_dim == 1 else last):
            return self.class_dim
        if first and last and len(outputs) > 2:
            raise TaskError(
                f"outputs {tuple(outputs)} for labels {tuple(y)} could have their classes in dimension 1 or last; say which with"
                " loss=dataclasses.replace(hs.losses.cross_entropy, class_dim=-1), or make the shapes differ with output=f"
            )
        if first:
            return 1
        if last:
            return -1
        raise TaskError(
            f"outputs have shape {tuple(outputs)} and labels {tuple(y)}: labels need the outputs' shape without the dimension of the"
            " classes; choose the right output of the model with MetaLearner(…, output=f)"
        )

    def check(self, outputs: torch.Size, y: Tensor, ways: int | None) -> None:
        """Refuses tasks that a model with (n, …) outputs cannot be trained on by this loss.

        Args:
            outputs: of n examples.
            y: (T, n', …) labels.
            ways: of the tasks.

        Raises:
            TaskError: it says why, and what to do.
        """
        n = outputs[0]
        like = torch.empty((n, *y.shape[2:]), dtype=y.dtype, device="meta")
        self.arranged(torch.empty(outputs, device="meta"), like)
        if ways is None or self.kind_for(y) != "classes":
            if self.kind_for(y) == "binary" and ways is not None and ways > 2:
                raise TaskError(f"the tasks have labels up to {ways - 1}, but {self.name} tells 0 from 1; use loss='cross_entropy'")
            return
        classes = outputs[self.class_dimension(outputs, like.shape)]
        if ways > classes:
            raise TaskError(
                f"the tasks have labels up to {ways - 1}, but the model has {classes} outputs;"
                f" build the model with at least {ways}, take tasks with at most {classes} ways, or adapt the head alone with"
                " start=hs.SharedVector() or start=hs.Prototypes(), which shape it by the tasks"
            )

    # -- reading outputs -----------------------------------------------------------------------------------------------

    def predict(self, outputs: Tensor, kind: Kind, class_dim: int = 1) -> Tensor:
        """(n, …) class indices, answers 0 and 1, or the numbers themselves."""
        if kind == "classes":
            return outputs.argmax(class_dim)
        if kind == "binary":
            answers = (outputs > (0.5 if self.scores == "probabilities" else 0.0)).long()
            return answers[:, 0] if answers.dim() == 2 and answers.shape[1] == 1 else answers
        return outputs

    def probabilities(self, outputs: Tensor, kind: Kind, class_dim: int = 1) -> Tensor:
        """Class probabilities in the outputs' shape; of one yes-or-no question (n, 2), of several (n, k).

        Raises:
            TaskError: the outputs are real numbers.
        """
        if kind == "real":
            raise TaskError("predict_proba() needs classes, but the targets are real numbers; use predict()")
        if kind == "classes":
            if self.scores == "logits":
                return outputs.softmax(class_dim)
            return outputs.exp() if self.scores == "log_probabilities" else outputs
        yes = outputs if self.scores == "probabilities" else outputs.sigmoid()
        if yes.dim() == 1 or (yes.dim() == 2 and yes.shape[1] == 1):
            yes = yes.reshape(-1)
            return torch.stack([1 - yes, yes], -1)
        return yes

    def judged(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of (T, n, …) examples, (T, n, P) each: whether an answer is right, how sure it is, and whether there is a label.

        P counts the positions, or the yes-or-no questions, of an example. An answer that is not finite is wrong, and sure.
        """
        kind, flat, labels = self.kind_for(y), outputs.flatten(0, 1), y.flatten(0, 1)
        if kind == "classes":
            soft = labels.is_floating_point()
            dim = 1 if soft else self.class_dimension(flat.shape, labels.shape)
            found, labels = flat.argmax(dim), labels.argmax(1) if soft else labels
            finite, sure = flat.isfinite().all(dim), self.probabilities(flat.double(), kind, dim).amax(dim)
        else:
            found = self.predict(flat, "binary").reshape(len(flat), -1)
            labels, finite = labels.reshape(len(labels), -1), flat.isfinite().reshape(len(flat), -1)
            yes = flat.double().reshape(len(flat), -1)
            yes = yes if self.scores == "probabilities" else yes.sigmoid()
            sure = torch.maximum(yes, 1 - yes)
        there = torch.ones_like(labels, dtype=torch.bool) if labels.is_floating_point() else labels != self.ignore
        right, sure = (found == labels) & finite & there, torch.where(finite, sure, 1.0)
        shape = (*y.shape[:2], -1)
        return right.reshape(shape), sure.reshape(shape), there.reshape(shape)

    def hits(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(T, n) share of right answers in each of (T, n, …) examples, and whether it has a label."""
        right, _, there = self.judged(outputs, y)
        count = there.sum(2)
        return right.sum(2) / count.clamp_min(1), (count > 0).float()

    def right(self, outputs: Tensor, side: Side) -> tuple[Tensor, Tensor]:
        """() how many of (T, n, …) examples are right, and () how many count; zeros for real targets."""
        if self.kind_for(side.y) == "real":
            return outputs.new_zeros(()), outputs.new_zeros(())
        hits, there = self.hits(outputs, side.y)
        there = there if side.weight is None else there * (side.weight > 0)
        return (hits * there).sum(), there.sum()


Extras = Callable[[int, tuple[str, ...]], dict[str, Tree | Params]]
"""What a loss may also take, for one task: its inputs, its adapted weights."""


def _mean(values: Tensor, weight: Tensor | None, labelled: Tensor | None) -> Tensor:
    """(T,) means of (T, n, …) values, over those that have a label, by the weights of the examples."""
    if labelled is None:
        values = values.flatten(2).mean(2) if values.dim() > 2 else values
        return values.mean(1) if weight is None else (values * weight).sum(1)
    share = labelled if weight is None else labelled * weight.reshape(*weight.shape, *[1] * (labelled.dim() - 2)).to(labelled.dtype)
    if share.dim() < values.dim():
        values = values.flatten(2).mean(2)
    values = torch.where(share > 0, values, torch.zeros_like(values))
    # A task without any label has no loss; max keeps 0/0 out of the gradient.
    return (values * share).flatten(1).sum(1) / share.flatten(1).sum(1).clamp_min(torch.finfo(share.dtype).tiny)
