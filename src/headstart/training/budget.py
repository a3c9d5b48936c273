"""What fits into the time there is: how tasks are drawn, the width of the network, and the number of iterations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from headstart.data.drawing import Data, signature
from headstart.learner import MetaLearner
from headstart.ranks import ALONE, Ranks
from headstart.training.config import AUTO, RunConfig
from headstart.training.divided import Division
from headstart.training.loop import training_sampler

DENSE_TASKS = 128
NARROW = 32
FEWEST = 50
"""Iterations below which training is not worth its name: so many are taken whatever the time."""
SHARE = 0.85
"""Of the time that is for steps; the rest is for validation."""
TRIED = 0.15
"""Of the time, what trials of an open start or step size take."""


def fit_time(
    config: RunConfig, source: Data, learner_of: Callable[[RunConfig], MetaLearner], given: Collection[str], ranks: Ranks = ALONE
) -> tuple[RunConfig, list[str]]:
    """Lowers what was not given until training fits into ``config.minutes``.

    Where only the head adapts, tasks are drawn from one pool of examples: a step of many tasks costs what few independent ones do.

    Args:
        config: the run.
        source: its data.
        learner_of: builds the learner of a config, with any step size.
        given: names of settings that the user gave, which stay.
        ranks: who will share the work of a step; what is measured is this one's part of it.

    Returns:
        The config, and a sentence for each decision.
    """
    config, notes = pooled(config, source, given)
    pictures = len(signature(source.train, config.train.ways).shape) == 3
    if (pools := min(ranks.world, config.train.tasks)) > 1 and "pools" not in given:
        config = _with(config, pools=pools)
        notes.append(f"pools={pools}, one for each process; with so many, any number of processes gives the same weights")
    wanted = config.train.iterations
    if not config.minutes or "iterations" in given:
        return config, notes
    each, own = _seconds(config, source, learner_of, ranks), config.learner
    share = SHARE - (TRIED if own.measures_lr or own.start == AUTO else 0.0)
    afford = lambda: int(share * 60 * config.minutes / each)  # noqa: E731
    if (
        afford() < wanted / 2
        and pictures
        and "filters" not in given
        and config.learner.filters > NARROW
        and config.learner.model in ("auto", "conv4")
    ):
        config = replace(config, learner=replace(config.learner, filters=NARROW))
        notes.append(f"filters={NARROW}, as a step takes {each:.2g} s with the usual 64")
        each = _seconds(config, source, learner_of, ranks)
    if afford() < wanted:
        fewer = max(FEWEST, afford())
        config = _with(config, iterations=fewer, validate_every=max(1, min(config.train.validate_every, fewer // 5)))
        more = wanted * each / 60 / share
        notes.append(
            f"iterations={fewer}, what {config.minutes:g} minutes are enough for at {each:.2g} s a step;"
            f" --minutes {_shown(more)} would allow {wanted}"
        )
    return config, notes


def pooled(config: RunConfig, source: Data, given: Collection[str]) -> tuple[RunConfig, list[str]]:
    """Many tasks from one pool of examples, where only the head adapts and nothing else was asked for; and the sentence that says so."""
    head = config.learner.adapt.partition(".")[0] == "head"
    if not head or not signature(source.train, config.train.ways).by_class or {"sampling", "tasks"} & set(given):
        return config, []
    note = f"sampling=dense: {DENSE_TASKS} tasks a step from one pool of examples, as only the head adapts"
    return _with(config, sampling="dense", tasks=DENSE_TASKS), [note]


def _shown(minutes: float) -> str:
    """Minutes, rounded up: whole ones, or below ten with a decimal."""
    return f"{math.ceil(minutes)}" if minutes >= 10 else f"{math.ceil(10 * minutes) / 10:g}"


def _with(config: RunConfig, **changes: object) -> RunConfig:
    return replace(config, train=replace(config.train, **changes))  # type: ignore[arg-type]


def _seconds(config: RunConfig, source: Data, learner_of: Callable[[RunConfig], MetaLearner], ranks: Ranks) -> float:
    """Of one step, or this rank's part of it; the second, as the first sets things up."""
    learner = learner_of(config)
    learner.target_scale = learner.target_scale or getattr(source.train, "target_scale", None)
    learner.model.train()
    sampler, device = training_sampler(source, config.train), next(learner.model.parameters()).device
    draw = Division.of(config.train, sampler.tasks, ranks).drawn(sampler, device)
    taken = 0.0
    for index in range(2):
        begin = time.perf_counter()
        for tasks in draw(index).values():
            float(learner.meta_gradient(tasks)[1].loss)
        taken = time.perf_counter() - begin
    return taken
