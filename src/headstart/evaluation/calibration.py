"""Probabilities that mean what they say, and inputs that belong to none of a task's classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstart.data.drawing import Range, sampler_of, signature, usual_queries
from headstart.errors import ConfigError
from headstart.evaluation.metrics import BINS
from headstart.learner import MetaLearner
from headstart.loss import Loss
from headstart.tasks import Side, TaskBatch, Tasks

COOLEST, HOTTEST = 1e-3, 1e3
FEW = 8
"""Classes below which a temperature and a threshold that were found on them may not hold for others."""
"""Temperatures between which the best is looked for."""
BATCH = 20


@dataclass(frozen=True)
class Confidences:
    """What a learner answers in many episodes.

    Args:
        logits: (n, C) of query examples of the tasks' classes; -∞ for outputs without a class.
        labels: (n,) their classes.
        unknown: (m, C) logits of examples of other classes; m is 0 where there are none.
        near: (n,) and (m,) how near they are to the tasks' classes, by :func:`nearness`; None where there are no features to go by.
    """

    logits: Tensor
    labels: Tensor
    unknown: Tensor
    near: tuple[Tensor, Tensor] | None = None

    def confidence(self, temperature: float, unknown: bool = False) -> Tensor:
        """The largest probability of each example."""
        return ((self.unknown if unknown else self.logits) / temperature).softmax(-1).amax(-1)

    def score(self, temperature: float, unknown: bool = False) -> Tensor:
        """How much each example looks like one of the tasks' classes: its nearness, or else the largest probability."""
        return self.confidence(temperature, unknown) if self.near is None else self.near[unknown]

    def temperature(self) -> float:
        """The temperature with the smallest cross-entropy (Guo et al., ICML 2017): its derivative in 1/T only grows, so it is bisected.

        Where every answer is right that would be 0, and nothing is that sure: as in Platt's scaling, one more answer counts as wrong.
        """
        finite = self.logits.masked_fill(self.logits.isinf(), 0.0)
        wrong = 1 / (len(self.labels) + 2)
        right = (1 - wrong) * finite.gather(1, self.labels[:, None])[:, 0].mean() + wrong * finite.mean()
        low, high = 1 / HOTTEST, 1 / COOLEST
        for _ in range(60):
            middle = (low * high) ** 0.5
            expected = ((self.logits * middle).softmax(-1) * finite).sum(-1).mean()
            low, high = (middle, high) if expected < right else (low, middle)
        return float(1 / (low * high) ** 0.5)

    def error(self, temperature: float = 1.0) -> float:
        """Expected calibration error: the mean gap between confidence and accuracy over 15 bins of confidence."""
        sure = self.confidence(temperature)
        right = (self.logits.argmax(-1) == self.labels).to(sure)
        bins = (sure * BINS).long().clamp_max(BINS - 1)
        gap = torch.zeros(BINS, dtype=sure.dtype).index_add(0, bins, sure - right)
        return float(gap.abs().sum() / len(sure))

    def auroc(self, temperature: float = 1.0) -> float:
        """How often an example of a class scores higher than one of none; ties count half."""
        both = torch.cat([self.score(temperature), self.score(temperature, True)])
        _, place, counts = both.unique(return_inverse=True, return_counts=True)
        rank = (counts.cumsum(0) - (counts - 1) / 2.0).double()[place]
        n, m = len(self.logits), len(self.unknown)
        return float((rank[:n].sum() - n * (n + 1) / 2) / (n * m))


