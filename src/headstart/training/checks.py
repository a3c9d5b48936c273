"""Checks that settings share: a bad value is refused when the config is made, with its name and the remedy."""

from __future__ import annotations

import math

from headstart.errors import ConfigError


def at_least(config: object, minimum: float, *names: str) -> None:
    """Refuses settings that are no finite numbers, or below a minimum.

    Raises:
        ConfigError: it names the first.
    """
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value >= minimum):
            raise ConfigError(f"{name}={value!r}: it must be a number, at least {minimum:g}")
        if value >= 2**63:
            raise ConfigError(f"{name}={value!r}: it must be below 2**63")


def above_zero(config: object, *names: str) -> None:
    """Refuses settings that are not above 0 and finite.

    Raises:
        ConfigError: it names the first.
    """
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name}={value!r}: it must be above 0 and finite")


def one_of(config: object, **allowed: tuple[str, ...]) -> None:
    """Refuses settings that are none of the values there are.

    Raises:
        ConfigError: it names the first.
    """
    for name, values in allowed.items():
        if getattr(config, name) not in values:
            raise ConfigError(f"{name}={getattr(config, name)!r}: use one of {', '.join(values)}")
