"""Checks the mathematics on problems where the truth is known: the engine, every bound, and the convergence that follows.

A bound fails when something exceeds it, and also when the problem that was built to reach it no longer does: a bound that has
become loose is as wrong as one that does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from headstart.errors import ConfigError
from headstart.verifying import bound_checks, engine_checks
from headstart.verifying.table import Table
from headstart.verifying.zoo import zoo

CHECKS = {
    "proposition 1": engine_checks.exactness,
    "lipschitz": bound_checks.lipschitz,
    "variance": bound_checks.variance,
    "descent": bound_checks.descent,
    "ledger": engine_checks.calls,
}


def verify(pairs: int = 10_000, seed: int = 0, checks: Sequence[str] | None = None, problems: str | None = None) -> Table:
    """Runs the checks; the same numbers for the same arguments.

    Args:
        pairs: pairs of points per problem, half of them near each other.
        seed: of all that is random.
        checks: names in :data:`CHECKS`; None for all.
        problems: only those of the zoo with this in their name; None for all. The engine's checks have models of their own.

    Raises:
        ConfigError: a check is not known, no problem is left, or there are fewer than two pairs.

    Example:
        >>> verify(pairs=20, checks=["variance"], problems="opposite").ok
        True
    """
    for name in checks or ():
        if name not in CHECKS:
            raise ConfigError(f"check {name!r} is not known; use some of {', '.join(CHECKS)}")
    if pairs < 2:
        raise ConfigError(f"pairs={pairs}: give at least 2, one near and one far; 10,000 is usual")
    cases = [case for case in zoo() if problems is None or problems in case.problem.name]
    if not cases:
        known = sorted({case.problem.name for case in zoo()})
        raise ConfigError(f"problems={problems!r}: no problem has this in its name; they are {', '.join(known)}")
    return Table(tuple(row for name in checks or CHECKS for row in CHECKS[name](cases, pairs, seed)))
