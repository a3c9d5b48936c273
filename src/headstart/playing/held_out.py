"""How well a start does, by inner steps, on tasks of characters that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headstart import data
from headstart.data.drawing import sampler_of
from headstart.opened import Embedded
from headstart.playing.task import longest, with_rate
from headstart.tasks import TaskBatch
from headstart.using import TrainedStart

EPISODES, QUERIES = 60, 5
AT_HAND = ("glyphs",)
"""Sources that need no download."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Episodes of test classes, on which the body has run once, so that they can be asked again with every α.

    Args:
        start: what is asked.
        tasks: the episodes.
        embedded: their examples behind the body.
        about: what they are, for people.
    """

    start: TrainedStart
    tasks: TaskBatch
    embedded: Embedded
    about: dict[str, Any]

    @classmethod
    def drawn(cls, start: TrainedStart) -> TaskBatch | None:
        """Episodes of the data that a start was trained on, of as many ways and shots; None where that is not at hand."""
        said = start.about or {}
        if said.get("data") not in AT_HAND:
            return None
        split = data.load(said["data"]).test
        wanted = {"ways": int(said["ways"]), "shots": int(said["shots"]), "queries": QUERIES, "tasks": EPISODES}
        return sampler_of(split, **wanted, seed=0, stream="test").batch(0).own_pool()  # type: ignore[no-any-return]

    @classmethod
    def of(cls, start: TrainedStart, tasks: TaskBatch | None) -> HeldOut | None:
        """With the body run on drawn episodes; None where more than a head adapts, as steps would then take too long to play with."""
        embedded = None if tasks is None else start.learner.embed(tasks.examples.split(100))  # type: ignore[union-attr]
        if tasks is None or embedded is None:
            return None
        ways, shots = tasks.ways or 0, int((start.about or {})["shots"])
        about = {"episodes": len(tasks), "ways": ways, "shots": shots, "answers": tasks.query.y.numel()}
        return cls(start, tasks, embedded, about)

    def accuracy(self, steps: int, lr: float | None) -> dict[str, Any]:
        """The share of right answers after 0 … ``steps`` inner steps, and what it was taken on."""
        learner = with_rate(self.start, lr).learner
        outputs = learner.trajectory(self.tasks, longest(learner, steps), self.embedded)
        right = [float(learner.loss.hits(at, self.tasks.query.y)[0].double().mean()) for at in outputs]
        return {**self.about, "accuracy": right}
