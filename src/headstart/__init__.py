"""headstart: few-shot meta-learning for any part of any PyTorch model."""

from typing import TYPE_CHECKING, Any

from headstart import data, errors, losses, models
from headstart.adapted import Adapted
from headstart.counting import Ledger, ledger
from headstart.errors import HeadstartError
from headstart.evaluation import Calibration, Comparison, Evaluation, calibrate, compare, estimate_batch_norm, evaluate
from headstart.export import export_learner_onnx, export_onnx
from headstart.hypergradient import FirstOrder, Hypergradient, Implicit, Recursive, Reptile, SampleSpace, Unrolled
from headstart.inner import (
    LSLR,
    SVM,
    Adam,
    Centroids,
    Encoded,
    GradientDescent,
    MetaCurvature,
    MetaSGD,
    ModelStart,
    Prototypes,
    RefinedPrototypes,
    Ridge,
    SharedVector,
    Solver,
    Start,
    Zeros,
)
from headstart.learner import MetaLearner
from headstart.loading import load, load_adapted
from headstart.measuring.predicted import predicted_calls
from headstart.measuring.rate import MeasuredRate, measure_lr
from headstart.meta_stats import MetaStats
from headstart.partition import Partition
from headstart.planning.config import PlanConfig
from headstart.planning.recommendation import Plan
from headstart.planning.search import plan
from headstart.presets import (
    anil,
    anil_cosine,
    anil_latent,
    boil,
    cavia,
    fomaml,
    imaml,
    maml,
    mamlpp,
    metabaseline,
    metacurvature,
    metaoptnet,
    metasgd,
    protomaml,
    protonet,
    r2d2,
    reptile,
    soft_kmeans,
)
from headstart.process import tune_process
from headstart.ranks import Ranks
from headstart.reproduction.reproduce import reproduce
from headstart.target_scale import TargetScale
from headstart.tasks import Side, TaskBatch
from headstart.training.callback import Callback, Training
from headstart.training.config import TrainConfig
from headstart.training.loggers import callbacks_of
from headstart.training.loop import Run, train
from headstart.training.observer import Observer
from headstart.training.schedules import Schedule
from headstart.using import Prediction, Predictor, TrainedStart
from headstart.version import __version__ as __version__

if TYPE_CHECKING:
    from headstart.estimators import FewShotClassifier as FewShotClassifier
    from headstart.estimators import FewShotRegressor as FewShotRegressor

__all__ = [
    "LSLR",
    "SVM",
    "Adam",
    "Adapted",
    "Calibration",
    "Callback",
    "Centroids",
    "Comparison",
    "Encoded",
    "Evaluation",
    "FirstOrder",
    "GradientDescent",
    "HeadstartError",
    "Hypergradient",
    "Implicit",
    "Ledger",
    "MeasuredRate",
    "MetaCurvature",
    "MetaLearner",
    "MetaSGD",
    "MetaStats",
    "ModelStart",
    "Observer",
    "Partition",
    "Plan",
    "PlanConfig",
    "Prediction",
    "Predictor",
    "Prototypes",
    "Ranks",
    "Recursive",
    "RefinedPrototypes",
    "Reptile",
    "Ridge",
    "Run",
    "SampleSpace",
    "Schedule",
    "SharedVector",
    "Side",
    "Solver",
    "Start",
    "TargetScale",
    "TaskBatch",
    "TrainConfig",
    "TrainedStart",
    "Training",
    "Unrolled",
    "Zeros",
    "anil",
    "anil_cosine",
    "anil_latent",
    "boil",
    "calibrate",
    "callbacks_of",
    "cavia",
    "compare",
    "data",
    "errors",
    "estimate_batch_norm",
    "evaluate",
    "export_learner_onnx",
    "export_onnx",
    "fomaml",
    "imaml",
    "ledger",
    "load",
    "load_adapted",
    "losses",
    "maml",
    "mamlpp",
    "measure_lr",
    "metabaseline",
    "metacurvature",
    "metaoptnet",
    "metasgd",
    "models",
    "plan",
    "predicted_calls",
    "protomaml",
    "protonet",
    "r2d2",
    "reproduce",
    "reptile",
    "soft_kmeans",
    "train",
    "tune_process",
]

# Not in __all__: a star import must not need scikit-learn.
_ESTIMATORS = ("FewShotClassifier", "FewShotRegressor")

if not TYPE_CHECKING:  # else a checker would believe any name

    def __getattr__(name: str) -> Any:
        """The estimators, which import scikit-learn when they are first used."""
        if name not in _ESTIMATORS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module("headstart.estimators"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ESTIMATORS})
