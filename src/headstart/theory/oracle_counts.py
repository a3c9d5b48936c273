"""The paper's table of oracle calls, as numbers: what one meta-gradient evaluates (Ji et al., 2020, section 3).

Exact methods make, for each task and inner step, one ``∇_w L_S``, one H·v and one C·v; ``∇_w L_D`` and ``∇_φ L_D`` are taken once. The
methods differ in three numbers alone, and what is in φ is not there where everything adapts (MAML).
"""

from __future__ import annotations

from dataclasses import dataclass

ORACLES = ("grad_w_support", "grad_w_query", "grad_phi_query", "hvp", "cvp")
"""∇_w L_S, ∇_w L_D, ∇_φ L_D, H·v and C·v, by their names in :mod:`headstart.counting`."""


@dataclass(frozen=True)
class OracleCounts:
    """What sets the methods apart: calls for one task, by exact, first-order, implicit and closed-form meta-gradients.

    Args:
        gradients: of ∇_w L_S.
        hessian_products: H·v.
        mixed_products: C·v.
        of_query: whether the query loss is differentiated.

    Example:
        >>> OracleCounts.exact(steps=5).table(batch=2)
        {'grad_w_support': 10, 'grad_w_query': 2, 'grad_phi_query': 2, 'hvp': 10, 'cvp': 10}
    """

    gradients: int
    hessian_products: int
    mixed_products: int
    of_query: bool = True

    @classmethod
    def exact(cls, steps: int) -> OracleCounts:
        """Through all N steps (Proposition 1)."""
        return cls(steps, steps, steps)

    @classmethod
    def first_order(cls, steps: int) -> OracleCounts:
        """H and C are left out."""
        return cls(steps, 0, 0)

    @classmethod
    def implicit(cls, steps: int, iterations: int, checks: int) -> OracleCounts:
        """A linear solver takes so many H·v, then one C·v; further gradients see that the inner loop has converged."""
        return cls(steps + checks, iterations, 1)

    @classmethod
    def path_alone(cls, steps: int) -> OracleCounts:
        """Nothing but the steps (Reptile)."""
        return cls(steps, 0, 0, of_query=False)

    @classmethod
    def closed_form(cls) -> OracleCounts:
        """There is no inner loop to call anything."""
        return cls(0, 0, 0)

    def table(self, batch: int, shared: bool = True, queries: int = 1) -> dict[str, int]:
        """The calls of one meta-gradient, by the names in :data:`ORACLES`.

        Args:
            batch: B tasks.
            shared: False where everything adapts (MAML).
            queries: steps after which the query loss is taken; more than one with the multi-step loss of MAML++.
        """
        of_phi = 1 if shared else 0
        queries = queries if self.of_query else 0
        counts = (self.gradients, queries, queries * of_phi, self.hessian_products, self.mixed_products * of_phi)
        return {name: batch * count for name, count in zip(ORACLES, counts, strict=True)}


def oracle_calls(steps: int, batch: int, shared: bool = True, first_order: bool = False) -> dict[str, int]:
    """Oracle calls of one outer iteration (paper: section 3; docs/theory.md, section 4): exact counts.

    Args:
        steps: N.
        batch: B tasks.
        shared: False where everything adapts (MAML).
        first_order: whether H and C are left out.

    Example:
        >>> oracle_calls(steps=5, batch=2)
        {'grad_w_support': 10, 'grad_w_query': 2, 'grad_phi_query': 2, 'hvp': 10, 'cvp': 10}
    """
    counts = OracleCounts.first_order(steps) if first_order else OracleCounts.exact(steps)
    return counts.table(batch, shared)
