"""Adapts to each of many episodes and measures; where a linear head adapts, every example runs through the body once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstart.data.drawing import Range, sampler_of, usual_queries
from headstart.errors import ConfigError, DataError
from headstart.evaluation.batch_norm import BatchNorm, check_policy, normalising, policy
from headstart.evaluation.metrics import Accuracy, SquaredError, interval
from headstart.evaluation.result import Evaluation
from headstart.learner import MetaLearner
from headstart.opened import Embedded
from headstart.program.description import FEATURES
from headstart.program.run import Record
from headstart.ranks import ALONE, Ranks
from headstart.tasks import Tasks

BLOCK = 100  # episodes that are drawn and adapted together


def evaluate(
    learner: MetaLearner,
    tasks: Any,
    *,
    ways: Range = 5,
    shots: Range = 1,
    queries: int | None = None,
    episodes: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_norm: BatchNorm = "running",
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Adapts to each of many independent episodes and measures accuracy, or squared error, on their query examples.

    Args:
        learner: what to evaluate.
        tasks: where episodes come from, unseen in training: a split such as ``data.test``, of classes, tables or sine waves; an
            :class:`~headstart.data.EpisodeList`; or any object with ``tasks`` and ``batch(index, device)``.
        ways, shots, queries: of an episode, classes and support and query examples per class; of tables and sine waves, support and
            query examples per task. ``queries=None`` takes 15, or as many as the smallest class allows. Lists and objects of
            your own have their own.
        episodes: how many, 1000 by default, or all of a list; report at least 600.
        steps: inner steps at test, if other than in training.
        seed: of the episodes.
        batch_norm: where batch normalisation takes its statistics from. ``"running"``: from training examples, so that a
            prediction never depends on other query examples (inductive); call :func:`estimate_batch_norm` first, as
            :func:`train` does. ``"episode"``: from the episode's own support and query examples (transductive; what most
            published numbers of MAML and ANIL use). ``"batch"``: from all examples of 100 episodes together.
        ranks: processes that share the episodes, such as ``hs.Ranks.present()``; each of them calls this, and gets the same result as one
            alone would.

    Raises:
        DataError: there are too few classes, examples or tasks.
        ConfigError: episodes is below 2, so that no interval exists.

    Example:
        >>> import headstart as hs
        >>> learner = hs.anil(hs.models.mlp(features=1, ways=1), steps=3, lr=0.1, loss="squared_error")
        >>> evaluate(learner, hs.data.load("sinusoid").test, shots=5, episodes=50).metric
        'squared error'
    """
    check_policy(batch_norm)
    if episodes is None:
        episodes = getattr(tasks, "size", None) or 1000
    if episodes < 2:
        raise ConfigError(f"episodes={episodes}: at least 2 are needed for an interval; 600 or more are usual")
    size = getattr(tasks, "size", None)
    if size is not None and episodes > size:
        raise ConfigError(f"episodes={episodes}, but the list has {size}; ask for at most so many")
    if queries is None:
        queries = usual_queries(tasks, shots)
    sampler = sampler_of(tasks, ways=ways, shots=shots, queries=queries, tasks=min(BLOCK, episodes), seed=seed, stream="test")
    first = sampler.batch(0) if sampler.pool is None else sampler.rows(0)  # of a pool, targets are known without its examples
    regression = learner.loss.kind_for(first.query.y) == "real"
    metric = SquaredError(sampler.names) if regression else Accuracy(sampler.names, learner.loss, sampler.two_classes)
    by_step: list[list[Tensor]] = []
    with normalising(learner.model, batch_norm):
        for block in ranks.gathered(_blocks(learner, sampler, steps, batch_norm, episodes, ranks, metric)):
            by_step.append(block.scores)
            metric.add(block.logits, block.tasks, block.groups)
    scores = torch.stack([torch.cat(step) for step in zip(*by_step, strict=True)])  # (N+1, episodes)
    per_step = [interval(own) for own in scores]
    protocol = {
        **sampler.description(),
        "episodes": episodes,
        "inner": repr(learner.inner.with_steps(steps)),
        "adapt": learner.partition.adapt,
        "start": type(learner.start).__name__,
        "batch_norm": policy(learner, batch_norm),
    }
    return Evaluation(
        metric.name,
        *per_step[-1],
        per_step,
        metric.per_class(),
        metric.further(),
        metric.calibration(),
        metric.diverged / episodes,
        protocol,
        scores[-1].tolist(),
    )


@dataclass(frozen=True)
class _Block:
    """Some episodes, their scores by step, their last query logits, and the (T, Q) classes of their query examples, or their tasks."""

    tasks: Tasks
    scores: list[Tensor]
    logits: Tensor
    groups: Tensor | None