@dataclass(frozen=True)
class Calibration:
    """What validation episodes say of a learner's probabilities; kept with a run and with what is adapted from it.

    Args:
        temperature: what outputs are divided by.
        threshold: score below which an input belongs to none of the classes; None where there were no other classes to see.
        by: what the score is: ``"nearness"``, or ``"confidence"`` where there are no features to go by.
        false_accepts: the share of inputs of other classes that may be accepted, by which the threshold was set.
        accepted: the share of inputs of the tasks' classes that it accepts.
        auroc: how often an input of the classes scores higher than one of none.
        error_before, error: expected calibration error without and with the temperature.
        ways, shots: of the episodes.

    Example:
        >>> import headstart as hs
        >>> split = hs.data.Split(torch.randint(256, (60, 1, 16, 16), dtype=torch.uint8), [f"c{i}" for i in range(6)], [10] * 6)
        >>> learner = hs.protonet(hs.models.conv4(channels=1, ways=5, size=16, filters=2))
        >>> found = hs.calibrate(learner, split, ways=3, episodes=4)
        >>> found.by, 0 <= found.error <= 1, found.temperature > 0
        ('nearness', True, True)
        >>> found.measured(hs.evaluation.confidences(learner, split, ways=3, episodes=6, seed=1)).temperature == found.temperature
        True
    """

    temperature: float
    threshold: float | None
    by: str
    false_accepts: float
    accepted: float | None
    auroc: float | None
    error_before: float
    error: float
    ways: int
    shots: int

    def measured(self, found: Confidences) -> Calibration:
        """The same temperature and threshold, with figures from other episodes."""
        return _figures(found, self.temperature, self.threshold, None, self.ways, self.shots)

    def __str__(self) -> str:
        worse = "worse, " if self.error > self.error_before + 0.005 else ""
        after = f"{worse}{100 * self.error:.1f} % with temperature {self.temperature:.3g}"
        shown = f"calibration error {100 * self.error_before:.1f} %, and {after}"
        if self.threshold is None or self.accepted is None or self.auroc is None:
            return shown
        return (
            f"{shown}; inputs of other classes, by {self.by}: AUROC {self.auroc:.3f}; the threshold takes"
            f" {100 * self.false_accepts:.1f} % of them for one of the classes, and {100 * self.accepted:.1f} % of those that are"
        )


def confidences(
    learner: MetaLearner,
    tasks: Any,
    *,
    ways: int = 5,
    shots: Range = 1,
    queries: int | None = None,
    episodes: int = 200,
    steps: int | None = None,
    seed: int = 0,
    stream: str = "validation",
) -> Confidences:
    """What a learner answers in episodes that also ask about classes that are not among the task's.

    Args:
        learner: what to ask.
        tasks: a split of classes, such as ``data.validation``; of tables there are no other classes.
        ways, shots, queries, episodes, steps, seed: as in :func:`evaluate`. Up to as many classes
            again are asked about without a support example; where there are no more than ``ways``, tasks have one class less.
        stream: whose random numbers are used.

    Raises:
        ConfigError: targets are real numbers or yes-or-no questions.

    Example:
        >>> import headstart as hs
        >>> learner = hs.protonet(hs.models.conv4(channels=1, ways=5, size=28, filters=4))
        >>> found = confidences(learner, hs.data.load("glyphs").validation, episodes=20)
        >>> found.error(found.temperature()) < 0.5
        True
    """
    said = signature(tasks, ways)
    if said.regression or learner.loss.kind in ("real", "binary"):
        raise ConfigError("only classes have probabilities to calibrate, and these are real targets or yes-or-no questions")
    classes = len(tasks.classes) if said.by_class else 0
    ways = max(2, min(ways, classes - 1)) if classes else ways  # one class at least is for those that are in no task
    others = min(ways, classes - ways) if classes else 0
    queries = queries or usual_queries(tasks, shots)
    sizes = {"ways": ways + others, "shots": shots, "queries": queries, "seed": seed, "stream": stream}
    sampler = sampler_of(tasks, **sizes, tasks=min(BATCH, episodes))
    device = next(learner.model.parameters()).device
    parts: dict[str, list[Tensor]] = {name: [] for name in ("known", "labels", "unknown", "near", "far")}
    for batch in _batches(sampler, episodes, device):
        with learner.in_use(batch.examples):
            whole = _without(batch, ways) if others else batch
            embedded = learner.embed([batch.examples])
            logits = as_logits(learner.trajectory(whole, steps, embedded)[-1].float().cpu(), learner.loss)
            asked = batch.query.y.cpu()
            logits = logits[..., :ways] if others else logits
            counted = torch.ones_like(asked, dtype=torch.bool) if batch.query.weight is None else batch.query.weight.cpu() > 0
            of_the_task = counted & (asked < ways) if others else counted
            parts["known"].append(logits[of_the_task])
            parts["labels"].append(asked[of_the_task])
            parts["unknown"].append(logits[asked >= ways] if others else logits[:0, 0])
            if embedded is not None and others:
                found = nearness(embedded.features.flatten(1).float(), whole, ways).cpu()
                parts["near"].append(found[of_the_task])
                parts["far"].append(found[asked >= ways])
    near = (torch.cat(parts["near"]), torch.cat(parts["far"])) if parts["near"] else None
    return Confidences(torch.cat(parts["known"]), torch.cat(parts["labels"]), torch.cat(parts["unknown"]), near)


