"""What is measured in an episode: accuracy and calibration of classes, squared error and R² of real targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headstart.loss import Loss
from headstart.tasks import Tasks

BINS = 15


class Accuracy:
    """Share of the query examples whose class is predicted, or of their positions or questions; one that is not finite is wrong.

    Args:
        names: of the groups that accuracies are also wanted for.
        loss: how outputs are read.
        two_classes: also measure the average precision of the second class.
    """

    name = "accuracy"

    def __init__(self, names: Sequence[str], loss: Loss, two_classes: bool = False) -> None:
        self.two_classes, self.loss, self.diverged = two_classes, loss, 0
        self.precisions, self.balanced, self.unequal = list[Tensor](), list[Tensor](), False
        self.groups = _Groups(names)
        self.bins = torch.zeros(3, BINS, dtype=torch.double)  # answers, sum of confidences, right ones

    def scores(self, outputs: Tensor, tasks: Tasks) -> Tensor:
        """(T,) accuracy of every episode."""
        hits, there = (v.double() for v in self.loss.hits(outputs, tasks.query.y))
        share = there if tasks.query.weight is None else there * tasks.query.weight
        return (hits * share).sum(1) / share.sum(1)

    def add(self, outputs: Tensor, tasks: Tasks, groups: Tensor | None) -> None:
        """Counts the query examples of some episodes after the last step; ``groups`` are those of (T, Q) examples."""
        present = torch.ones_like(tasks.query.index, dtype=torch.bool) if tasks.query.weight is None else tasks.query.weight > 0
        right, sure, labelled = self.loss.judged(outputs, tasks.query.y)
        self.diverged += int((~outputs.flatten(2).isfinite().all(2) & present).any(1).sum())
        counted = (labelled & present.unsqueeze(-1)).cpu()
        bin_ = (sure * BINS).long().clamp_max(BINS - 1).cpu()[counted]
        for row, value in enumerate((torch.ones_like(sure), sure, right.double())):
            self.bins[row].index_add_(0, bin_, value.cpu()[counted])
        if groups is not None:
            hits, _ = self.loss.hits(outputs, tasks.query.y)
            self.groups.add(groups[present], hits[present])
        if self.two_classes:
            score = outputs[..., 1] - outputs[..., 0] if outputs.dim() > 2 and outputs.shape[2] == 2 else outputs.flatten(2)[..., 0]
            score = torch.where(score.isfinite(), score.double(), -torch.inf)
            self.precisions.append(average_precision(score, tasks.query.y == 1, present).cpu())
        if tasks.query.y.dim() == 2 and self.loss.kind_for(tasks.query.y) == "classes":
            hits, _ = self.loss.hits(outputs, tasks.query.y)
            own, unequal = balanced_accuracy(hits.double(), tasks.query.y.long(), present)
            self.balanced.append(own.cpu())
            self.unequal |= unequal

    def per_class(self) -> dict[str, float]:
        """Accuracy by name."""
        return self.groups.means()

    def calibration(self) -> float:
        """Expected calibration error."""
        return float((self.bins[1] - self.bins[2]).abs().sum() / self.bins[0].sum())

    def further(self) -> dict[str, tuple[float, float]]:
        """Balanced accuracy where classes are of unequal sizes; of two classes also AUPRC and ΔAUPRC, over tasks with examples of both."""
        found = {"balanced accuracy": interval(torch.cat(self.balanced))} if self.unequal else {}
        if self.precisions and len(both := torch.cat(self.precisions)) > 1:
            found |= {"AUPRC": interval(both[:, 0]), "ΔAUPRC": interval(both[:, 0] - both[:, 1])}
        return found


class SquaredError:
    """Mean squared error over query examples and outputs; infinite where a prediction is not finite.

    Args:
        names: of the groups that errors are also wanted for.
    """

    name = "squared error"

    def __init__(self, names: Sequence[str]) -> None:
        self.diverged, self.parts, self.groups = 0, list[Tensor](), _Groups(names)

    def scores(self, logits: Tensor, tasks: Tasks) -> Tensor:
        """(T,) squared error of every episode."""
        error = (logits - _shaped(logits, tasks)).double().square().flatten(2).mean(2)
        return _mean(torch.where(error.isfinite(), error, torch.inf), tasks.query.weight)

    def add(self, logits: Tensor, tasks: Tasks, groups: Tensor | None) -> None:
        """Takes in some episodes after the last step; ``groups`` (T, Q) are the same for all queries of a task."""
        error = self.scores(logits, tasks)
        self.diverged += int((~error.isfinite()).sum())
        y = _shaped(logits, tasks).double()
        about = _mean_rows(y, tasks.query.weight)
        spread = _mean((y - about[:, None]).square().flatten(2).mean(2), tasks.query.weight)
        self.parts.append(torch.stack([error, spread], 1).cpu())
        if groups is not None:
            self.groups.add(groups[:, 0], error)

    def per_class(self) -> dict[str, float]:
        """Squared error by task, where tasks have names."""
        return self.groups.means()

    def calibration(self) -> None:
        """Not defined."""

    def further(self) -> dict[str, tuple[float, float]]:
        """R² over all episodes together: of one episode it has no lower bound, where its targets are nearly equal."""
        error, spread = torch.cat(self.parts).unbind(1)
        if len(error) < 2 or not spread.sum() > 0:
            return {}
        ratio = error.mean() / spread.mean()
        return {"R²": (float(1 - ratio), interval((error - ratio * spread) / spread.mean())[1])}  # of a ratio of means: the delta method


class _Groups:
    """Means by group."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.sums, self.seen = torch.zeros(2, len(names), dtype=torch.double).unbind()

    def add(self, group: Tensor, value: Tensor) -> None:
        group, value = group.cpu(), value.double().cpu()
        self.sums.index_add_(0, group, value)
        self.seen.index_add_(0, group, torch.ones_like(value))

    def means(self) -> dict[str, float]:
        return {name: float(s / n) for name, s, n in zip(self.names, self.sums, self.seen, strict=True) if n}


