"""Few-shot evaluation over many episodes: accuracy with its interval, before adaptation and after every inner step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.data.episodes import STREAMS, Episodes, Keys
from headstart.data.store import Split
from headstart.errors import ConfigError
from headstart.learner import MetaLearner
from headstart.running import evaluating

BLOCK = 100  # episodes that are drawn and adapted together


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation; prints itself, and saves as JSON.

    Args:
        mean: accuracy over episodes after the last inner step, 0 to 1.
        ci95: half the width of its 95% interval: 1.96 standard deviations of the episodes' accuracies over the root of
            their number.
        per_step: the same pair after 0, 1, …, N inner steps; the first is before adaptation.
        protocol: everything that defines the numbers.
        accuracies: the accuracy of every episode.
    """

    mean: float
    ci95: float
    per_step: list[tuple[float, float]]
    protocol: dict[str, Any]
    accuracies: list[float]

    @property
    def before(self) -> float:
        """Mean accuracy before adaptation; with shuffled labels this is chance."""
        return self.per_step[0][0]

    def __str__(self) -> str:
        p = self.protocol
        steps = len(self.per_step) - 1
        return (
            f"{100 * self.mean:.2f} ± {100 * self.ci95:.2f} % accuracy after {steps} inner step{'s' * (steps != 1)}"
            f" ({100 * self.before:.1f} % before, chance {100 / p['ways']:.1f} %)\n"
            f"{p['ways']}-way {p['shots']}-shot, {p['queries']} queries per class, {p['episodes']} episodes"
            f" of {p['classes']} {p['split']} classes; batch statistics: {p['batch_norm']}"
        )

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Reads what :meth:`save` wrote."""
        found = json.loads(Path(path).read_text())
        found["per_step"] = [tuple(pair) for pair in found["per_step"]]
        return cls(**found)


def evaluate(
    learner: MetaLearner,
    split: Split,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int | None = None,
    episodes: int = 1000,
    steps: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Adapts to each of many independent episodes and measures the accuracy on their query examples.

    The model runs in evaluation mode: batch normalisation uses its running statistics, so a prediction never depends on
    other query examples (inductive). Call :func:`estimate_batch_norm` on training images first, as :func:`train` does.

    Args:
        learner: what to evaluate.
        split: classes to draw from, unseen in training.
        ways, shots, queries: of an episode; ``queries=None`` takes 15 per class, or as many as the smallest class allows.
        episodes: how many; report at least 600.
        steps: inner steps at test, if other than in training.
        seed: of the episodes.

    Raises:
        DataError: the split is too small.
        ConfigError: episodes is below 2, so that no interval exists.
    """
    if episodes < 2:
        raise ConfigError(f"episodes={episodes}: at least 2 are needed for an interval; 600 or more are usual")
    if queries is None:
        queries = max(1, min(15, min(split.counts) - shots))
    sampler = Episodes(split, ways, shots, queries, min(BLOCK, episodes), seed, "test")
    device = next(learner.model.parameters()).device
    by_step: list[list[Tensor]] = []
    with evaluating(learner.model):
        embedded = learner.embed(split.batch(torch.arange(i, min(i + 500, len(split))), device) for i in range(0, len(split), 500))
        for block in range(-(-episodes // sampler.tasks)):
            tasks = sampler.batch(block, device) if embedded is None else sampler.over_split(block, split.examples, device)
            logits = learner.trajectory(tasks, steps, embedded)
            by_step.append([(z.argmax(-1) == tasks.query_y).double().mean(1).cpu() for z in logits])
    accuracy = torch.stack([torch.cat(step)[:episodes] for step in zip(*by_step, strict=True)])  # (N+1, episodes)
    means, halves = accuracy.mean(1), 1.96 * accuracy.std(1) / episodes**0.5
    protocol = {
        "ways": ways,
        "shots": shots,
        "queries": queries,
        "episodes": episodes,
        "seed": seed,
        "split": split.name,
        "classes": len(split.classes),
        "inner": repr(learner.inner.with_steps(steps)),
        "adapt": learner.partition.adapt,
        "batch_norm": "running" if has_batch_norm(learner.model) else "none in the model",
    }
    per_step = [(float(m), float(h)) for m, h in zip(means, halves, strict=True)]
    return Evaluation(*per_step[-1], per_step, protocol, accuracy[-1].tolist())


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model keeps running statistics of batches."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules())


def estimate_batch_norm(learner: MetaLearner, split: Split, examples: int = 1000, chunk: int = 100) -> None:
    """Replaces the running statistics of batch normalisation by averages over training images.

    The statistics that training leaves behind trail the weights; single accuracies then swing by points. The images are
    always the same ones, so the result depends on the weights alone.
    """
    layers = [m for m in learner.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not layers:
        return
    device = next(learner.model.parameters()).device
    rows = torch.from_numpy(Keys(0, STREAMS["statistics"], 0).smallest((), len(split), min(examples, len(split))).astype("int64"))
    momenta = [m.momentum for m in layers]
    with evaluating(learner.model), torch.no_grad():
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average over the chunks
            layer.train()
        try:
            for part in rows.chunk(max(1, len(rows) // chunk)):
                learner.model(split.batch(part, device))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