def nearness(z_PD: Tensor, tasks: Tasks, ways: int) -> Tensor:
    """(T, Q) how near query examples are to the class means of the support set in the features of a linear head: minus the distance.

    The largest probability compares the classes of a task with each other, and so says little of what is in none. On characters that
    no training had seen the distance tells 99 % of them apart at 5 % false accepts, and the largest probability 43 % (docs/using.md).

    Args:
        z_PD: features of the pool.
        tasks: rows of it.
        ways: classes of a task.
    """
    z_TSD, z_TQD = z_PD[tasks.support.index], z_PD[tasks.query.index]
    return -torch.cdist(z_TQD, class_means(z_TSD, tasks.support.y, ways)).amin(-1)


def class_means(z_TSD: Tensor, y_TS: Tensor, ways: int) -> Tensor:
    """(T, C, D) means of the features of each class."""
    member = torch.nn.functional.one_hot(y_TS, ways).to(z_TSD.dtype)
    return member.mT @ z_TSD / member.sum(1).clamp_min(1).unsqueeze(-1)


def as_logits(outputs: Tensor, loss: Loss) -> Tensor:
    """Outputs as logits, which a temperature divides: of probabilities the logarithm."""
    return outputs.log() if loss.scores == "probabilities" else outputs


def calibrate(learner: MetaLearner, tasks: Any, *, false_accepts: float = 0.05, **episodes: Any) -> Calibration:
    """A temperature, and a score below which an input belongs to no class, from episodes of validation classes.

    Args:
        learner: what to calibrate.
        tasks: ``data.validation``.
        false_accepts: share of inputs of other classes that may be accepted.
        episodes: as in :func:`confidences`.

    Raises:
        ConfigError: targets are real numbers, or the share is not between 0 and 1.

    Example:
        >>> import headstart as hs
        >>> learner = hs.protonet(hs.models.conv4(channels=1, ways=5, size=28, filters=4))
        >>> found = calibrate(learner, hs.data.load("glyphs").validation, episodes=20)
        >>> found.error < found.error_before
        True
    """
    if not 0 < false_accepts < 1:
        raise ConfigError(f"false_accepts={false_accepts}: it is a share above 0 and below 1, such as 0.05")
    found = confidences(learner, tasks, **episodes)
    ways, shots = episodes.get("ways", 5), episodes.get("shots", 1)
    shots = shots if isinstance(shots, int) else shots[1]
    return _figures(found, found.temperature(), None, false_accepts, ways, shots)


def _figures(
    found: Confidences, temperature: float, threshold: float | None, false_accepts: float | None, ways: int, shots: int
) -> Calibration:
    accepted = auroc = None
    share = 0.0 if false_accepts is None else false_accepts
    if len(found.unknown):
        others = found.score(temperature, True)
        if false_accepts is not None:
            threshold = float(others.quantile(1 - false_accepts))
        share = float((others >= threshold).double().mean()) if threshold is not None else 0.0
        accepted = None if threshold is None else float((found.score(temperature) >= threshold).double().mean())
        auroc = found.auroc(temperature)
    by = "confidence" if found.near is None else "nearness"
    return Calibration(temperature, threshold, by, share, accepted, auroc, found.error(), found.error(temperature), ways, shots)


def _batches(sampler: Any, episodes: int, device: torch.device) -> Iterator[TaskBatch]:
    done = index = 0
    while done < episodes:
        batch = sampler.batch(index, device)[: episodes - done]
        yield batch.own_pool()
        done, index = done + len(batch), index + 1


def _without(batch: TaskBatch, ways: int) -> TaskBatch:
    """The same tasks without the support examples of classes from ``ways`` on; labels of query examples do not matter then."""
    kept = batch.support.y < ways
    rows = kept.long().argsort(stable=True, dim=1, descending=True)[:, : int(kept[0].sum())]
    support = Side(batch.support.index.gather(1, rows), batch.support.y.gather(1, rows))
    query = Side(batch.query.index, batch.query.y.clamp_max(ways - 1))
    return TaskBatch.from_pool(batch.examples, support, query)
