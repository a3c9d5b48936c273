"""Whole classification before meta-training: the body learns to tell all training classes apart (Meta-Baseline's first stage).

It is meta-training without inner steps: tasks of single examples of all classes, whose numbers are fixed, under a linear head that does not
adapt. So it has the checkpoints, the validation and the resuming of every run. What enters meta-training is everything but the last layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from headstart.data import Source
from headstart.data.augment import BY_NAME, NONE, Augment
from headstart.data.drawing import TaskSampler
from headstart.data.samplers.draws import STREAMS, Keys
from headstart.data.source import Split
from headstart.errors import ConfigError
from headstart.inner.descent import GradientDescent
from headstart.learner import MetaLearner
from headstart.partition import Partition
from headstart.ranks import Ranks
from headstart.tasks import Side, TaskBatch
from headstart.training import checkpoint
from headstart.training.config import TrainConfig
from headstart.training.run_folder import LAST, PRETRAINED, Run

HELD_OUT = 10
"""One in so many examples of each class is kept for validation, and at least one."""
BATCH, BATCHES = 128, 16
"""Examples of a batch, and batches of a validation."""


@dataclass(frozen=True, eq=False)
class Whole(TaskSampler):
    """Batches of examples of all classes of a split, each one task whose labels are the numbers of the classes.

    The one support example of a task plays no part.

    Args:
        split: the examples.
        among: (P,) the rows that are drawn.
        seed: of the draws.
        augment: random changes to pictures.
    """

    split: Split
    among: Tensor
    seed: int = 0
    augment: Augment = NONE
    tasks: int = 1

    def batch(self, index: int, device: torch.device | str = "cpu") -> TaskBatch:
        """The batch with this index."""
        chosen = Keys(self.seed, STREAMS["train"], index).smallest((), len(self.among), min(BATCH, len(self.among)))
        rows = self.among[torch.from_numpy(chosen.astype("int64"))]
        examples, y = self.split.batch(rows), self.split.labels[rows]
        if self.augment != NONE:
            seed = int(Keys(self.seed, STREAMS["augment"], index).bits(1)[0] >> 1)
            examples = self.augment(examples, torch.Generator().manual_seed(seed))
        at = torch.arange(len(rows))[None]
        return TaskBatch.from_pool(examples, Side(at[:, :1], y[None, :1]), Side(at, y[None])).to(device)


@dataclass(frozen=True)
class WholeData:
    """The training classes as one classification; what validates is no part of what trains."""

    train: Whole
    validation: Whole
    test: Whole

    @classmethod
    def of(cls, source: object, config: TrainConfig) -> WholeData:
        """That of a source.

        Raises:
            ConfigError: its training tasks are not made of classes of examples.
        """
        if not isinstance(source, Source):
            raise ConfigError(f"pretrain={config.pretrain}: the training tasks are not made of classes of examples; leave it out")
        split, kept, held = source.train, list[Tensor](), list[Tensor]()
        for first, count in zip(split.starts, split.counts, strict=True):
            rows, some = first + torch.arange(count), max(1, count // HELD_OUT) if count > 1 else 0
            kept.append(rows[some:])
            held.append(rows[:some])
        rest = torch.cat(held)
        if not len(rest):
            raise ConfigError(f"pretrain={config.pretrain}: every training class has one example, which leaves none to validate on")
        validation = Whole(split, rest, config.seed)
        return cls(Whole(split, torch.cat(kept), config.seed, BY_NAME[config.augment]), validation, validation)


def classifier(learner: MetaLearner, classes: int, seed: int) -> tuple[MetaLearner, str]:
    """The learner's network with a linear last layer for so many classes, without inner steps; and the path of that layer.

    Raises:
        ConfigError: its last layer has no weight of shape (outputs, features).
    """
    own = dict(learner.model.named_parameters())
    last = [name for name in learner.partition.head if own[name].dim() == 2]
    if len(last) != 1:
        raise ConfigError(f"pretraining puts a linear layer in the place of the last one, but {learner.partition.head} is no such layer")
    path, like = last[0].rpartition(".")[0], own[last[0]]
    model = copy.deepcopy(learner.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(like.shape[1], classes).to(like)
    if not path:
        raise ConfigError("pretraining is for what stands before the last layer, but the model is one layer")
    model.set_submodule(path, layer)
    return MetaLearner(
        Partition(model, f"{path}.*"), GradientDescent(steps=0, lr=1.0), output=learner.output, precision=learner.precision
    ), path


def pretrained(
    train: Callable[..., Run],
    learner: MetaLearner,
    data: object,
    config: TrainConfig,
    out: str | Path | None,
    resume: bool,
    quiet: bool,
    ranks: Ranks,
) -> Run | None:
    """Trains the learner's body to tell all training classes apart, where the config says so and training has not begun.

    Args:
        train: the outer loop.
        learner: whose network gets what was learned, but for the last layer.
        data, config, out, resume, quiet, ranks: of the run, in whose folder the checkpoints of this stage are.

    Returns:
        The run of this stage; None where there is nothing to do.

    Raises:
        ConfigError: the data or the model is not made for it.
    """
    folder = None if out is None else Path(out) / PRETRAINED
    if not config.pretrain or (resume and out is not None and ranks.first(lambda: checkpoint.exists(Path(out) / LAST))):
        return None
    whole = WholeData.of(data, config)
    own, path = classifier(learner, len(whole.train.split.classes), config.seed)
    settings = replace(
        config,
        pretrain=0,
        iterations=config.pretrain,
        first_order=0.0,
        multi_step=0.0,
        validate_every=max(1, config.pretrain // 4),
        validation_episodes=BATCHES,
        patience=0,
    )
    again = folder is not None and resume and ranks.first(folder.is_dir)
    run = train(own, whole, settings, out=folder, resume=again, quiet=quiet, ranks=ranks)
    there = learner.model.state_dict()
    with torch.no_grad():
        for name, value in own.model.state_dict().items():
            if not name.startswith(f"{path}."):
                there[name].copy_(value)
    return run
