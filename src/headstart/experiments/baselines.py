"""What one would do without meta-learning, on the same episodes: simple methods as learners of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.container import write_json
from headstart.data.drawing import Data, Signature, sampler_of, signature, usual_queries
from headstart.evaluation.over_episodes import evaluate
from headstart.evaluation.result import Comparison, Evaluation, compare
from headstart.inner.descent import GradientDescent
from headstart.inner.prototypes import Prototypes
from headstart.learner import MetaLearner
from headstart.partition import Partition
from headstart.target_scale import TargetScale

SIDE = 32
"""Pictures are averaged down to so many pixels a side: raw pixels do no better with more."""
POOLED_ROWS = 20_000
PENALTIES = (1e-3, 1e-1, 1e1)
"""Ridge penalties of pooled models, over the mean square of a feature; the best on validation tasks is taken."""


@dataclass(frozen=True)
class Baseline:
    """A method without meta-learning, beside a result.

    Args:
        name: of the method.
        evaluation: its own result.
        comparison: the meta-learned result less this one, episode by episode.
    """

    name: str
    evaluation: Evaluation
    comparison: Comparison

    @property
    def beaten(self) -> bool:
        """Whether the meta-learned result is better, by more than its interval."""
        return self._gain > self.comparison.ci95

    @property
    def undecided(self) -> bool:
        """Whether the meta-learned result is better, but by less than its interval."""
        return 0 < self._gain <= self.comparison.ci95

    @property
    def _gain(self) -> float:
        return self.comparison.difference * (1 if self.evaluation.higher_is_better else -1)


@dataclass(frozen=True)
class Beside:
    """A result and the baselines on its episodes; prints itself.

    Args:
        result: of the meta-learned start.
        baselines: the others.
    """

    result: Evaluation
    baselines: tuple[Baseline, ...]

    @property
    def not_beaten(self) -> list[Baseline]:
        """The baselines that the result is not better than."""
        return [b for b in self.baselines if not b.beaten]

    def __str__(self) -> str:
        width = max(len(b.name) for b in self.baselines)
        lines = ["without meta-learning, on the same episodes; behind it, what meta-learning gains:"]
        for b in self.baselines:
            own = b.evaluation
            gain = str(b.comparison).partition(" over ")[0]
            lines.append(f"  {b.name:<{width}}  {own.show_with(own.mean, own.ci95)}   {gain}")
        if worse := " and ".join(b.name for b in self.not_beaten if not b.undecided):
            lines.append(f"not better than {worse}: try more --minutes, more training classes or tasks, or headstart plan")
        if close := " and ".join(b.name for b in self.not_beaten if b.undecided):
            lines.append(f"better than {close}, but by less than the interval: more --test-episodes would tell")
        if not self.not_beaten:
            lines.append("meta-learning is better than each of them")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Writes every baseline as JSON."""
        write_json(path, [{**asdict(b), "beaten": b.beaten} for b in self.baselines])


def beside_baselines(result: Evaluation, data: Data, untrained: MetaLearner, sizes: Mapping[str, Any]) -> Beside:
    """Evaluates what needs no meta-learning on the episodes of a result.

    Classes: the nearest class mean of raw inputs, and logistic regression on the support set. Tables of two classes: the same, and a
    linear model pooled over the training tasks. Real targets: the mean of the support targets, and a pooled ridge regression plus the
    support's offset. All: the untrained network with the same adaptation.

    Args:
        result: of the meta-learned start.
        data: where the episodes come from.
        untrained: the learner as it was before training.
        sizes: what :func:`evaluate` was given, inner steps and policy of batch normalisation aside.

    Example:
        >>> import headstart as hs
        >>> data = hs.data.load("sinusoid")
        >>> learner = hs.anil(hs.models.mlp(1, 1), steps=2, lr=0.01, loss="squared_error")
        >>> found = beside_baselines(evaluate(learner, data.test, shots=5, episodes=20), data, learner, {"shots": 5, "episodes": 20})
        >>> [b.name for b in found.baselines]
        ['the mean of the support targets', 'pooled ridge regression plus offset', 'the untrained network, same adaptation']
    """
    tasks = signature(data.train, sizes.get("ways", 5) if isinstance(sizes.get("ways", 5), int) else 5)
    steps = len(result.per_step) - 1
    learners: dict[str, MetaLearner] = {}
    if tasks.regression:
        learners = _of_targets(data, tasks, sizes)
    elif isinstance(result.protocol.get("ways", 1), int):
        learners = _of_classes(data, tasks, sizes)
    found = [(name, evaluate(learner, data.test, **sizes)) for name, learner in learners.items()]
    found.append(("the untrained network, same adaptation", evaluate(untrained, data.test, **sizes, steps=steps)))
    return Beside(result, tuple(Baseline(name, own, compare(result, own)) for name, own in found))


# -- classes ---------------------------------------------------------------------------------------------------------------


