"""Evaluation over many episodes: scores with their intervals, by inner step and by class, calibration, comparisons."""

from headstart.evaluation.batch_norm import BatchNorm, estimate_batch_norm
from headstart.evaluation.calibration import Calibration, calibrate, confidences
from headstart.evaluation.over_episodes import evaluate
from headstart.evaluation.result import Comparison, Evaluation, compare

__all__ = ["BatchNorm", "Calibration", "Comparison", "Evaluation", "calibrate", "compare", "confidences", "estimate_batch_norm", "evaluate"]
