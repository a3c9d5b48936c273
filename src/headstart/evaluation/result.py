"""What an evaluation found, and the comparison of two over the same episodes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from headstart.container import read_json, understood, write_json
from headstart.errors import ConfigError

OF_THE_LEARNER = {"inner", "adapt", "start", "batch_norm"}  # entries of a protocol that two compared learners may differ in


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation; prints itself, and saves as JSON.

    Args:
        metric: ``"accuracy"``, 0 to 1; or ``"squared error"``, the mean over query examples and outputs.
        mean: of the metric over episodes, after the last inner step.
        ci95: half the width of its 95% interval: 1.96 standard deviations of the episodes' scores over the root of their number.
        per_step: the same pair after 0, 1, …, N inner steps; the first is before adaptation.
        per_class: accuracy on the query examples of each class that was drawn; of tables the metric by task.
        further: more metrics as pairs (mean, half the 95% interval): ``"R²"`` for real targets: one less the mean error over the mean
            variance of query targets within an episode; ``"balanced accuracy"``, the mean over classes, where query sets have more of
            one class than of another; ``"AUPRC"`` for tables of two classes, the average precision of the second class, and
            ``"ΔAUPRC"``, that less its share of the query set (Stanley et al., 2021).
        calibration: expected calibration error: the mean gap between confidence and accuracy over 15 bins of confidence
            (Guo et al., ICML 2017); None for real targets.
        diverged: share of the episodes in which adaptation ended in values that are not finite; their queries count as wrong, and
            their squared error as infinite.
        protocol: everything that defines the numbers.
        scores: the metric in every episode.

    Example:
        >>> import headstart as hs
        >>> split = hs.data.Split(torch.randint(256, (60, 1, 16, 16), dtype=torch.uint8), [f"c{i}" for i in range(6)], [10] * 6)
        >>> learner = hs.protonet(hs.models.conv4(channels=1, ways=5, size=16, filters=2))
        >>> result = hs.evaluate(learner, split, ways=5, shots=1, queries=3, episodes=10)
        >>> result.metric, result.before == result.mean, result.higher_is_better, result.show(0.5), result.show_with(0.5, 0.01)
        ('accuracy', True, True, '50.00 %', '50.00 % ± 1.00 %')
        >>> import tempfile
        >>> result.save(path := tempfile.mkdtemp() + "/evaluation.json")
        >>> Evaluation.load(path) == result
        True
    """

    metric: str
    mean: float
    ci95: float
    per_step: list[tuple[float, float]]
    per_class: dict[str, float]
    further: dict[str, tuple[float, float]]
    calibration: float | None
    diverged: float
    protocol: dict[str, Any]
    scores: list[float]

    @property
    def before(self) -> float:
        """Mean of the metric before inner steps; an accuracy is chance there, as labels are shuffled, unless the start is made of
        the support set (:class:`~headstart.Prototypes`)."""
        return self.per_step[0][0]

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger mean is the better one."""
        return self.metric == "accuracy"

    def show(self, value: float, digits: int = 2) -> str:
        """A value of the metric as it prints."""
        return show(self.metric, value, digits)

    def show_with(self, mean: float, half: float, digits: int = 2) -> str:
        """A value of the metric with half of its interval, as they print."""
        return show_with(self.metric, mean, half, digits)

    def __str__(self) -> str:
        steps = len(self.per_step) - 1
        # Prototypes have seen the support set, so what they give without inner steps is not "before adaptation".
        first = "with prototypes alone" if self.protocol.get("start") == "Prototypes" else "before"
        beside = [f"{self.show(self.before, 1)} {first}"]
        if "ways" in self.protocol and isinstance(self.protocol["ways"], int):
            beside[0] += f", chance {100 / self.protocol['ways']:.1f} %"
        beside += [f"{name} {mean:.3f} ± {half:.3f}" for name, (mean, half) in self.further.items()]
        if self.metric == "squared error" and math.isfinite(self.mean):
            root = math.sqrt(self.mean)  # in the targets' unit
            beside.insert(1, f"root mean squared error {root:.0f}" if 1e3 <= root < 1e7 else f"root mean squared error {root:.3g}")
        if self.calibration is not None:
            beside.append(f"calibration error {100 * self.calibration:.1f} %")
        shown = self.show_with(self.mean, self.ci95).replace(" % ±", " ±")
        return (
            f"{shown} {self.metric} after {steps} inner step{'s' * (steps != 1)} ({'; '.join(beside)})\n"
            f"{self._divergence()}{self._protocol()}; batch statistics: {self.protocol['batch_norm']}"
        )

    def _protocol(self) -> str:
        p = self.protocol
        seed = f", seed {p['seed']}" if "seed" in p else ""
        if "ways" in p:
            sizes = f"{_range(p['ways'])}-way {_range(p['shots'])}-shot, {p['queries']} queries per class"
            return f"{sizes}, {p['episodes']} episodes of {p['classes']} {p['split']} classes{seed}"
        sizes = f"{p['shots']} support and {p['queries']} query examples, " if "shots" in p else ""
        return f"{sizes}{p['episodes']} episodes of {p['tasks']}{seed}"

    def _divergence(self) -> str:
        counts = "whose queries count as wrong" if self.metric == "accuracy" else "whose error counts as infinite"
        share = f"adaptation diverged in {100 * self.diverged:.1f} % of the episodes, {counts}: use a smaller inner lr"
        return f"{share}\n" if self.diverged else ""

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Reads what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing, or holds something else.
        """
        with understood(path):
            found = read_json(Path(path))
            found["per_step"] = [tuple(pair) for pair in found["per_step"]]
            found["further"] = {name: tuple(pair) for name, pair in found["further"].items()}
            return cls(**found)


