"""MetaLearner: a partition, an inner solver and a hypergradient, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from headstart.adapted import Adapted, Reading, Snapshot
from headstart.defaults import check_chunks, examples_at_a_time, hypergradient_of, tasks_at_a_time
from headstart.errors import ConfigError, TaskError
from headstart.explanation import Explanation
from headstart.hypergradient.base import Hypergradient, refusal_of
from headstart.hypergradient.chain_rule import ChainRule
from headstart.inner.leaves import leaves
from headstart.inner.problem import InnerProblem
from headstart.inner.rates import UNDECIDED, Rates
from headstart.inner.solver import Solver
from headstart.inner.start import ModelStart, Start
from headstart.keeping import KeptLearner
from headstart.loss import Loss
from headstart.losses import resolve
from headstart.meta_stats import MetaStats
from headstart.opened import Embedded, Opened, runs_together
from headstart.partition import Partition
from headstart.program.cache import program_for
from headstart.program.description import FEATURES, Program, default_output
from headstart.program.modes import evaluating, undisturbed
from headstart.program.precision import Precision, checked, products
from headstart.program.run import Record, record
from headstart.program.support_norm import in_use
from headstart.step_weights import as_step_weights
from headstart.target_scale import TargetScale
from headstart.task_checks import one_task
from headstart.tasks import Side, TaskBatch, Tasks
from headstart.types import Params, Tree

T = TypeVar("T", bound=Tasks)


class MetaLearner(KeptLearner):
    """Learns a start from which a task is learned in a few steps: Algorithm 1 of Ji et al. (2020), for any partition.

    Args:
        partition: which parameters adapt (w) and which are shared (φ).
        inner: how w adapts to the support set.
        hypergradient: how the outer loop differentiates through that. None chooses: sample space for a linear head;
            unrolled for up to 10 steps where a part of the body is replayed; recursive otherwise.
        loss: ``"cross_entropy"``, ``"squared_error"``, ``"binary_cross_entropy"``, a criterion of torch's with
            ``reduction="none"``, a function (outputs, targets) → loss per example of flat (n, …) examples, or a
            :class:`~headstart.losses.Loss`.
        start: where the inner loop starts; None for the model's own w.
        step_weights: weights of the query loss after 0 … N steps (MAML++); None puts all on the last.
        vectorise: run tasks under ``vmap`` instead of one after the other; None chooses what measured faster.
        chunk_tasks: tasks handled together; None chooses.
        chunk_examples: examples that the shared part runs on at a time; None chooses what fits the cache of a CPU. In
            training mode batch normalisation takes its statistics over such a chunk.
        replay: False runs the whole model in every step.
        output: takes the outputs, one row per example, out of what the model returns.
        support_chunk: support examples whose graph is held at a time, which bounds memory; the same numbers. None for all.
        target_scale: mean and standard deviation of real targets; inside they are standardised, predictions are in the user's unit.
            :func:`~headstart.train` takes it from the training tasks of a source that offers it.
        precision: ``"bf16"`` runs the body in bfloat16, ``"tf32"`` rounds its products on a CUDA device, ``"fp32"`` does neither; heads,
            inner updates, sums and losses are in single precision. None is what torch is set to.

    Raises:
        ConfigError: the parts do not fit together.

    Example:
        >>> import headstart as hs
        >>> learner = MetaLearner(hs.Partition(hs.models.mlp(features=4, ways=2), adapt="head"), hs.GradientDescent(3, 0.5))
        >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
        >>> grads, stats = learner.meta_gradient(TaskBatch(x, y, x, y))
        >>> sorted(grads)[:2]
        ['0.bias', '0.weight']
        >>> tasks = TaskBatch(x, y, x, y)
        >>> learner.use_lr(0.1)
        >>> learner.use_hypergradient(None)  # it chooses
        >>> len(learner.trajectory(tasks, steps=5)), learner.adapt(x[0], y[0]).predict(x[0]).shape  # after 0, 1, … 5 steps
        (6, torch.Size([6]))
        >>> learner.chosen_hypergradient(tasks), learner.program(tasks).head_names, list(learner.parameters())[:1]
        (SampleSpace(), ('4.weight', '4.bias'), ['4.weight'])
        >>> learner.embed([x[0], x[1]]).program is learner.program(tasks), len(list(learner.problems(tasks))), learner.model.training
        (True, 8, True)
        >>> with learner.in_use(x[0]):  # as evaluation and adapt() run the model
        ...     outputs = learner.trajectory(tasks)
        >>> text = str(learner.explain(tasks))  # what is shared, what runs once, what runs per step
    """

    def __init__(
        self,
        partition: Partition,
        inner: Solver,
        hypergradient: Hypergradient | None = None,
        *,
        loss: str | Loss | Callable[..., Tensor] = "cross_entropy",
        start: Start | None = None,
        step_weights: Sequence[float] | None = None,
        vectorise: bool | None = None,
        chunk_tasks: int | None = None,
        chunk_examples: int | None = None,
        replay: bool = True,
        output: Callable[[Any], Tensor] = default_output,
        support_chunk: int | None = None,
        target_scale: TargetScale | None = None,
        precision: Precision | None = None,
    ) -> None:
        if not isinstance(inner, Solver):
            raise ConfigError(f"inner={inner!r} is no inner solver; use GradientDescent(…), or a subclass of headstart.Solver")
        self.partition, self.inner, self.vectorise, self.use_replay = partition, inner, vectorise, replay
        self.use_hypergradient(hypergradient)
        self.loss, self.start, self.output = resolve(loss), start or ModelStart(), output
        check_chunks(chunk_tasks=chunk_tasks, chunk_examples=chunk_examples, support_chunk=support_chunk)
        self.chunk_tasks, self.chunk_examples, self.support_chunk = chunk_tasks, chunk_examples, support_chunk
        self.step_weights = as_step_weights(step_weights, inner.steps)
        self.theta: Params = {} if inner.undecided else inner.parameters(partition.split()[0])
        self.target_scale, self.precision = target_scale, checked(precision)
        self._snapshot = Snapshot()

    def __repr__(self) -> str:
        return f"MetaLearner({self.partition!r}, {self.inner}, start={self.start}, loss={self.loss.name!r})"

    @property
    def model(self) -> nn.Module:
        """The model that is meta-trained, in place."""
        return self.partition.model

    def parameters(self) -> Params:
        """Everything the outer loop trains, by name: w, φ, and the inner solver's own parameters as ``inner.NAME``."""
        w, phi = self.partition.split()
        return {**w, **phi, **{f"inner.{k}": v for k, v in self.theta.items()}}

    def use_lr(self, lr: Rates) -> None:
        """Gives the inner solver a step size α; what it learns itself begins anew."""
        self.inner = replace(self.inner, lr=lr)  # type: ignore[call-arg]
        self.theta = self.inner.parameters(self.partition.split()[0])

    def use_hypergradient(self, hypergradient: Hypergradient | None) -> None:
        """Differentiates in another way from now on; None chooses."""
        if hypergradient is not None and (why := refusal_of(hypergradient, self.inner)):
            raise ConfigError(why)
        self.hypergradient = hypergradient

    # -- the outer gradient --------------------------------------------------------------------------------------------

    def meta_gradient(self, tasks: TaskBatch) -> tuple[Params, MetaStats]:
        """The gradient of the mean query loss over tasks, after adaptation to their support sets (Proposition 1).

        The model runs in the mode it is in. In training mode its running averages move on: those of the part that runs once by
        what it saw, those of the part that runs per step once, by its first run.

        Args:
            tasks: T tasks.

        Returns:
            The gradient of every trained parameter by name, zero where it has no influence; and the statistics.

        Raises:
            TaskError: labels or shapes do not fit the model.
            MethodError: the inner loop cannot be differentiated in the way that was chosen.
        """
        tasks = self._standardised(tasks)
        program = self.program(tasks)
        w, phi = self.partition.trained()
        self.partition.frozen_norms()  # remembered for when the model is used in evaluation mode
        kept = record(program, tasks.examples, self._chunk(tasks.examples), moves=program.training)
        w = leaves(w)
        sums = ChainRule(w, phi, self.theta, kept)
        parts = []
        info: dict[str, Any] = {}
        with self._opened(program, kept, tasks.examples, tasks, moves=program.training) as opened:
            for seed, chunk in enumerate(tasks.chunks(self._chunk_tasks(program, tasks)), self._seed(program)):
                problem, w_0 = opened.problem(chunk, w, self.inner, seed)
                result = self._hypergradient(problem)(problem, self.inner)
                sums.add(problem, w_0, result)
                parts.append((result.losses, *self.loss.right(result.outputs, chunk.query)))
                # Of several groups of tasks the worst is reported: the largest residual, the most iterations.
                info.update({k: max(v, info.get(k, v)) for k, v in result.info.items()})
                del problem, w_0, result  # the graph of one group is gone before that of the next is built
                opened.settle()
        losses, hits, seen = (torch.stack(v).sum() if i else torch.cat(v) for i, v in enumerate(zip(*parts, strict=True)))
        mean = (losses if tasks.weight is None else tasks.weight * losses).mean()
        answers = None if self.loss.kind_for(tasks.query.y) == "real" else (hits, seen)
        with products(self.precision, losses.device):
            grads = sums.mean(len(tasks))
        return grads, MetaStats(losses, mean, answers, info)

    # -- using the start -----------------------------------------------------------------------------------------------

    def embed(self, parts: Iterable[Tree]) -> Embedded | None:
        """Runs the body of a linear head over many examples, given in parts, without gradients.

        Returns:
            What :meth:`trajectory` takes to evaluate any number of tasks over these examples without running the body
            again; None where the adapted part is not a linear head.
        """
        rows = []
        for part in parts:
            program = self._program_for(part)
            if program.head is None or self.loss.wants:
                return None
            rows.append(self._recorded(program, part).rows[FEATURES])
        return Embedded(program, Record({FEATURES: torch.cat(rows)}))

    def trajectory(self, tasks: Tasks, steps: int | None = None, embedded: Embedded | None = None, *, whole: bool = False) -> list[Tensor]:
        """The (T, Q, …) query outputs after 0, 1, …, N inner steps, without gradients.

        Args:
            tasks: the tasks; with ``embedded``, rows of the examples that were embedded.
            steps: inner steps, if other than in training.
            embedded: what :meth:`embed` returned.
            whole: run the shared part on all examples at once, for statistics over all of them.
        """
        tasks, inner = self._standardised(tasks), self.inner.with_steps(steps)
        if embedded is None:
            if not isinstance(tasks, TaskBatch):
                raise TaskError("trajectory() needs the examples of the tasks, or what embed() returned")
            program = self.program(tasks)
            embedded = Embedded(program, self._recorded(program, tasks.examples, whole), tasks.examples)
        else:
            self._check(embedded.program, tasks)
        program = embedded.program
        chunks = []
        with self._opened(program, embedded.record, embedded.examples, tasks, gradient=False) as opened:
            for seed, chunk in enumerate(tasks.chunks(self._chunk_tasks(program, tasks)), self._seed(program)):
                problem, _ = opened.problem(chunk, leaves(self.partition.split()[0]), inner, seed)
                chunks.append([v.detach() for v in inner.query_outputs(problem)])
                opened.settle()
        steps_of = [torch.cat(step) for step in zip(*chunks, strict=True)]
        return steps_of if self.target_scale is None else [self.target_scale.back(v, 2) for v in steps_of]

    def adapt(self, support_x: Any, support_y: Any, steps: int | None = None, support_weight: Tensor | None = None) -> Adapted:
        """Adapts to one task.

        Args:
            support_x: (S, …) examples: a tensor, an array or a list; a tuple or dictionary of these for several inputs.
            support_y: (S,) class indices or real targets, (S, …) labels of positions or several targets.
            steps: inner steps, if other than in training.
            support_weight: (S,) weights of the examples in the mean loss.

        Returns:
            The adapted model: a value with its own tensors. The meta-learned start stays as it is. The model is run :meth:`in_use`, its
            shared part once per example. Threads adapt one after the other.

        Raises:
            TaskError, MethodError: shapes or labels do not fit; the start is transductive.
        """
        self.start.check_inductive()
        support_x, support_y = one_task(support_x, support_y)
        index, weight = torch.arange(len(support_y), device=support_y.device), None if support_weight is None else support_weight[None]
        side = Side(index[None], support_y[None], weight)
        tasks, inner = self._standardised(TaskBatch.from_pool(support_x, side, side)), self.inner.with_steps(steps)
        with in_use(self.partition, support_x, self.output) as norms:
            for problem in self._problems(tasks, inner, len(tasks)):
                found = inner.adapted(problem)
                w = {k: v[0].detach().clone() for k, v in found.items()}
                names, reading = problem.program.head_names, Reading.of(self.loss, self.start.shape(problem.program, tasks), support_y)
                problem.runner.take_statistics(found, problem.shared)
        with evaluating(self.model):
            return Adapted.of(self._snapshot, self.model, w, names, self.output, reading, self.target_scale, norms)

    def in_use(self, examples: Tree) -> AbstractContextManager[object | None]:
        """Evaluation mode for a while, in which batch normalisation in what adapts goes by the support examples of a task."""
        return in_use(self.partition, examples, self.output)

    def explain(self, tasks: TaskBatch) -> Explanation:
        """What is shared, what is replayed, what runs per step, which hypergradient, and the estimated work of each."""
        program = self.program(tasks)
        size = self._chunk_tasks(program, tasks)
        with FlopCounterMode(display=False) as once, undisturbed(self.model, tasks.examples):
            record(program, tasks.examples, None, gradient=False)
        problem = next(iter(self._problems(tasks[:size], self.inner, size)))
        return Explanation.of(self.partition, self.inner, self._hypergradient(problem), problem, tasks, float(once.get_total_flops()))

    def chosen_hypergradient(self, tasks: TaskBatch) -> Hypergradient:
        """The hypergradient for tasks like these: the one that was given, or the one chosen by default."""
        return next(self._hypergradient(problem) for problem in self._problems(tasks[:1], self.inner, 1))

    def problems(self, tasks: TaskBatch) -> Iterable[InnerProblem]:
        """The inner problem of each task alone, in the mode the model is in, which is left as it was; for measuring."""
        return self._problems(self._standardised(tasks), self.inner, 1)

    def _problems(self, tasks: TaskBatch, inner: Solver, size: int) -> Iterable[InnerProblem]:
        program = self.program(tasks)
        with undisturbed(self.model, tasks.examples, randomness=False):
            kept = self._recorded(program, tasks.examples)
            with self._opened(program, kept, tasks.examples, tasks, hold=False) as opened:
                for seed, chunk in enumerate(tasks.chunks(size), self._seed(program)):
                    yield opened.problem(chunk, leaves(self.partition.split()[0]), inner, seed)[0]
                    opened.settle()

    # -- choosing ------------------------------------------------------------------------------------------------------

    def _standardised(self, tasks: T) -> T:
        if self.inner.undecided:
            raise ConfigError(UNDECIDED)
        return tasks if self.target_scale is None else self.target_scale.tasks(tasks)

    def program(self, tasks: TaskBatch) -> Program:
        """How the model runs for tasks like these, in the mode it is in; found once, and again when the model has changed.

        Raises:
            TaskError: the model cannot run on the examples, or its outputs do not fit the labels.
        """
        program = self._program_for(tasks.examples)
        self._check(program, tasks)
        return program

    def _program_for(self, examples: Tree) -> Program:
        return program_for(self.partition, examples, self.output, self.use_replay, self.precision)

    def _check(self, program: Program, tasks: Tasks) -> None:
        if tasks.support.bare and not self.loss.per_task:
            raise TaskError(
                f"support_y of a task holds no label, and {self.loss.name} learns from labels only; label some examples, or give a loss of"
                " the whole task, hs.losses.Loss(name, f, per_task=True)"
            )
        shape = self.start.shape(program, tasks)
        for side in (tasks.support, tasks.query):
            self.loss.check(shape, side.y, tasks.ways)

    def _recorded(self, program: Program, examples: Tree, whole: bool = False) -> Record:
        return record(program, examples, None if whole else self._chunk(examples), gradient=False).detached()

    def _opened(self, program: Program, kept: Record, examples: Tree | None, tasks: Tasks, **how: Any) -> Opened:
        own = (self.loss, self.start, self.theta, self.step_weights, self.support_chunk)
        return Opened(program, kept, examples, *own, self._vectorise(program, tasks), **how)

    def _chunk(self, examples: Tree) -> int | None:
        return examples_at_a_time(examples) if self.chunk_examples is None else self.chunk_examples

    @staticmethod
    def _seed(program: Program) -> int:
        """A draw for what is random per step, such as dropout masks: new in every call, one for each task within it."""
        return int(torch.randint(2**40, ())) if program.random or program.training else 0

    def _vectorise(self, program: Program, tasks: Tasks) -> bool:
        return runs_together(program, tasks) if self.vectorise is None else self.vectorise

    def _chunk_tasks(self, program: Program, tasks: Tasks) -> int:
        return tasks_at_a_time(program, self._vectorise(program, tasks)) if self.chunk_tasks is None else self.chunk_tasks

    def _hypergradient(self, problem: InnerProblem) -> Hypergradient:
        return hypergradient_of(problem, self.inner) if self.hypergradient is None else self.hypergradient
