"""What the page shows of a start, and what it may ask of it, whoever answers."""

from __future__ import annotations

from typing import Any

from headstart.errors import ConfigError
from headstart.playing.asked import CLASSES, DRAWINGS, STEPS
from headstart.playing.task import own_rate
from headstart.using import TrainedStart


def about(start: TrainedStart) -> dict[str, Any]:
    """What the page shows of the start, and what it may ask for."""
    learner, calibration = start.learner, start.calibration
    return {
        "start": start.about or {},
        "steps": None if learner.inner.closed_form else learner.inner.steps,
        "lr": own_rate(learner),
        "threshold": None if calibration is None else calibration.threshold,
        "by": None if calibration is None else calibration.by,
        "ink": bool(start.preprocessing.ink),
        "size": start.preprocessing.shape[-1],
        "most": {"classes": CLASSES, "drawings": DRAWINGS, "steps": STEPS},
    }


def drawable(start: TrainedStart) -> TrainedStart:
    """The start, set up to be asked, if it learns classes of pictures.

    Raises:
        ConfigError: it does not.
    """
    kind = start.preprocessing.kind
    if kind != "pictures" or start.regression or start.classes:
        what = kind if kind != "pictures" else "pictures, but not for classes of one's own"
        raise ConfigError(f"this start takes {what}, and on the page one draws pictures; give a start that was trained on pictures")
    start.learner.model.eval()  # a trajectory runs in the mode the model is in, and a task is used in evaluation mode
    return start