@dataclass(frozen=True)
class Comparison:
    """Two learners on the same episodes.

    Args:
        metric: what was measured.
        difference: mean of the first less that of the second.
        ci95: half the 95% interval of the paired difference, usually far narrower than of either mean.
        episodes: how many.

    Example:
        >>> str(Comparison("accuracy", difference=0.02, ci95=0.005, episodes=600))
        '+2.00 ± 0.50 points over 600 shared episodes: better'
    """

    metric: str
    difference: float
    ci95: float
    episodes: int

    def __str__(self) -> str:
        gain = self.difference if self.metric == "accuracy" else -self.difference
        verdict = "better" if gain > self.ci95 else "worse" if gain < -self.ci95 else "not different"
        if self.metric == "accuracy":
            numbers = f"{100 * self.difference:+.2f} ± {100 * self.ci95:.2f} points"
        else:
            numbers = f"{'+' * (self.difference > 0)}{show_with(self.metric, self.difference, self.ci95)} {self.metric}"
        return f"{numbers} over {self.episodes} shared episodes: {verdict}"


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """The paired difference of two evaluations of the same episodes.

    Raises:
        ConfigError: the episodes are not the same.

    Example:
        >>> import headstart as hs
        >>> split = hs.data.Split(torch.randint(256, (60, 1, 16, 16), dtype=torch.uint8), [f"c{i}" for i in range(6)], [10] * 6)
        >>> learner = hs.protonet(hs.models.conv4(channels=1, ways=5, size=16, filters=2))
        >>> one, two = (hs.evaluate(learner, split, ways=5, queries=3, episodes=10, batch_norm=b) for b in ("running", "episode"))
        >>> compare(one, two).episodes
        10
    """
    one, two = ({"metric": e.metric, **e.protocol} for e in (first, second))
    for key in sorted((one.keys() | two.keys()) - OF_THE_LEARNER):
        if one.get(key) != two.get(key):
            raise ConfigError(f"the evaluations differ in {key}: {one.get(key)!r} and {two.get(key)!r}; evaluate both alike")
    difference = torch.tensor(first.scores).double() - torch.tensor(second.scores).double()
    return Comparison(first.metric, float(difference.mean()), 1.96 * float(difference.std()) / len(difference) ** 0.5, len(difference))


def show(metric: str, value: float, digits: int = 2) -> str:
    """A value of a metric as it prints.

    Example:
        >>> show("accuracy", 0.5), show("squared error", 0.01234)
        ('50.00 %', '0.01234')
    """
    return f"{100 * value:.{digits}f} %" if metric == "accuracy" else f"{value:.{digits + 2}g}"


def show_with(metric: str, mean: float, half: float, digits: int = 2) -> str:
    """A value of a metric with half of its interval; both of an error end at the same digit, the second of the half.

    Example:
        >>> show_with("accuracy", 0.5, 0.01), show_with("squared error", 0.43127, 0.0371), show_with("squared error", 5.9e10, 2.966e9)
        ('50.00 % ± 1.00 %', '0.431 ± 0.037', '(5.90 ± 0.30)e+10')
    """
    if metric == "accuracy" or not (math.isfinite(mean) and math.isfinite(half) and mean and half > 0):
        return f"{show(metric, mean, digits)} ± {show(metric, half, digits)}"
    power = math.floor(math.log10(max(abs(mean), half)))
    small = -4 <= power < 6
    scale = 1.0 if small else 10.0**power
    decimals = max(0, 1 - math.floor(math.log10(half / scale)))
    text = f"{mean / scale:.{decimals}f} ± {half / scale:.{decimals}f}"
    return text if small else f"({text})e{power:+03d}"


def _range(value: Any) -> str:
    return str(value) if isinstance(value, int) else "-".join(map(str, value))
