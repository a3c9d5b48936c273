"""How fast the second derivatives of an inner loss change: what ρ and τ are around a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from headstart.inner.problem import SUPPORT
from headstart.measuring.lanczos import Product
from headstart.measuring.surface import Surface


class Change:
    """How much a block of the inner Hessian changes around x, per distance.

    Args:
        surface: the losses of a task.
        x: (w, φ).
        at_x: products with ∇²L_S(x), from :meth:`Surface.product`.
        out: ``"w"`` for ∇²_w L_S, ``"phi"`` for ∇_φ∇_w L_S.
    """

    def __init__(self, surface: Surface, x: Tensor, at_x: Product, out: Literal["w", "phi"]) -> None:
        self.surface, self.x, self.at_x, self.out = surface, x, at_x, out
        self.eps = torch.finfo(x.dtype).eps
        # The quotient is a lower estimate at any distance; a small one sees a peak, a large one has less rounding in it.
        self.distance = self.eps ** (1 / 3) * max(1.0, float(x.norm()))

    def largest(self, first: Tensor, directions: int, iterations: int, generator: torch.Generator) -> tuple[float, float]:
        """The largest quotient found, and by how much it grows when the distance shrinks to a quarter.

        Args:
            first: the direction to begin with; each further one is that in which the change just found grows fastest.
            directions: how many to try.
            iterations: steps of the power method for each.
            generator: for the first vectors.
        """
        v = self._in_w(random_like(self.x, generator))
        d, best, at_best = first, 0.0, (first, v)
        for _ in range(directions):
            value, v, u = self._norm(d, self.distance, iterations, v)
            if value > best:
                best, at_best = value, (d, v)
            d = self._steepest(v, u)
            if not float(d.norm()):
                d = random_like(self.x, generator)
        closer, _, _ = self._norm(at_best[0], self.distance / 4, iterations, at_best[1])
        return max(best, closer), closer / best if best else 0.0

    def _norm(self, direction: Tensor, distance: float, iterations: int, v: Tensor) -> tuple[float, Tensor, Tensor]:
        """The norm of D = (∇²L(y) − ∇²L(x)) / ‖y − x‖ in one block, less rounding, and its unit vectors v in w and u.

        The power method on DᵀD; ``‖D v‖`` and ``‖Dᵀu‖`` are both lower estimates.
        """
        y = self.x + distance * direction / direction.norm()
        gap = float((y - self.x).norm())
        at_y = self.surface.product(y, SUPPORT)
        v, u, value = v / v.norm(), torch.zeros_like(v), 0.0
        for i in range(iterations):
            z = u if i % 2 else v
            a, b = self.at_x(z), at_y(z)
            z = (self._in_w if i % 2 else self._out)((b - a) / gap)
            length = float(z.norm())
            value = max(value, length - 8 * self.eps * float(a.norm() + b.norm()) / gap)
            if not length:
                break
            if i % 2:
                v = z / length
            else:
                u = z / length
        return value, v, u

    def _steepest(self, v: Tensor, u: Tensor) -> Tensor:
        """∇_x (uᵀ ∇²L(x) v): the direction in which the change grows fastest, from second differences of gradients."""
        if not float(u.norm()):
            return torch.zeros_like(u)
        h = self.distance
        gradient = lambda d: self.surface.gradient(self.x + h * d, SUPPORT)  # noqa: E731
        # uᵀHv = ¼ ((u+v)ᵀH(u+v) − (u−v)ᵀH(u−v)), and the terms at x itself cancel.
        found = gradient(u + v) + gradient(-u - v) - gradient(u - v) - gradient(v - u)
        return found if bool(torch.isfinite(found).all()) else torch.zeros_like(found)

    def _in_w(self, x: Tensor) -> Tensor:
        return torch.cat([x[: self.surface.n_w], torch.zeros_like(x[self.surface.n_w :])])

    def _out(self, x: Tensor) -> Tensor:
        return self._in_w(x) if self.out == "w" else torch.cat([torch.zeros_like(x[: self.surface.n_w]), x[self.surface.n_w :]])


def random_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """A normal draw in the shape, dtype and device of a tensor, the same on every device."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def first_direction(surface: Surface, path: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Along the path, with as much of φ, at random: where tasks and meta-training move x."""
    parts = [p / p.norm() for p in random_like(path[0], generator).split([surface.n_w, surface.n_phi]) if len(p)]
    along = (path[-1] - path[0])[: surface.n_w]
    return torch.cat([along / along.norm() if float(along.norm()) else parts[0], *parts[1:]])
