"""When training ends before its last step: validation no longer improves, or adaptation does harm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from headstart.evaluation.result import show
from headstart.training.callback import Callback, Training

AGREEING = 3
"""Validations in a row that must agree on harm: one alone may be chance, and early ones may recover."""


def reason_to_stop(history: Sequence[Mapping[str, Any]], metric: str, patience: int, every: int = 1) -> str:
    """Why training ends now, or "".

    It depends on the metrics alone, so a run that was interrupted ends where it would have ended.

    Args:
        history: the lines of metrics.jsonl.
        metric: what was validated.
        patience: validations without a better one after which to end; 0 for never.
        every: steps between validations; earlier ones are too early to end on.

    Example:
        >>> lines = [{"step": i, "validation": v, "ci95": 0, "before": 0, "before_ci95": 0} for i, v in enumerate([0.5, 0.7, 0.6, 0.6])]
        >>> reason_to_stop(lines, "accuracy", 3), reason_to_stop(lines, "accuracy", 2)
        ('', 'no better validation in the last 2: the best is kept')
    """
    sign = 1 if metric == "accuracy" else -1
    found = [entry for entry in history if "validation" in entry and entry["step"] % every == 0]
    values = [sign * entry["validation"] for entry in found]
    if patience and len(values) > patience and max(values[-patience:]) <= max(values[:-patience]):
        return f"no better validation in the last {patience}: the best is kept"
    last = [entry for entry in found if entry["step"] > 0 and "before" in entry][-AGREEING:]
    if len(last) == AGREEING and all(sign * (e["before"] - e["validation"]) > math.hypot(e["ci95"], e["before_ci95"]) for e in last):
        now = last[-1]
        return (
            f"adaptation makes validation worse: {show(metric, now['before'])} before it, {show(metric, now['validation'])} after it,"
            " three times in a row; the best is kept. Use a smaller lr, fewer inner steps, --algorithm protonet, or let less adapt"
        )
    return ""


class Stopping(Callback):
    """Ends training by its validations, as the settings ``patience`` and ``validate_every`` say; every run has one."""

    def reason_to_stop(self, training: Training) -> str:
        """The reason, where the last that happened was a validation: only those can change it."""
        run, config = training.run, training.config
        if not run.history or "validation" not in run.history[-1]:
            return ""
        return reason_to_stop(run.history, run.metric, config.patience, config.validate_every)
