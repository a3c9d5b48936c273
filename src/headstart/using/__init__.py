"""Using what was trained: a start with its preprocessing, and predictors of single tasks."""

from headstart.using.predictor import Prediction, Predictor
from headstart.using.preprocessing import Preprocessing
from headstart.using.trained import TrainedStart

__all__ = ["Prediction", "Predictor", "Preprocessing", "TrainedStart"]
