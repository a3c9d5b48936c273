"""Inner problems, solvers that adapt w to a support set, and starts."""

from headstart.inner.adam import Adam
from headstart.inner.curvature import MetaCurvature
from headstart.inner.descent import GradientDescent
from headstart.inner.learned_rates import LSLR, MetaSGD
from headstart.inner.prototypes import Centroids, Encoded, Prototypes, RefinedPrototypes
from headstart.inner.ridge import Ridge
from headstart.inner.solver import SOLVERS, Solver
from headstart.inner.start import STARTS, ModelStart, SharedVector, Start, Zeros
from headstart.inner.support_vectors import SVM

__all__ = [
    "LSLR",
    "SOLVERS",
    "STARTS",
    "SVM",
    "Adam",
    "Centroids",
    "Encoded",
    "GradientDescent",
    "MetaCurvature",
    "MetaSGD",
    "ModelStart",
    "Prototypes",
    "RefinedPrototypes",
    "Ridge",
    "SharedVector",
    "Solver",
    "Start",
    "Zeros",
]
