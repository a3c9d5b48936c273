"""A user's model and tasks, ready to be measured: learners, their tasks, and what one way to adapt costs and gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from headstart.data.drawing import Data, Sampler, sampler_of, signature
from headstart.evaluation import estimate_batch_norm
from headstart.inner.descent import GradientDescent
from headstart.learner import MetaLearner
from headstart.measuring.access import is_head
from headstart.measuring.constants import measure
from headstart.measuring.cost import Cost, measure_cost
from headstart.measuring.objective import Objective, measure_objective
from headstart.measuring.predicted import predicted_calls
from headstart.measuring.step_size import best_rates, curvature, smaller, two_digits
from headstart.partition import Partition
from headstart.planning.candidates import WorstCase
from headstart.ranks import ALONE, Ranks
from headstart.tasks import TaskBatch
from headstart.theory.bounds import Constants
from headstart.training.config import TrainConfig
from headstart.training.loop import training_sampler

Choice = tuple[int, float, float]
"""N, α and λ."""


@dataclass
class Workbench:
    """A copy of the model, with the tasks and the outer loop that it is to be trained by.

    Args:
        model: any module; copied.
        data: training and validation tasks.
        train: the outer loop.
        budget: seconds of training that the plan is for; measuring takes its share of it.
        options: further arguments of the learners.
        ranks: who plans together.
    """

    model: nn.Module
    data: Data
    train: TrainConfig
    budget: float
    options: dict[str, Any] = field(default_factory=dict)
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        if signature(self.data.train, self.train.ways).regression:
            self.options.setdefault("loss", "squared_error")
            self.options.setdefault("target_scale", getattr(self.data.train, "target_scale", None))
        self.model = copy.deepcopy(self.model)
        self.device = next(self.model.parameters()).device
        self._heads: dict[str, bool] = {}
        self._frozen = Partition(self.model, "all").frozen_norms() or ()
        estimate_batch_norm(self.learner("all", (1, 0.1, 0.0)), self.data.train)
        self.model.eval()

    # -- learners and their tasks --------------------------------------------------------------------------------------

    def learner(self, adapt: str, choice: Choice, model: nn.Module | None = None) -> MetaLearner:
        """One way to meta-train, on the first weights or on a model given."""
        partition = Partition(self.model if model is None else model, adapt)
        partition.seen_training(self._frozen)
        return MetaLearner(partition, GradientDescent(*choice), **self.options)

    def is_head(self, adapt: str) -> bool:
        """Whether what adapts is a linear head."""
        if adapt not in self._heads:
            self._heads[adapt] = is_head(self.learner(adapt, (1, 0.1, 0.0)), self.probe(1))
        return self._heads[adapt]

    def training(self, adapt: str) -> TrainConfig:
        """The outer loop for a partition: tasks from one pool pay only where the body runs once per example."""
        if self.train.sampling != "dense" or self.is_head(adapt):
            return self.train
        dense = training_sampler(self.data, self.train).batch(0)
        own = (dense.support.count + dense.query.count) / len(dense)  # examples of a task; what only fills it up is not one
        return replace(self.train, sampling="independent", tasks=max(1, round(dense.pool_size / own)))

    def sampler(self, adapt: str) -> Sampler:
        """The meta-batches of training."""
        return training_sampler(self.data, self.training(adapt))

    def probe(self, count: int) -> TaskBatch:
        """A few independent training tasks."""
        own = self.train
        sampler = sampler_of(self.data.train, ways=own.ways, shots=own.shots, queries=own.queries, tasks=count, seed=own.seed)
        return sampler.batch(0, self.device)[:count].own_pool()

    # -- measurements --------------------------------------------------------------------------------------------------

    def choices(self, adapt: str, steps: Sequence[int], lambdas: Sequence[float] | None, model: nn.Module | None = None) -> list[Choice]:
        """For every N and λ its best step size, around 1/L̂ of this model.

        Args:
            adapt: what adapts.
            steps: the values of N.
            lambdas: those of λ for a linear head; None for 0 and a hundredth of L̂. Other partitions take 0.
            model: None for the first weights.
        """
        head = self.is_head(adapt)
        L = curvature(self.learner(adapt, (0, 1.0, 0.0), model), self.probe(4))
        lambdas = (0.0,) if not head else lambdas if lambdas is not None else (0.0, two_digits(L / 100))
        tasks, longest, found = self.probe(32 if head else 8), max(steps), list[Choice]()
        for l2 in lambdas:
            rates = best_rates(lambda lr, l2=l2: self.learner(adapt, (longest, lr, l2), model), tasks, steps, L + l2)  # type: ignore[misc]
            found += [(N, lr, l2) for N, lr in rates.items()]
        return found

    def cost(self, adapt: str, choice: Choice) -> Cost:
        """What an outer step takes, by the first rank's clock."""
        learner, tasks = self.learner(adapt, choice), self.sampler(adapt).batch(0, self.device)
        book = predicted_calls(learner, tasks)
        return self.ranks.first(lambda: measure_cost(learner, tasks, {name: entry.calls for name, entry in book.entries.items()}))

    def objective(self, adapt: str, choice: Choice, cost: Cost, model: nn.Module | None = None) -> tuple[float, Objective]:
        """The meta-objective, from as many meta-gradients as fit a fiftieth of the budget, within limits; and the step size.

        Where some task diverges at the step size that was best on the few that were tried, a smaller one is taken.
        """
        affordable = self.budget / 50 / cost.seconds  # half for the noise, and half for the smoothness of two blocks
        batches, iterations = int(min(max(affordable / 2, 3), 32)), int(min(max(affordable / 8, 1), 6))
        N, first, l2 = choice
        for lr in smaller(first):
            learner = self.learner(adapt, (N, lr, l2), model)
            found = measure_objective(learner, self.sampler(adapt), self.device, batches=batches, iterations=iterations)
            if math.isfinite(found.loss):
                return lr, found
        return first, found

    def worst(self, adapt: str, choice: Choice, cost: Cost) -> WorstCase:
        """What the theorems promise with constants as measured: shown, and not ranked by."""
        learner = self.learner(adapt, choice)
        # Products with the Hessian of a whole body are dear, and what they say is only shown.
        tasks = self.probe(8 if cost.seconds < 0.05 else 2)
        constants = Constants(**measure(learner, tasks, points=1, directions=1, iterations=2).to_bounds())
        return WorstCase(constants, bool(learner.partition.shared))
