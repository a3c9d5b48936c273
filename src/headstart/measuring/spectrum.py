"""The eigenvalues of the inner Hessian ``H_m = ∇²_w L_S(w_m, φ)`` along the inner path: what μ and L are in a given problem.

For a linear head they are exact: in an orthonormal basis of the span of the support features the Hessian is a matrix of
C·min(S, D+1) rows. For anything else they come from Lanczos iterations on Hessian-vector products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from headstart.errors import ConfigError, MethodError
from headstart.inner.linear_head import LinearHead
from headstart.inner.problem import SUPPORT
from headstart.learner import MetaLearner
from headstart.measuring.access import OneTask, known_loss, regularisation
from headstart.measuring.lanczos import DENSE, DIVERGED, Ends, arpack_module, ends_of
from headstart.measuring.surface import at_rest, hessian_product, inner_paths
from headstart.tasks import TaskBatch
from headstart.types import Params

Geometry = Literal["strongly convex", "convex", "nonconvex"]
WHOLE = 1000
"""Matrices that exist anyway are solved whole up to this size."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The smallest and largest eigenvalue of every task's inner Hessian at every inner iterate.

    Args:
        smallest, largest: (T, N+1), float64; of the loss with its regulariser.
        converged: (T, N+1) whether they were found to the tolerance; where not, the best estimates stand, which lie inside.
        regularisation: the part of every eigenvalue that ``l2`` and ``prox`` give.
        convex: whether the inner loss is convex in w by its structure, for all w: a linear head with cross-entropy or
            squared error.
        tolerance: how far, relative to the largest magnitude, an eigenvalue may lie outside of what was found.
        rounding: the same, for the arithmetic of the products alone.
        method: ``"sample space"``, ``"dense"`` or ``"Lanczos"``.

    Example:
        >>> s = Spectrum(torch.tensor([[0.1, 0.2]]), torch.tensor([[3.0, 2.0]]), torch.ones(1, 2).bool(), 0.1, True, 0, 0, "dense")
        >>> round(s.mu, 3), s.L, s.geometry
        (0.1, 3.0, 'strongly convex')
    """

    smallest: Tensor
    largest: Tensor
    converged: Tensor
    regularisation: float
    convex: bool
    tolerance: float
    rounding: float
    method: str

    @property
    def mu(self) -> float:
        """μ̂, the smallest eigenvalue over tasks and iterates."""
        return float(self.smallest.min())

    @property
    def L(self) -> float:
        """L̂, the largest magnitude of an eigenvalue over tasks and iterates."""
        return float(torch.maximum(self.smallest.abs(), self.largest.abs()).max())

    def quantiles(self) -> tuple[Tensor, Tensor]:
        """The 0, 25, 50, 75 and 100 % points over tasks: of the smallest eigenvalue of each path, and of the largest."""
        q = torch.tensor(QUANTILES, dtype=torch.float64)
        return self.smallest.double().min(1).values.quantile(q), self.largest.double().max(1).values.quantile(q)

    @property
    def geometry(self) -> Geometry:
        """Which column of the theory applies; :attr:`reason` says on what evidence.

        ``"strongly convex"``: every smallest eigenvalue is above 0 by more than the tolerance. For a linear head this is proven
        for all w; for another model it was measured on the path and nowhere else.

        ``"convex"``: the structure proves that no eigenvalue is negative, but 0 is one, as for a linear head without ``l2``.
        A smallest eigenvalue near 0 that was only sampled proves nothing of the kind, so it is never called convex.

        ``"nonconvex"``: an eigenvalue was found below 0 by more than rounding — a proof, since a Rayleigh quotient is never
        below the smallest eigenvalue — or, where the smallest is 0 within the tolerance, convexity is not established. The
        bounds for nonconvex losses hold then too: they assume neither.
        """
        return self._judged()[0]

    @property
    def reason(self) -> str:
        """The evidence for :attr:`geometry`, in words."""
        return self._judged()[1]

    def _judged(self) -> tuple[Geometry, str]:
        mu, L = self.mu, self.L
        above, below = (self.tolerance + self.rounding) * L, -self.rounding * L
        where = f"{len(self.smallest)} tasks and {self.smallest.shape[1]} iterates each"
        if self.convex:
            if self.regularisation > 0:
                return "strongly convex", f"proven: a linear head with a convex loss and a regularisation of {self.regularisation:g}"
            if mu > above:
                return "strongly convex", f"a linear head with a convex loss; smallest eigenvalue {mu:.3g} over {where}"
            return "convex", "proven: a linear head with a convex loss; without l2 the smallest eigenvalue is 0, so not strongly convex"
        if mu < below:
            return "nonconvex", f"an eigenvalue of {mu:.3g} was found, below 0 by more than rounding ({-below:.1g})"
        if mu > above:
            return "strongly convex", f"measured, not proven: no eigenvalue below {mu:.3g} at {where}"
        return "nonconvex", (
            f"not established: the smallest eigenvalue, {mu:.3g} at {where}, is 0 within the tolerance {above:.1g}; no negative one was"
            " found, but the model's structure does not prove convexity"
        )

    def __str__(self) -> str:
        low, high = self.quantiles()
        show = lambda q: "  ".join(f"{float(v):10.4g}" for v in q)  # noqa: E731
        missing = int((~self.converged).sum())
        rows = [
            f"inner Hessian along the path, {self.method}: {self.geometry} ({self.reason})",
            f"over tasks:    {'min':>10}  {'25 %':>10}  {'median':>10}  {'75 %':>10}  {'max':>10}",
            f"smallest       {show(low)}",
            f"largest        {show(high)}",
        ]
        return "\n".join([*rows, f"{missing} of {self.converged.numel()} did not converge"] if missing else rows)


def inner_spectrum(learner: MetaLearner, tasks: TaskBatch, *, tolerance: float = 1e-4, restarts: int = 30) -> Spectrum:
    """Measures the smallest and largest eigenvalue of the inner Hessian at w_0 … w_N of every task.

    The model runs in evaluation mode — batch normalisation uses its running statistics — and is left as it was.

    Args:
        learner: any learner whose inner solver takes steps.
        tasks: T tasks; the work grows with T·(N+1), and ``tasks[:8]`` is usually enough.
        tolerance: of the Lanczos iterations, relative to the largest eigenvalue.
        restarts: of the Lanczos iterations, at most.

    Raises:
        MethodError: the inner solver is a closed form, the inner loop diverges, or SciPy is needed and missing.
        ConfigError: the tolerance or the number of restarts is out of range.

    Example:
        >>> import headstart as hs
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=3, lr=0.1, l2=0.1)
        >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
        >>> found = inner_spectrum(learner, TaskBatch(x, y, x, y)[:2])
        >>> found.geometry, found.smallest.shape
        ('strongly convex', torch.Size([2, 4]))
    """
    if not 0 < tolerance < 1 or restarts < 1:
        raise ConfigError(f"tolerance={tolerance}, restarts={restarts}: the tolerance lies between 0 and 1, and one restart is the least")
    ends, head, size, lam = [], False, 0, regularisation(learner)
    with at_rest(learner, tasks):
        for problem, path in inner_paths(learner, tasks):
            own, start = problem.head, None
            head = own is not None
            size = sum(v.numel() for v in path[0].values())
            for w in path:
                found = (
                    head_ends(problem, own, w, lam)
                    if own is not None
                    else ends_of(*hessian_product(problem, w), tolerance, restarts, start)
                )
                start = found.vector  # neighbours on the path have similar eigenvectors
                ends.append(found)
    shape = (len(tasks), learner.inner.steps + 1)
    column = lambda name, dtype: torch.tensor([getattr(e, name) for e in ends], dtype=dtype).view(shape)  # noqa: E731
    by_lanczos = not head and size > DENSE
    dtype = next(iter(learner.partition.split()[0].values())).dtype
    return Spectrum(
        column("smallest", torch.float64),
        column("largest", torch.float64),
        column("converged", torch.bool),
        lam,
        head and known_loss(learner.loss) is not None,
        # Five, since the shift that makes both ends relative to the scale is four times that scale.
        5 * tolerance if by_lanczos else 0.0,
        200 * torch.finfo(dtype).eps,
        "sample space" if head else "Lanczos" if by_lanczos else "dense",
    )


# -- a linear head, exactly ------------------------------------------------------------------------------------------------


def head_ends(problem: OneTask, head: LinearHead, w: Params, lam: float) -> Ends:
    """The ends of the spectrum of a linear head's Hessian at (1, …) parameters w, from the span of its support features.

    With ``A_i = s_i ∇²ℓ_i`` in the logits and features z̃_i = (z_i, 1), ``H = λ I + Σ_i A_i ⊗ z̃_i z̃_iᵀ``. The Gram matrix
    ``K = U diag(k) Uᵀ`` of the features gives their coordinates ``R = U √k`` in an orthonormal basis of their span, in which H
    is ``λ I + Σ_i A_i ⊗ R_i R_iᵀ``; on the rest of the space it is λ I.
    """
    K_SS = head.kernel(head.z_TSD)[0].double()
    k, U = torch.linalg.eigh(K_SS)
    n_features = head.z_TSD.shape[-1] + (head.bias_TC is not None)
    kept = min(n_features, len(k))
    R_Sr = U[:, -kept:] * k[-kept:].clamp_min(0).sqrt()
    A_SCC = logit_curvature(problem, w)
    size = A_SCC.shape[-1] * kept
    M = torch.einsum("icd,ia,ib->cadb", A_SCC, R_Sr, R_Sr).reshape(size, size)
    if not bool(torch.isfinite(M).all()):
        raise MethodError(DIVERGED)
    M = (M + M.mT) / 2
    if problem.known_loss == "cross_entropy":  # the logits of all classes together have no influence: 0 is always an eigenvalue
        found = Ends(0.0, float(torch.linalg.eigvalsh(M)[-1]) if size <= WHOLE else _largest(M))
    elif size <= WHOLE:
        values = torch.linalg.eigvalsh(M)
        found = Ends(float(values[0]), float(values[-1]))
    else:
        found = ends_of(lambda v: M @ v, M[0], 1e-9, 100, None)
    low, high = found.smallest, found.largest
    if n_features > len(k):  # more features than examples: on the rest of the space the loss is flat
        low, high = min(low, 0.0), max(high, 0.0)
    if problem.known_loss:
        low = max(low, 0.0)  # convex: what is below is rounding
    return Ends(low + lam, high + lam, None, found.converged)


def logit_curvature(problem: OneTask, w: Params) -> Tensor:
    """(S, C, C) ``s_i ∇²ℓ_i`` in the logits of the support examples of one task, float64."""
    logits = problem.support_logits(w).detach().double().requires_grad_()
    with torch.enable_grad():
        first = torch.autograd.grad(problem.mean_loss(logits, SUPPORT), logits, create_graph=True)[0]
        if not first.requires_grad:
            return logits.new_zeros(*logits.shape[1:], logits.shape[-1]).detach()
        rows = [
            torch.autograd.grad(first[..., c].sum(), logits, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for c in range(logits.shape[-1])
        ]
    return torch.stack(rows, -1)[0].detach()


def _largest(M: Tensor) -> float:
    return float(arpack_module().eigsh(M.cpu().numpy(), k=1, which="LA", tol=1e-9, return_eigenvectors=False, v0=np.ones(len(M)))[0])
