"""Inner step sizes as text: one number, one for each step, or one for each pattern of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from headstart.errors import ConfigError
from headstart.registry import parse_options

StepSizes = float | tuple[float, ...] | dict[str, float | tuple[float, ...]]
FORMS = "give auto, one number (0.4), one for each step (0.4,0.2,0.1), or either for each pattern of parameters (head.*=0.1,*=[0.02,0.01])"


def parse_lr(text: float | str) -> StepSizes:
    """The inner step sizes that a text stands for.

    Args:
        text: ``"0.4"``, ``"0.4,0.2,0.1"`` for one step after the other, ``"head.*=0.1,*=0.01"`` by parameter, or
            ``"head.*=[0.4,0.2],*=0.01"`` by both.

    Raises:
        ConfigError: a part is not a number above 0.

    Example:
        >>> parse_lr("0.4"), parse_lr("0.4,0.2,0.1"), parse_lr("head.*=0.1,*=0.01")
        (0.4, (0.4, 0.2, 0.1), {'head.*': 0.1, '*': 0.01})
    """
    if not isinstance(text, str):
        return _number(text, text)
    if "=" in text:
        return {pattern: _own(value, text) for pattern, value in parse_options(text, "lr").items()}
    parts = [part.strip() for part in text.strip().strip("[]()").split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"lr={text!r}: {FORMS}")
    numbers = tuple(_number(part, text) for part in parts)
    return numbers if len(numbers) > 1 else numbers[0]


def lr_text(value: object) -> float | str:
    """The number or text that a config holds for step sizes in any form, such as the list or table of a JSON file.

    Raises:
        ConfigError: it is none of these.

    Example:
        >>> lr_text([0.4, 0.2]), lr_text({"head.*": 0.1, "*": 0.01}), lr_text(1)
        ('0.4,0.2', 'head.*=0.1,*=0.01', 1.0)
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ",".join(f"{pattern}={list(own) if isinstance(own, Sequence) else own}" for pattern, own in value.items())
    if isinstance(value, Sequence):
        return ",".join(str(number) for number in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"lr={value!r}: {FORMS}")


def _own(value: object, text: str) -> float | tuple[float, ...]:
    return tuple(_number(part, text) for part in value) if isinstance(value, list | tuple) and value else _number(value, text)


def _number(part: object, text: object) -> float:
    try:
        number = float(part)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ConfigError(f"lr={text!r}: {part!r} is not a number; {FORMS}") from None
    if isinstance(part, bool) or not (math.isfinite(number) and number > 0):
        raise ConfigError(f"lr={text!r}: an inner step size must be above 0 and finite; 0.01 to 0.5 is usual")
    return number