Adapted = Callable[[int, int], tuple[Tasks, list[Tensor]]]
"""The episodes of a batch, at most so many, and their query logits by step."""


def _blocks(
    learner: MetaLearner, sampler: Any, steps: int | None, batch_norm: BatchNorm, episodes: int, ranks: Ranks, metric: Any
) -> Iterator[_Block]:
    """This rank's blocks of episodes. What all ranks do together is done before the first is asked for."""
    device = next(learner.model.parameters()).device
    adapted = (
        _one_batch(learner, sampler, steps, batch_norm, device)
        if sampler.pool is None
        else _over_pool(learner, sampler, steps, batch_norm, device, episodes, ranks)
    )

    def block(index: int) -> _Block:
        left = episodes - index * sampler.tasks
        tasks, logits = adapted(index, left)
        if len(tasks) != min(left, sampler.tasks):
            raise DataError(f"the sampler's batch {index} has {len(tasks)} tasks, and its tasks={sampler.tasks}; give every batch so many")
        groups = sampler.groups(index, tasks)
        # What can be sent: without the examples, and on no device.
        rows = Tasks(tasks.support, tasks.query, tasks.weight, tasks.ways).to("cpu")
        scores = [metric.scores(z, tasks).cpu() for z in logits]
        return _Block(rows, scores, logits[-1].cpu(), None if groups is None else groups.cpu())

    return (block(index) for index in ranks.own(-(-episodes // sampler.tasks)))


def _one_batch(learner: MetaLearner, sampler: Any, steps: int | None, batch_norm: BatchNorm, device: torch.device) -> Adapted:
    """Episodes whose examples run through the model for each batch of them."""

    def adapted(index: int, left: int) -> tuple[Tasks, list[Tensor]]:
        tasks = sampler.batch(index, device)[:left]
        size = len(tasks) if batch_norm != "episode" else 1
        parts = [learner.trajectory(part.own_pool(), steps, whole=batch_norm != "running") for part in tasks.chunks(size)]
        return tasks, [torch.cat(step) for step in zip(*parts, strict=True)]

    return adapted


def _over_pool(
    learner: MetaLearner, sampler: Any, steps: int | None, batch_norm: BatchNorm, device: torch.device, episodes: int, ranks: Ranks
) -> Adapted:
    """Episodes that are rows of one pool; those of its examples that they use are embedded once where a linear head adapts."""
    size, take = sampler.pool
    at = lambda used: take(used.cpu(), device)  # noqa: E731
    place = None
    embedded = None
    if batch_norm == "running":
        used = _used(sampler, episodes, size)
        embedded = _embedded(learner, used.split(500), at, ranks)
        place = torch.zeros(size, dtype=torch.long)
        place[used] = torch.arange(len(used))
        place = place.to(device)

    def adapted(index: int, left: int) -> tuple[Tasks, list[Tensor]]:
        rows = sampler.rows(index, device)[:left]
        if embedded is not None and place is not None:
            logits = learner.trajectory(rows.moved(place), steps, embedded)
        else:
            size = 1 if batch_norm == "episode" else len(rows)
            parts = [learner.trajectory(part.own_pool(at), steps, whole=batch_norm != "running") for part in rows.chunks(size)]
            logits = [torch.cat(step) for step in zip(*parts, strict=True)]
        return rows, logits

    return adapted


def _embedded(learner: MetaLearner, parts: Sequence[Tensor], at: Callable[[Tensor], Any], ranks: Ranks) -> Embedded | None:
    """All parts of the used examples embedded, each by one rank; None where that is of no use."""
    own = ranks.own(len(parts))
    found: list[Embedded | None] = []

    def features() -> Tensor | None:
        # A rank with nothing to do takes the first part, to know how the model runs.
        found.append(learner.embed(at(parts[i]) for i in own or [0]))
        return found[0].features.cpu() if found[0] is not None and own else None

    gathered = [v for v in ranks.every(features) if v is not None]
    if found[0] is None or len(gathered) == 1:
        return found[0]
    return Embedded(found[0].program, Record({FEATURES: torch.cat(gathered).to(found[0].features)}))


def _used(sampler: Any, episodes: int, size: int) -> Tensor:
    """The rows of the pool that the episodes use, in order."""
    seen, done, index = torch.zeros(size, dtype=torch.bool), 0, 0
    while done < episodes and not bool(seen.all()):
        rows = sampler.rows(index)[: episodes - done]
        for side in (rows.support, rows.query):
            seen[side.index.reshape(-1)] = True
        done, index = done + len(rows), index + 1
    return seen.nonzero()[:, 0]
