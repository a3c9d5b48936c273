"""Ways to differentiate through the inner loop: interchangeable objects."""

from headstart.hypergradient.base import HYPERGRADIENTS, Hypergradient, HyperResult
from headstart.hypergradient.first_order import FirstOrder
from headstart.hypergradient.implicit import Implicit
from headstart.hypergradient.recursive import Recursive
from headstart.hypergradient.reptile import Reptile
from headstart.hypergradient.sample_space import SampleSpace
from headstart.hypergradient.unrolled import Unrolled

__all__ = ["HYPERGRADIENTS", "FirstOrder", "HyperResult", "Hypergradient", "Implicit", "Recursive", "Reptile", "SampleSpace", "Unrolled"]
