"""Adapts to each of many episodes and measures; where a linear head adapts, every example runs through the body once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

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

TRANSDUCTIVE = ("episode", "batch")
HELD = 2**26
"""Numbers of query logits, over all inner steps, that are held at a time."""
FEW = 3
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
    batch_norm: BatchNorm = "support",
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
        batch_norm: where batch normalisation takes its statistics from. ``"support"``: what adapts is normalised by the support examples
            of its task, as in the inner loop, what is shared by training examples, and a prediction never depends on other query
            examples (inductive); call :func:`estimate_batch_norm` first, as :func:`train` does. ``"running"``: from training
            examples everywhere (inductive; the same where only a head adapts). ``"episode"``: from the episode's own support
            and query examples (transductive; what most published numbers of MAML and ANIL use). ``"batch"``: from all
            examples of 100 episodes together.
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
    with normalising(learner, batch_norm, _few(sampler, first, learner)) as said:
        for block in ranks.gathered(_blocks(learner, sampler, steps, said, episodes, ranks, metric)):
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
        "batch_norm": policy(learner, said),
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


def _few(sampler: Any, first: Tasks, learner: MetaLearner) -> Any:
    """Examples to know by how the model runs."""
    device = next(learner.model.parameters()).device
    if sampler.pool is None:
        return tree_map(lambda v: v[:FEW].to(device), first.examples)  # type: ignore[attr-defined]
    size, take = sampler.pool
    return take(torch.arange(min(FEW, size)), device)


@dataclass(frozen=True)
class _Block:
    """Some episodes, their scores by step, their last query logits, and the (T, Q) classes of their query examples, or their tasks."""

    tasks: Tasks
    scores: list[Tensor]
    logits: Tensor
    groups: Tensor | None


Adapted = Callable[[int, int], tuple[Tasks, Iterator[tuple[Tasks, list[Tensor]]]]]
"""The episodes of a batch, at most so many; and some of them at a time, with their query logits by step."""


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
        tasks, parts = adapted(index, left)
        if len(tasks) != min(left, sampler.tasks):
            raise DataError(f"the sampler's batch {index} has {len(tasks)} tasks, and its tasks={sampler.tasks}; give every batch so many")
        groups = sampler.groups(index, tasks)
        # What can be sent: without the examples, and on no device.
        rows = Tasks(tasks.support, tasks.query, tasks.weight, tasks.ways).to("cpu")
        scores, last = [], []
        for some, logits in parts:
            scores.append([metric.scores(z, some).cpu() for z in logits])
            last.append(logits[-1].cpu())
        by_step = [torch.cat(step) for step in zip(*scores, strict=True)]
        return _Block(rows, by_step, torch.cat(last), None if groups is None else groups.cpu())

    return (block(index) for index in ranks.own(-(-episodes // sampler.tasks)))


def _one_batch(learner: MetaLearner, sampler: Any, steps: int | None, batch_norm: BatchNorm, device: torch.device) -> Adapted:
    """Episodes whose examples run through the model for each batch of them."""

    def adapted(index: int, left: int) -> tuple[Tasks, Iterator[tuple[Tasks, list[Tensor]]]]:
        tasks = sampler.batch(index, device)[:left]
        whole = batch_norm in TRANSDUCTIVE
        parts = tasks.chunks(_together(learner, tasks, steps, batch_norm))
        return tasks, ((part, learner.trajectory(part.own_pool(), steps, whole=whole)) for part in parts)

    return adapted


def _together(learner: MetaLearner, tasks: Tasks, steps: int | None, batch_norm: BatchNorm) -> int:
    """Of how many tasks the query logits after every step are held at a time."""
    if batch_norm in TRANSDUCTIVE:
        return len(tasks) if batch_norm == "batch" else 1
    each = tasks.query.index.shape[1] * (tasks.ways or 1) * (1 + (learner.inner.steps if steps is None else steps))
    return max(1, HELD // max(each, 1))


def _over_pool(
    learner: MetaLearner, sampler: Any, steps: int | None, batch_norm: BatchNorm, device: torch.device, episodes: int, ranks: Ranks
) -> Adapted:
    """Episodes that are rows of one pool; those of its examples that they use are embedded once where a linear head adapts."""
    size, take = sampler.pool
    at = lambda used: take(used.cpu(), device)  # noqa: E731
    place = None
    embedded = None
    if batch_norm not in TRANSDUCTIVE:
        used = _used(sampler, episodes, size)
        embedded = _embedded(learner, used.split(500), at, ranks)
        place = torch.zeros(size, dtype=torch.long)
        place[used] = torch.arange(len(used))
        place = place.to(device)

    def logits(part: Tasks) -> list[Tensor]:
        if embedded is not None and place is not None:
            return learner.trajectory(part.moved(place), steps, embedded)
        return learner.trajectory(part.own_pool(at), steps, whole=batch_norm in TRANSDUCTIVE)

    def adapted(index: int, left: int) -> tuple[Tasks, Iterator[tuple[Tasks, list[Tensor]]]]:
        rows = sampler.rows(index, device)[:left]
        return rows, ((part, logits(part)) for part in rows.chunks(_together(learner, rows, steps, batch_norm)))

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