def interval(scores: Tensor) -> tuple[float, float]:
    """The mean of the scores of episodes, and half the width of its 95% interval."""
    return float(scores.mean()), 1.96 * float(scores.std()) / len(scores) ** 0.5


def balanced_accuracy(hits: Tensor, y: Tensor, there: Tensor) -> tuple[Tensor, bool]:
    """(T,) the mean, over the classes of each task's query examples, of the accuracy on a class; and whether classes differ in size.

    Args:
        hits: (T, Q) 1 where the class is predicted.
        y: (T, Q) class indices, negative for none.
        there: (T, Q) which examples count.

    Example:
        >>> balanced_accuracy(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0, 0, 1]]), torch.ones(1, 3) > 0)
        (tensor([0.5000]), True)
    """
    of = torch.zeros(*y.shape, int(y.max()) + 1, dtype=hits.dtype, device=y.device) if int(y.max()) >= 0 else hits.new_zeros(*y.shape, 1)
    of = of.scatter_(2, y.clamp_min(0)[..., None], (there & (y >= 0))[..., None].to(hits.dtype))
    sizes = of.sum(1)
    seen = sizes > 0
    mean = ((hits[..., None] * of).sum(1) / sizes.clamp_min(1)).sum(1) / seen.sum(1).clamp_min(1)
    largest, smallest = sizes.amax(1), torch.where(seen, sizes, torch.inf).amin(1)
    return mean, bool((largest > smallest).any())


def average_precision(score: Tensor, positive: Tensor, there: Tensor) -> Tensor:
    """(tasks, 2) average precision, and the share of positives, of every task with examples of both classes.

    Average precision is the mean, over the positive examples, of the precision among all that score at least as high.

    Args:
        score: (T, Q), higher for the positive class.
        positive: (T, Q) which examples are positive.
        there: (T, Q) which examples count.

    Example:
        >>> average_precision(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([[1, 0, 1, 0]]) > 0, torch.ones(1, 4) > 0)
        tensor([[0.8333, 0.5000]], dtype=torch.float64)
    """
    positive = positive & there
    at_least = (score[:, None, :] >= score[:, :, None]) & there[:, None, :]  # [t, i, j]: j scores at least as high as i
    precision = (at_least & positive[:, None, :]).sum(-1).double() / at_least.sum(-1).clamp_min(1)
    count, total = positive.sum(1), there.sum(1)
    found = torch.stack([(precision * positive).sum(1) / count, count.double() / total], 1)
    return found[(count > 0) & (count < total)]


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """(T,) means of (T, Q) values; those of weight zero do not count even where they are infinite."""
    if weight is None:
        return values.mean(1)
    return (torch.where(weight > 0, values, 0) * weight).sum(1)


def _mean_rows(y: Tensor, weight: Tensor | None) -> Tensor:
    return y.mean(1) if weight is None else (y * weight.reshape(*weight.shape, *[1] * (y.dim() - 2))).sum(1)


def _shaped(outputs: Tensor, tasks: Tasks) -> Tensor:
    """Targets as (T, Q, …) outputs; outputs without a dimension of their own get one."""
    return tasks.query.y.reshape(outputs.shape)