def _of_classes(data: Data, tasks: Signature, sizes: Mapping[str, Any]) -> dict[str, MetaLearner]:
    body, width = _raw(tasks)
    head = nn.Linear(width, tasks.outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = nn.Sequential(body, head)
    nearest = MetaLearner(Partition(model, "head"), GradientDescent(0, 1.0), start=Prototypes())
    kept = {k: v for k, v in sizes.items() if k in ("ways", "shots")}
    longest, examples = 0.0, 1.0
    for split in (data.train, data.test):
        batch = sampler_of(split, **kept, queries=1, tasks=1, seed=1).batch(0)
        longest = max(longest, float(body(batch.examples).square().sum(1).max()))
        examples = batch.support.count / len(batch)
    # scikit-learn's default: a penalty of ‖w‖²/2 beside the sum of the losses, so λ = 1/n beside their mean. The Hessian of the loss is at
    # most half the largest square of an example, with the 1 of the bias; twice that leaves room for longer ones that were not drawn.
    l2 = 1 / examples
    logistic = MetaLearner(Partition(model, "head"), GradientDescent(500, 1 / (longest + 1 + l2), l2))
    found = {"the nearest class mean of raw inputs": nearest, "logistic regression on the support": logistic}
    if not tasks.by_class:
        found["a linear model pooled over training tasks"] = _pooled(data, tasks, sizes)
    return found


def _raw(tasks: Signature) -> tuple[nn.Module, int]:
    """A body that gives raw inputs as vectors, and their length."""
    shape = tasks.shape
    if len(shape) == 3 and max(shape[1:]) > SIDE:
        small = [min(SIDE, n) for n in shape[1:]]
        return nn.Sequential(nn.AdaptiveAvgPool2d((small[0], small[1])), nn.Flatten()), shape[0] * small[0] * small[1]
    length = 1
    for n in shape:
        length *= n
    return nn.Flatten(), length


# -- tables and curves -----------------------------------------------------------------------------------------------------


class _Offset(nn.Module):
    """A fixed linear model of raw inputs, and an offset for each output, which is what adapts."""

    def __init__(self, body: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.body = body
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.offset = nn.Parameter(torch.zeros_like(bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) @ self.weight + self.bias + self.offset


def _of_targets(data: Data, tasks: Signature, sizes: Mapping[str, Any]) -> dict[str, MetaLearner]:
    body, width = _raw(tasks)
    nothing = _Offset(body, torch.zeros(width, tasks.outputs), torch.zeros(tasks.outputs))
    scale = getattr(data.train, "target_scale", None)
    return {
        "the mean of the support targets": _offset_learner(nothing, scale),
        "pooled ridge regression plus offset": _pooled(data, tasks, sizes),
    }


def _offset_learner(model: _Offset, scale: TargetScale | None) -> MetaLearner:
    """One step of size 1 ends at the mean residual: the loss is half the squared error."""
    return MetaLearner(Partition(model, "offset"), GradientDescent(1, 1.0), loss="squared_error", target_scale=scale)


def _pooled(data: Data, tasks: Signature, sizes: Mapping[str, Any]) -> MetaLearner:
    """Ridge regression on rows of all training tasks, on targets or on ±1 for two classes, with the best penalty on validation tasks."""
    body, _ = _raw(tasks)
    scale: TargetScale | None = getattr(data.train, "target_scale", None)
    x, y = _rows(data, body, sizes, tasks)
    if scale is not None:
        y = scale.there(y, 1)
    candidates = []
    for penalty in PENALTIES:
        weight, bias = _ridge(x, y, penalty)
        model = _Offset(body, weight.float(), bias.float())
        # Of classes the pooled model is taken as it is: an offset would be a guess of how often each class occurs.
        learner = _offset_learner(model, scale) if tasks.regression else MetaLearner(Partition(model, "offset"), GradientDescent(0, 1.0))
        own = evaluate(learner, data.validation, **{**sizes, "episodes": _few(data, sizes)})
        candidates.append((own.mean if own.higher_is_better else -own.mean, learner))
    return max(candidates, key=lambda one: one[0])[1]


def _few(data: Data, sizes: Mapping[str, Any]) -> int:
    size = getattr(data.validation, "size", None)
    return int(min(sizes.get("episodes") or 100, 100, size or 100))


def _rows(data: Data, body: nn.Module, sizes: Mapping[str, Any], tasks: Signature) -> tuple[Tensor, Tensor]:
    """(n, features) raw inputs of training tasks, and (n, outputs) targets."""
    shots = sizes.get("shots", 1)
    sampler = sampler_of(data.train, shots=shots, queries=sizes.get("queries") or usual_queries(data.train, shots), tasks=1, seed=0)
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    count, index = 0, 0
    while count < POOLED_ROWS and index < 400:
        batch = sampler.batch(index)
        for side in (batch.support, batch.query):
            here = torch.ones_like(side.index, dtype=torch.bool) if side.weight is None else side.weight > 0
            xs.append(body(batch.examples[side.index[here]]))
            ys.append(side.y[here])
        count, index = count + len(ys[-1]) + len(ys[-2]), index + 1
    x, y = torch.cat(xs).double(), torch.cat(ys)
    if not tasks.regression:
        y = nn.functional.one_hot(y.long(), tasks.outputs) * 2.0 - 1.0
    return x, y.double().reshape(len(y), -1)


def _ridge(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """(features, outputs) weights and (outputs,) bias of centred ridge regression."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    gram = centred.T @ centred
    ridge = penalty * float(gram.diagonal().mean()) + 1e-12
    weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=x.dtype), centred.T @ (y - mean_y))
    return weight, mean_y - mean_x @ weight
