"""Inner problems, solvers that adapt w to a support set, and starts."""

from headstart.inner.adam import Adam
from headstart.inner.descent import GradientDescent
from headstart.inner.learned_rates import LSLR, MetaSGD
from headstart.inner.ridge import Ridge
from headstart.inner.solver import SOLVERS, Solver
from headstart.inner.start import STARTS, ModelStart, Prototypes, SharedVector, Start

__all__ = [
    "LSLR",
    "SOLVERS",
    "STARTS",
    "Adam",
    "GradientDescent",
    "MetaSGD",
    "ModelStart",
    "Prototypes",
    "Ridge",
    "SharedVector",
    "Solver",
    "Start",
]
