"""MetaLearner: a partition, an inner solver and a hypergradient, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from headstart.adapted import Adapted
from headstart.errors import ConfigError, PartitionError, TaskError
from headstart.explanation import Explanation
from headstart.hypergradient.accumulate import Accumulator
from headstart.hypergradient.base import Hypergradient
from headstart.hypergradient.recursive import Recursive
from headstart.hypergradient.sample_space import SampleSpace
from headstart.hypergradient.unrolled import Unrolled
from headstart.inner import linear_head
from headstart.inner.gradient_descent import GradientDescent
from headstart.inner.problem import QUERY, SUPPORT, InnerProblem, device_of, leaves
from headstart.inner.ridge import Ridge
from headstart.inner.start import ModelStart, Start
from headstart.losses import Loss, resolve
from headstart.partition import Partition
from headstart.replay import Record, Replay, default_output
from headstart.running import evaluating, undisturbed
from headstart.tasks import TaskBatch, Tasks
from headstart.types import Params, Tree

Inner = GradientDescent | Ridge
UNROLL_UP_TO = 10
"""Inner steps up to which the default unrolls, where the body is replayed and a step is cheap."""
LOOP_ABOVE = 5e7
"""Work of one inner step of one task, in FLOP forward, above which a loop over tasks beats vmap on a CPU.

