"""Evaluation over many episodes: scores with their intervals, by inner step and by class, calibration, comparisons."""

from headstart.evaluation.batch_norm import BatchNorm, estimate_batch_norm
from headstart.evaluation.over_episodes import evaluate
from headstart.evaluation.result import Comparison, Evaluation, compare

__all__ = ["BatchNorm", "Comparison", "Evaluation", "compare", "estimate_batch_norm", "evaluate"]
