"""Sine waves as a source of data, the first toy problem of MAML."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.data.samplers.waves import Waves

TRAIN, VALIDATION, TEST = Waves("train"), Waves("validation"), Waves("test")


@dataclass(frozen=True)
class Sinusoids:
    """Sine waves as a source of data."""

    train: Waves = TRAIN
    validation: Waves = VALIDATION
    test: Waves = TEST

    def __str__(self) -> str:
        return "sinusoid: endless sine waves, regression of one number on one"


def load() -> Sinusoids:
    """Sine waves as a source of data."""
    return Sinusoids()
