"""What decides a claim: iterations and cost to a training loss that all cells reach, intervals over seeds, and a trend test."""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headstart.errors import ConfigError
from headstart.reproduction.cells import Result
from headstart.reproduction.grid import Figure, Setting

SIGNIFICANT = 0.05


def scipy_stats() -> Any:
    """SciPy's statistics, without which no claim can be tested.

    Raises:
        ConfigError: SciPy is not installed.
    """
    try:
        return importlib.import_module("scipy.stats")
    except ImportError as error:
        raise ConfigError("testing claims needs SciPy: pip install 'headstart[theory]'") from error


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval of Student's t; infinitely wide for a single seed."""

    mean: float
    half: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Of one value for each seed.

        Example:
            >>> found = Interval.of([1.0, 2.0, 3.0])
            >>> found.mean, round(found.half, 3)
            (2.0, 2.484)
        """
        n = len(values)
        if n < 2:
            return cls(values[0] if values else math.nan, math.inf, n)
        return cls(statistics.fmean(values), float(scipy_stats().t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n), n)

    @property
    def above_zero(self) -> bool:
        """Whether all of it is above 0."""
        return self.mean - self.half > 0

    @property
    def below_zero(self) -> bool:
        """Whether all of it is below 0."""
        return self.mean + self.half < 0

    def show(self, factor: float = 1.0, digits: int = 1) -> str:
        """As it prints."""
        half = f" ± {factor * self.half:.{digits}f}" if math.isfinite(self.half) else ""
        return f"{factor * self.mean:.{digits}f}{half}"


def smooth(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value with those before it, up to ``width`` of them; the first few are means of fewer.

    Example:
        >>> smooth([2.0, 4.0, 6.0], 2)
        [2.0, 3.0, 5.0]
    """
    total, found = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        found.append(total / min(i + 1, width))
    return found


@dataclass(frozen=True, eq=False)
class Reached:
    """How many outer steps every cell of a figure takes to one training loss.

    Args:
        target: the lowest loss that all of them reach: the running mean over ``width`` steps.
        width: of that mean.
        steps: by setting, then seed.
        left_out: labels of settings with a cell that diverged.
    """

    target: float
    width: int
    steps: dict[Setting, dict[int, int]]
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, figure: Figure, found: Mapping[Setting, Sequence[Result]]) -> Reached | None:
        """Of the cells of a figure; None where fewer than two settings ran to their end."""
        bad = [s for s in figure.settings if s in found and any(r.diverged for r in found[s])]
        good = {s: found[s] for s in figure.settings if s in found and found[s] and s not in bad}
        if len(good) < 2:
            return None
        width = max(3, min(len(r.losses) for own in good.values() for r in own) // 8)
        # A mean over fewer steps than the width is noise: it reaches nothing.
        curves = {s: {r.seed: smooth(r.losses, width)[width - 1 :] for r in own} for s, own in good.items()}
        target = max(min(curve) for own in curves.values() for curve in own.values())
        first = lambda curve: next(i for i, v in enumerate(curve) if v <= target) + width  # noqa: E731
        return cls(target, width, {s: {k: first(c) for k, c in own.items()} for s, own in curves.items()}, tuple(s.label for s in bad))

    def cost(self, price: Mapping[Setting, float]) -> dict[Setting, dict[int, float]]:
        """The same in units of which a step of a setting takes so many."""
        return {s: {k: n * price[s] for k, n in own.items()} for s, own in self.steps.items() if s in price}


def log_ratio(a: Mapping[int, float], b: Mapping[int, float]) -> Interval:
    """log(a/b) over the seeds that both have."""
    return Interval.of([math.log(a[k] / b[k]) for k in sorted(a.keys() & b.keys())])


@dataclass(frozen=True)
class Trend:
    """Page's test for a trend along settings, with seeds as blocks.

    Args:
        rising, falling: p-values of a rise and of a fall; 1 where there are too few seeds or settings.
    """

    rising: float
    falling: float

    @classmethod
    def of(cls, columns: Sequence[Mapping[int, float]]) -> Trend:
        """Along the settings, each with a value for every seed.

        Example:
            >>> found = Trend.of([{0: 1.0, 1: 1.1, 2: 1.0}, {0: 2.0, 1: 1.9, 2: 2.1}, {0: 3.0, 1: 3.0, 2: 2.9}, {0: 4.0, 1: 4.0, 2: 3.9}])
            >>> found.rising < 0.001, found.falling > 0.9
            (True, True)
        """
        seeds = sorted(set.intersection(*(set(c) for c in columns))) if columns else []
        if len(columns) < 3 or len(seeds) < 2:
            return cls(1.0, 1.0)
        page_trend_test = scipy_stats().page_trend_test
        table = [[c[k] for c in columns] for k in seeds]
        return cls(float(page_trend_test(table).pvalue), float(page_trend_test([row[::-1] for row in table]).pvalue))

    @property
    def verdict(self) -> str:
        """``rises``, ``falls`` or ``no trend``."""
        return "rises" if self.rising < SIGNIFICANT else "falls" if self.falling < SIGNIFICANT else "no trend"

    def __str__(self) -> str:
        return f"{self.verdict} (Page's test, p = {min(self.rising, self.falling):.2g})"


def prices_with_a_best_n_in_between(iterations: Mapping[float, float]) -> tuple[float, float] | None:
    """The prices r of an inner step, over that of an outer step without any, at which an N in between costs least to the loss.

    The cost is ``iterations(N) · (1 + r N)``. Below the first price more steps always pay; above the second the smallest N is best.

    Args:
        iterations: by N, to one loss; falling with N.

    Returns:
        The two prices; None where no price has a best N in between.

    Example:
        >>> low, high = prices_with_a_best_n_in_between({1: 100.0, 5: 40.0, 20: 35.0})
        >>> round(low, 4), round(high, 4)
        (0.01, 0.6)
    """
    first, *inner, last = sorted(iterations)
    T = iterations
    # T(n)(1 + r n) < T(m)(1 + r m) with n < m: r is above a bound where T(m) m > T(n) n, and never otherwise.
    low = [(T[n] - T[last]) / (T[last] * last - T[n] * n) for n in inner if T[last] * last > T[n] * n]
    # T(n)(1 + r n) < T(m)(1 + r m) with n > m: r is below a bound where T(n) n > T(m) m, and always otherwise.
    high = [(T[first] - T[n]) / (T[n] * n - T[first] * first) if T[n] * n > T[first] * first else math.inf for n in inner]
    if not low or not high or max(0.0, min(low)) >= max(high):
        return None
    return max(0.0, min(low)), max(high)
