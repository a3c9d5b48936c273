"""Few-shot evaluation over many episodes: accuracy with its interval, by inner step and by class, calibration, comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headstart.data.episodes import STREAMS, Episodes, Keys
from headstart.data.store import Split
from headstart.errors import ConfigError, DataError
from headstart.learner import MetaLearner
from headstart.running import evaluating
from headstart.task import TaskBatch

BLOCK = 100  # episodes that are drawn and adapted together
BatchNorm = Literal["running", "episode", "batch"]
POLICIES = {
    "running": "running (training images; inductive)",
    "episode": "episode (its support and query examples; transductive)",
    "batch": "batch (all examples of 100 episodes; transductive)",
}


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation; prints itself, and saves as JSON.

    Args:
        mean: accuracy over episodes after the last inner step, 0 to 1.
        ci95: half the width of its 95% interval: 1.96 standard deviations of the episodes' accuracies over the root of
            their number.
        per_step: the same pair after 0, 1, …, N inner steps; the first is before adaptation.
        per_class: accuracy on the query examples of each class that was drawn.
        calibration: expected calibration error: the mean gap between confidence and accuracy over 15 bins of confidence
            (Guo et al., ICML 2017).
        diverged: share of the episodes in which adaptation ended in values that are not finite; their queries count as wrong.
        protocol: everything that defines the numbers.
        accuracies: the accuracy of every episode.
    """

    mean: float
    ci95: float
    per_step: list[tuple[float, float]]
    per_class: dict[str, float]
    calibration: float
    diverged: float
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
            f" ({100 * self.before:.1f} % before, chance {100 / p['ways']:.1f} %; calibration error {100 * self.calibration:.1f} %)\n"
            f"{self._divergence()}"
            f"{p['ways']}-way {p['shots']}-shot, {p['queries']} queries per class, {p['episodes']} episodes"
            f" of {p['classes']} {p['split']} classes, seed {p['seed']}; batch statistics: {p['batch_norm']}"
        )

    def _divergence(self) -> str:
        share = f"adaptation diverged in {100 * self.diverged:.1f} % of the episodes, whose queries count as wrong: use a smaller inner lr"
        return f"{share}\n" if self.diverged else ""

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Reads what :meth:`save` wrote."""
        found = json.loads(Path(path).read_text())
        found["per_step"] = [tuple(pair) for pair in found["per_step"]]
        return cls(**found)


@dataclass(frozen=True)
class Comparison:
    """Two learners on the same episodes.

    Args:
        difference: mean accuracy of the first less that of the second.
        ci95: half the 95% interval of the paired difference, usually far narrower than of either accuracy.
        episodes: how many.
    """

    difference: float
    ci95: float
    episodes: int

    def __str__(self) -> str:
        verdict = "better" if self.difference > self.ci95 else "worse" if self.difference < -self.ci95 else "not different"
        return f"{100 * self.difference:+.2f} ± {100 * self.ci95:.2f} points over {self.episodes} shared episodes: {verdict}"


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """The paired difference of two evaluations of the same episodes.

    Raises:
        ConfigError: the episodes are not the same.
    """
    for key in ("ways", "shots", "queries", "episodes", "seed", "split", "classes"):
        if first.protocol[key] != second.protocol[key]:
            raise ConfigError(f"the evaluations differ in {key}: {first.protocol[key]!r} and {second.protocol[key]!r}; evaluate both alike")
    difference = torch.tensor(first.accuracies).double() - torch.tensor(second.accuracies).double()
    return Comparison(float(difference.mean()), 1.96 * float(difference.std()) / len(difference) ** 0.5, len(difference))


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
    batch_norm: BatchNorm = "running",
) -> Evaluation:
    """Adapts to each of many independent episodes and measures the accuracy on their query examples.

    Args:
        learner: what to evaluate.
        split: classes to draw from, unseen in training.
        ways, shots, queries: of an episode; ``queries=None`` takes 15 per class, or as many as the smallest class allows.
        episodes: how many; report at least 600.
        steps: inner steps at test, if other than in training.
        seed: of the episodes.
        batch_norm: where batch normalisation takes its statistics from. ``"running"``: from training images, so that a
            prediction never depends on other query examples (inductive); call :func:`estimate_batch_norm` first, as
            :func:`train` does. ``"episode"``: from the episode's own support and query examples (transductive; what most
            published numbers of MAML and ANIL use). ``"batch"``: from all examples of 100 episodes together.

    Raises:
        DataError: the split is too small.
        ConfigError: episodes is below 2, so that no interval exists.
    """
    if not isinstance(split, Split):
        raise DataError(f"evaluate() takes one split, such as data.test; got {type(split).__name__}")
    if episodes < 2:
        raise ConfigError(f"episodes={episodes}: at least 2 are needed for an interval; 600 or more are usual")
    if batch_norm not in ("running", "episode", "batch"):
        raise ConfigError(f'batch_norm={batch_norm!r}: use "running", "episode" or "batch"')
    if queries is None:
        queries = max(1, min(15, min(split.counts) - shots))
    sampler = Episodes(split, ways, shots, queries, min(BLOCK, episodes), seed, "test")
    device = next(learner.model.parameters()).device
    labels = split.labels.to(device)
    by_step: list[list[Tensor]] = []
    tally = _Tally(len(split.classes))
    with normalising(learner.model, batch_norm):
        embedded = learner.embed(_parts(split, device)) if batch_norm == "running" else None
        for block in range(-(-episodes // sampler.tasks)):
            rows = sampler.over_split(block, split.examples, device)[: episodes - block * sampler.tasks]
            if embedded is not None:
                logits = learner.trajectory(rows, steps, embedded)
            else:
                logits = _unembedded(learner, rows, split, steps, batch_norm)
            by_step.append([_hits(z, rows.query_y).double().mean(1).cpu() for z in logits])
            tally.add(logits[-1], rows.query_y, labels[rows.query_index])
    accuracy = torch.stack([torch.cat(step) for step in zip(*by_step, strict=True)])  # (N+1, episodes)
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
        "batch_norm": POLICIES[batch_norm] if has_batch_norm(learner.model) else "none in the model",
    }
    per_step = [(float(m), float(h)) for m, h in zip(means, halves, strict=True)]
    diverged = tally.diverged / episodes
    return Evaluation(
        *per_step[-1], per_step, tally.per_class(split.classes), tally.calibration(), diverged, protocol, accuracy[-1].tolist()
    )


def _hits(logits: Tensor, y: Tensor) -> Tensor:
    """(T, Q) whether a prediction is right; one that is not finite is not."""
    return (logits.argmax(-1) == y) & logits.isfinite().all(-1)


def _parts(split: Split, device: torch.device) -> Iterator[Tensor]:
    """All examples of a split, some at a time."""
    for first in range(0, len(split), 500):
        yield split.batch(torch.arange(first, min(first + 500, len(split))), device)


def _unembedded(learner: MetaLearner, rows: TaskBatch, split: Split, steps: int | None, batch_norm: BatchNorm) -> list[Tensor]:
    """Query logits by step of tasks given as rows of a split, whose examples go through the model for these tasks alone."""
    size = 1 if batch_norm == "episode" else len(rows)
    found = []
    for part in rows.chunks(size):
        used, place = torch.cat([part.support_index, part.query_index], 1).unique(return_inverse=True)
        examples = split.batch(used.cpu(), rows.query_y.device)
        support, query = place.split([part.support_index.shape[1], part.query_index.shape[1]], 1)
        tasks = TaskBatch.from_pool(examples, support, part.support_y, query, part.query_y)
        found.append(learner.trajectory(tasks, steps, whole=batch_norm != "running"))
    return [torch.cat(step) for step in zip(*found, strict=True)]


class _Tally:
    """Counts per class and per bin of confidence."""

    BINS = 15

    def __init__(self, classes: int) -> None:
        self.hits, self.seen, self.diverged = torch.zeros(classes), torch.zeros(classes), 0
        self.bins = torch.zeros(3, self.BINS, dtype=torch.double)  # examples, sum of confidences, hits

    def add(self, logits: Tensor, y: Tensor, classes: Tensor) -> None:
        hit, classes = _hits(logits, y).double().cpu().reshape(-1), classes.cpu().reshape(-1)
        finite = logits.isfinite().all(-1)
        self.diverged += int((~finite).any(1).sum())
        confidence = torch.where(finite, logits.double().softmax(-1).amax(-1), 1.0).cpu().reshape(-1)
        self.hits.index_add_(0, classes, hit.float())
        self.seen.index_add_(0, classes, torch.ones_like(hit).float())
        bin_ = (confidence * self.BINS).long().clamp_max(self.BINS - 1)
        for row, value in enumerate((torch.ones_like(hit), confidence, hit)):
            self.bins[row].index_add_(0, bin_, value)

    def per_class(self, names: Sequence[str]) -> dict[str, float]:
        return {name: float(h / s) for name, h, s in zip(names, self.hits, self.seen, strict=True) if s}

    def calibration(self) -> float:
        return float((self.bins[1] - self.bins[2]).abs().sum() / self.bins[0].sum())


@contextmanager
def normalising(model: nn.Module, batch_norm: BatchNorm) -> Iterator[None]:
    """Evaluation mode with a policy for batch normalisation; modes and running statistics are put back afterwards."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [{k: b.clone() for k, b in m.named_buffers()} for m in layers]
    with evaluating(model):
        try:
            for layer in layers:
                layer.train(batch_norm != "running")
            yield
        finally:
            for layer, buffers in zip(layers, kept, strict=True):
                for k, b in layer.named_buffers():
                    b.copy_(buffers[k])


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
