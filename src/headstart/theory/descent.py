"""What a step of the outer loop is worth: the theory's formulas with locally measured quantities in the place of worst cases.

The bound of the paper follows from the descent inequality. With step size β, smoothness ℓ and a meta-gradient that has squared
mean g² and variance v over meta-batches, one step lowers F by at least ``β g² − (ℓβ²/2)(g² + v)`` in expectation, where ℓ, g²
and v hold. The best β gives ``g⁴ / (2ℓ (g² + v))``. Two blocks moved together count as twice as curved each: the mixed blocks of
a Hessian are at most the root of the product of the others when it is positive semidefinite, and then ``ℓ_ww + c t = 2 ℓ_ww``
(docs/theory.md, section 5). Measured here and now, these are predictions and not guarantees.
"""

from __future__ import annotations

import math

from headstart.errors import ConfigError


def best_step(square: float, variance: float, smoothness: float) -> float:
    """β that lowers F most in one step: ``g² / (ℓ (g² + v))``; 0 where there is nothing to gain.

    Args:
        square: g², squared norm of the mean meta-gradient of a block; estimates below 0 count as 0.
        variance: v of the meta-gradient of a meta-batch.
        smoothness: ℓ of the block.

    Example:
        >>> best_step(square=1.0, variance=1.0, smoothness=2.0)
        0.25
    """
    _not_negative(variance=variance, smoothness=smoothness)
    square = max(square, 0.0)
    return square / (smoothness * (square + variance)) if square > 0 and smoothness > 0 else 0.0


def expected_decrease(square: float, variance: float, smoothness: float) -> float:
    """The decrease of F in one step of that size: ``g⁴ / (2ℓ (g² + v))``.

    Example:
        >>> expected_decrease(square=1.0, variance=1.0, smoothness=2.0)
        0.125
    """
    return 0.5 * best_step(square, variance, smoothness) * max(square, 0.0)


def joint_decrease(w: tuple[float, float, float], phi: tuple[float, float, float] | None) -> float:
    """The decrease of F when both blocks step at once, each given as (square, variance, smoothness).

    Example:
        >>> joint_decrease((1.0, 1.0, 2.0), None), joint_decrease((1.0, 1.0, 2.0), (1.0, 1.0, 2.0))
        (0.125, 0.125)
    """
    if phi is None:
        return expected_decrease(*w)
    return sum(expected_decrease(square, variance, 2 * smoothness) for square, variance, smoothness in (w, phi))


def iterations_to(loss: float, target: float, decrease: float) -> float:
    """K, the outer steps from a loss to a target at that decrease per step; infinite where there is none.

    Example:
        >>> iterations_to(loss=2.0, target=1.0, decrease=0.125)
        8.0
    """
    if loss <= target:
        return 0.0
    if math.isinf(loss):
        return math.inf
    return (loss - target) / decrease if decrease > 0 else math.inf


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ConfigError(f"{name}={value!r}: it must be 0 or more")