Both were measured: docs/benchmarks.md."""


@dataclass(frozen=True)
class MetaStats:
    """What a meta-gradient was taken from.

    Args:
        loss: mean query loss over the tasks, after adaptation, by the tasks' weights.
        accuracy: mean query accuracy after adaptation; None for real targets.
        losses: (T,) query loss of every task.
        info: what the hypergradient reports about itself.
    """

    loss: float
    accuracy: float | None
    losses: Tensor
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Embedded:
    """Examples that the shared part has run on, for evaluating many tasks over them."""

    replay: Replay
    record: Record


class MetaLearner:
    """Learns a start from which a task is learned in a few steps: Algorithm 1 of Ji et al. (2020), for any partition.

    Args:
        partition: which parameters adapt (w) and which are shared (φ).
        inner: how w adapts to the support set.
        hypergradient: how the outer loop differentiates through that. None chooses: sample space for a linear head;
            unrolled for up to 10 steps where a part of the body is replayed; recursive otherwise.
        loss: ``"cross_entropy"``, ``"squared_error"``, a :class:`Loss`, or a function (logits, target) → loss per example.
        start: where the inner loop starts; None for the model's own w.
        step_weights: weights of the query loss after 0 … N steps (MAML++); None puts all on the last.
        vectorise: run tasks under ``vmap`` instead of one after the other; None chooses what measured faster.
        chunk_tasks: tasks handled together; None chooses.
        chunk_examples: examples that the shared part runs on at a time; None chooses what fits the cache of a CPU. In
            training mode batch normalisation takes its statistics over such a chunk.
        replay: False runs the whole model in every step.
        output: takes the logits out of what the model returns.

    Raises:
        ConfigError: the parts do not fit together.

    Example:
        >>> import headstart as hs
        >>> learner = MetaLearner(hs.Partition(hs.models.mlp(features=4, ways=2), adapt="head"), hs.GradientDescent(3, 0.5))
        >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
        >>> grads, stats = learner.meta_gradient(TaskBatch(x, y, x, y))
        >>> sorted(grads)[:2]
        ['0.bias', '0.weight']
    """

    def __init__(
        self,
        partition: Partition,
        inner: Inner,
        hypergradient: Hypergradient | None = None,
        *,
        loss: str | Loss | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        start: Start | None = None,
        step_weights: Sequence[float] | None = None,
        vectorise: bool | None = None,
        chunk_tasks: int | None = None,
        chunk_examples: int | None = None,
        replay: bool = True,
        output: Callable[[Any], Tensor] = default_output,
    ) -> None:
        if isinstance(inner, Ridge) and not isinstance(hypergradient, SampleSpace | None):
            raise ConfigError(f"Ridge() is a closed form, which {hypergradient!r} cannot differentiate; leave hypergradient out")
        self.partition, self.inner, self.hypergradient = partition, inner, hypergradient
        self.loss, self.start, self.output = resolve(loss), start or ModelStart(), output
        self.vectorise, self.use_replay = vectorise, replay
        for name, value in (("chunk_tasks", chunk_tasks), ("chunk_examples", chunk_examples)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: it must be at least 1, or None for the default")
        self.chunk_tasks, self.chunk_examples = chunk_tasks, chunk_examples
        self.step_weights: Tensor | None = None
        if step_weights is not None:
            self.step_weights = torch.as_tensor(step_weights, dtype=torch.float64)
            if len(self.step_weights) != inner.steps + 1 or not self.step_weights[-1]:
                raise ConfigError(
                    f"step_weights={self.step_weights.tolist()}: give {inner.steps + 1} weights, for 0 … N steps; the last is not 0,"
                    " or the last step would have no influence"
                )
        self.theta = inner.parameters(partition.split()[0])
        self._replays: dict[Any, Replay] = {}

    @property
    def model(self) -> nn.Module:
        """The model that is meta-trained, in place."""
        return self.partition.model

    def parameters(self) -> Params:
        """Everything the outer loop trains, by name: w, φ, and the inner solver's own parameters as ``inner.NAME``."""
        w, phi = self.partition.split()
        return {**w, **phi, **{f"inner.{k}": v for k, v in self.theta.items()}}

    # -- the outer gradient --------------------------------------------------------------------------------------------

    def meta_gradient(self, tasks: TaskBatch) -> tuple[Params, MetaStats]:
        """The gradient of the mean query loss over tasks, after adaptation to their support sets (Proposition 1).

        The model runs in the mode it is in; in training mode, the batch statistics of the part that runs once are updated.

        Args:
            tasks: T tasks.

        Returns:
            The gradient of every trained parameter by name, zero where it has no influence; and the statistics.

        Raises:
            TaskError: labels or shapes do not fit the model.
        """
        replay = self._replay(tasks)
        w, phi = self.partition.split()
        late = [name for name, p in {**w, **phi}.items() if not p.requires_grad]
        if late:
            raise PartitionError(f"{late[0]} was frozen after the learner was made; make the Partition and the learner again")
        with torch.enable_grad():
            record = replay.record(tasks.examples, self._chunk(tasks.examples))
        w = leaves(w)
        sums = Accumulator(w, phi, self.theta, record)
        losses, hits, seen = [], 0.0, 0.0
        info: dict[str, Any] = {}
        classify = self.loss.classification and not tasks.query_y.is_floating_point()
        for seed, chunk in enumerate(tasks.chunks(self._chunk_tasks(replay, tasks)), self._seed()):
            problem, w_0 = self._problem(replay, record, chunk, w, seed)
            result = self._hypergradient(problem)(problem, self.inner)
            sums.add(problem, w, w_0, result)
            losses.append(result.losses)
            # Of several groups of tasks the worst is reported: the largest residual, the most iterations.
            info.update({k: max(v, info.get(k, v)) for k, v in result.info.items()})
            if classify:
                present = torch.ones_like(chunk.query_y, dtype=torch.float)
                if chunk.query.weight is not None:
                    present[chunk.query.weight == 0] = 0
                hits += ((result.logits.argmax(-1) == chunk.query_y).float() * present).sum().item()
                seen += present.sum().item()
            del problem, w_0, result  # the graph of one group is gone before that of the next is built
        all_losses = torch.cat(losses)
        mean = (all_losses if tasks.weight is None else tasks.weight * all_losses).mean()
        return sums.mean(len(tasks)), MetaStats(float(mean), hits / seen if classify else None, all_losses, info)

    # -- using the start -----------------------------------------------------------------------------------------------

    def embed(self, parts: Iterable[Tree]) -> Embedded | None:
        """Runs the body of a linear head over many examples, given in parts, without gradients.

        Returns:
            What :meth:`trajectory` takes to evaluate any number of tasks over these examples without running the body
            again; None where the adapted part is not a linear head.
        """
        rows = []
        for part in parts:
            replay = self._replay_for(part)
            if replay.head is None:
                return None
            with torch.no_grad():
                rows.append(replay.record(part, self._chunk(part)).rows["features"])
        return Embedded(replay, Record({"features": torch.cat(rows)}, {}))

    def trajectory(self, tasks: Tasks, steps: int | None = None, embedded: Embedded | None = None, *, whole: bool = False) -> list[Tensor]:
        """The (T, Q, C) query logits after 0, 1, …, N inner steps, without gradients.

        Args:
            tasks: the tasks; with ``embedded``, rows of the examples that were embedded.
            steps: inner steps, if other than in training.
            embedded: what :meth:`embed` returned.
            whole: run the shared part on all examples at once, for statistics over all of them.
        """
        inner = self.inner.with_steps(steps)
        if embedded is None:
            if not isinstance(tasks, TaskBatch):
                raise TaskError("trajectory() needs the examples of the tasks, or what embed() returned")
            with undisturbed(self.model, tasks.examples, randomness=False):
                embedded = self._embedded(tasks, whole)
        replay, record = embedded.replay, embedded.record
        self._check_ways(replay, tasks)
        chunks = []
        for seed, chunk in enumerate(tasks.chunks(self._chunk_tasks(replay, tasks)), self._seed()):
            problem, _ = self._problem(replay, record, chunk, leaves(self.partition.split()[0]), seed)
            with torch.no_grad():
                chunks.append(list(self._logits_by_step(problem, inner)))
        return [torch.cat(step) for step in zip(*chunks, strict=True)]

    def adapt(self, support_x: Tree, support_y: Tensor, steps: int | None = None) -> Adapted:
        """Adapts to one task.

        Args:
            support_x: (S, …) examples.
            support_y: (S,) class indices or real targets.
            steps: inner steps, if other than in training.

        Returns:
            The adapted model. The meta-learned start stays as it is. The model is run in evaluation mode.
        """
        if not isinstance(support_y, Tensor) or support_y.dim() < 1 or any(len(v) != len(support_y) for v in tree_leaves(support_x)):
            raise TaskError("adapt() takes one task: (S, …) examples and (S,) labels; for many tasks use trajectory() or meta_gradient()")
        one = tree_map(lambda v: v[None], support_x)
        tasks = TaskBatch(one, support_y[None], one, support_y[None])
        with evaluating(self.model):
            embedded = self._embedded(tasks)
            problem, _ = self._problem(embedded.replay, embedded.record, tasks, leaves(self.partition.split()[0]), 0)
            with torch.no_grad():
                w = self._adapted_weights(problem, self.inner.with_steps(steps))
        classify = self.loss.classification and not support_y.is_floating_point()
        return Adapted(embedded.replay, {k: v[0].detach().clone() for k, v in w.items()}, classify)

    def explain(self, tasks: TaskBatch) -> Explanation:
        """What is shared, what is replayed, what runs per step, which hypergradient, and the estimated work of each."""
        replay = self._replay(tasks)
        with undisturbed(self.model, tasks.examples):
            record = replay.record(tasks.examples, self._chunk(tasks.examples))
        chunk = tasks[: self._chunk_tasks(replay, tasks)]
        problem, _ = self._problem(replay, record, chunk, leaves(self.partition.split()[0]), 0)
        return Explanation.of(self.partition, replay, self.inner, self._hypergradient(problem), problem, tasks)

    def chosen_hypergradient(self, tasks: TaskBatch) -> Hypergradient:
        """The hypergradient for tasks like these: the one that was given, or the one chosen by default."""
        with undisturbed(self.model, tasks.examples):
            embedded = self._embedded(tasks[:1])
            problem, _ = self._problem(embedded.replay, embedded.record, tasks[:1], leaves(self.partition.split()[0]), 0)
        return self._hypergradient(problem)

    # -- choosing ------------------------------------------------------------------------------------------------------

    def _replay(self, tasks: TaskBatch) -> Replay:
        """The replay for tasks like these: found once per mode and shape of the input."""
        if tasks.support_y.is_floating_point() and self.loss.name == "cross_entropy":
            raise TaskError('the tasks have real targets, but the loss is cross-entropy; use MetaLearner(…, loss="squared_error")')
        replay = self._replay_for(tasks.examples)
        self._check_ways(replay, tasks)
        return replay

    @staticmethod
    def _check_ways(replay: Replay, tasks: Tasks) -> None:
        if tasks.ways is not None and tasks.ways > replay.outputs:
            raise TaskError(
                f"the tasks have labels up to {tasks.ways - 1}, but the model has {replay.outputs} outputs;"
                f" build the model with at least {tasks.ways}, or draw tasks with at most {replay.outputs} ways"
            )

    def _replay_for(self, examples: Tree) -> Replay:
        key = (
            tuple(m.training for m in self.model.modules()),
            tuple((tuple(v.shape[1:]), v.dtype, v.device) for v in tree_leaves(examples)),
        )
        if key not in self._replays:
            self._replays[key] = Replay(self.partition, examples, self.output, self.use_replay)
        return self._replays[key]

    def _embedded(self, tasks: TaskBatch, whole: bool = False) -> Embedded:
        replay = self._replay(tasks)
        with torch.no_grad():
            return Embedded(replay, replay.record(tasks.examples, None if whole else self._chunk(tasks.examples)))

    def _chunk(self, examples: Tree) -> int | None:
        """Examples that the shared part runs on at a time: what fits a CPU's cache (benchmarks/replay.py)."""
        if self.chunk_examples is not None:
            return self.chunk_examples
        return 100 if device_of(examples).type == "cpu" else None

    def _seed(self) -> int:
        """A draw for dropout masks, where something trains: new masks in every call, one mask per task within it."""
        training = any(m.training for m in self.model.modules())
        return int(torch.randint(2**40, ())) if training else 0

    def _vectorise(self, replay: Replay, tasks: Tasks) -> bool:
        if self.vectorise is not None:
            return self.vectorise
        padded = any(w is not None and bool((w == 0).any()) for w in (tasks.support.weight, tasks.query.weight))
        if replay.vmap_refusal or (padded and any(m.training for m in self.model.modules())):
            return False  # padding must not enter batch statistics, and only a loop can leave it out
        return tasks.support.index.device.type != "cpu" or replay.step_flops * tasks.support.index.shape[1] < LOOP_ABOVE

    def _chunk_tasks(self, replay: Replay, tasks: Tasks) -> int:
        if self.chunk_tasks is not None:
            return self.chunk_tasks
        if replay.head is not None:
            return 1024
        return 16 if self._vectorise(replay, tasks) else 1

    def _hypergradient(self, problem: InnerProblem) -> Hypergradient:
        if self.hypergradient is not None:
            return self.hypergradient
        if isinstance(self.inner, Ridge) or not linear_head.refusal(self.inner, problem):
            return SampleSpace()
        return Unrolled() if problem.replay.recorded and self.inner.steps <= UNROLL_UP_TO else Recursive()

    # -- putting a problem together ------------------------------------------------------------------------------------

    def _problem(self, replay: Replay, record: Record, tasks: Tasks, w: Params, seed: int) -> tuple[InnerProblem, Params]:
        """The inner problem of some tasks, and w_0 as a function of w and the support features."""
        shared: Params = {}
        fixed: Params = {}
        for k, v in record.rows.items():
            for side, index in ((SUPPORT, tasks.support.index), (QUERY, tasks.query.index)):
                (shared if v.requires_grad else fixed)[f"{side}:{k}"] = v.detach()[index]
        for k, v in record.constants.items():
            (shared if v.requires_grad else fixed)[f"constant:{k}"] = v.detach()
        phi = self.partition.split()[1]
        shared.update({f"phi:{k}": phi[k].detach() for k in replay.live})
        shared = leaves(shared)
        support = {k.removeprefix("support:"): v for k, v in {**fixed, **shared}.items() if k.startswith("support:")}
        with torch.enable_grad():
            w_0 = self.start(w, self.partition, replay, tasks, support)
        problem = InnerProblem(
            replay=replay,
            tasks=tasks,
            loss=self.loss,
            start=leaves(w_0),
            shared=shared,
            fixed=fixed,
            specs=record.specs,
            regulariser=self.inner.regulariser,
            theta=self.theta,
            step_weights=self.step_weights,
            vectorised=self._vectorise(replay, tasks),
            seed=seed,
        )
        return problem, w_0

    def _logits_by_step(self, problem: InnerProblem, inner: Inner) -> Iterator[Tensor]:
        if isinstance(inner, Ridge):
            yield from inner.query_logits(problem)
        elif not linear_head.refusal(inner, problem):
            yield from linear_head.query_logits(inner, problem)
        else:
            for w in inner.iterates(problem, create_graph=False):
                yield problem.logits(w, QUERY)

    def _adapted_weights(self, problem: InnerProblem, inner: Inner) -> Params:
        if isinstance(inner, Ridge):
            return inner.adapted_weights(problem)
        if not linear_head.refusal(inner, problem):
            return linear_head.adapted_weights(inner, problem)
        *_, w = inner.iterates(problem, create_graph=False)
        return w
