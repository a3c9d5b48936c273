"""Counts the oracle calls of the paper as they happen: gradients, Hessian-vector and mixed products.

The oracles are those of Ji et al. (2020), section 3: for each task, ``∇_w L_S`` and ``∇_w L_D`` (n_w numbers), ``∇_φ L_D``
(n_φ numbers), ``H·v`` with ``H = ∇²_w L_S`` (n_w) and ``C·v`` with ``C = ∇_φ∇_w L_S`` (n_φ). A task that runs together with
others counts as if it ran alone, so looped and vectorised execution give the same totals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

GRAD_W_SUPPORT, GRAD_W_QUERY, GRAD_PHI_QUERY, HVP, CVP = "grad_w_support", "grad_w_query", "grad_phi_query", "hvp", "cvp"
SYMBOLS = {GRAD_W_SUPPORT: "∇_w L_S", GRAD_W_QUERY: "∇_w L_D", GRAD_PHI_QUERY: "∇_φ L_D", HVP: "H·v", CVP: "C·v"}


@dataclass(frozen=True)
class Calls:
    """Calls of one oracle.

    Args:
        calls: how many, one per task.
        numbers: length of what they returned, summed over the calls: n_w or n_φ each.
        examples: support or query examples they touched, summed over the calls.
    """

    calls: int = 0
    numbers: int = 0
    examples: int = 0

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.calls + other.calls, self.numbers + other.numbers, self.examples + other.examples)


@dataclass
class Ledger:
    """Totals by oracle; equal to another ledger when every total is.

    Args:
        entries: from the names in :data:`SYMBOLS` to totals; an oracle that was never called is not there.
        multiply_adds: multiplications with additions in all matrix products and convolutions, both directions; None if not
            counted.

    Example:
        >>> book = Ledger()
        >>> book.add("hvp", calls=2, numbers=10, examples=8)
        >>> book["hvp"].calls, book["cvp"].calls
        (2, 0)
    """

    entries: dict[str, Calls] = field(default_factory=dict)
    multiply_adds: int | None = field(default=None, compare=False)

    def add(self, oracle: str, calls: int, numbers: int, examples: int) -> None:
        """Adds calls of one oracle; none, if there are none."""
        if calls:
            self.entries[oracle] = self[oracle] + Calls(calls, numbers, examples)

    def __getitem__(self, oracle: str) -> Calls:
        if oracle not in SYMBOLS:
            raise KeyError(f"{oracle!r} is no oracle; they are {', '.join(SYMBOLS)}")
        return self.entries.get(oracle, Calls())

    def __str__(self) -> str:
        rows = [f"{'oracle':<8} {'calls':>10} {'numbers':>16} {'examples':>12}"]
        for oracle, symbol in SYMBOLS.items():
            own = self[oracle]
            rows.append(f"{symbol:<8} {own.calls:>10,} {own.numbers:>16,} {own.examples:>12,}")
        if self.multiply_adds is not None:
            rows.append(f"multiply-adds: {self.multiply_adds:,}")
        return "\n".join(rows)


_open: ContextVar[Ledger | None] = ContextVar("headstart.counting", default=None)


@contextmanager
def ledger(multiply_adds: bool = False) -> Iterator[Ledger]:
    """Counts the oracle calls made inside; nothing is counted, and nothing costs, outside.

    Args:
        multiply_adds: count those too, as the dispatcher sees them; this slows the work down.

    Example:
        >>> import headstart as hs
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=3, lr=0.1)
        >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
        >>> with ledger() as book:
        ...     _ = learner.meta_gradient(hs.TaskBatch(x, y, x, y))
        >>> book["hvp"].calls  # N·B
        24
    """
    book = Ledger()
    token = _open.set(book)
    counter = FlopCounterMode(display=False) if multiply_adds else nullcontext()
    try:
        with counter:
            yield book
    finally:
        _open.reset(token)
        if isinstance(counter, FlopCounterMode):
            book.multiply_adds = counter.get_total_flops() // 2


def current() -> Ledger | None:
    """The ledger that is open, or None."""
    return _open.get()


class _Tap(torch.autograd.Function):
    """Passes tensors on unchanged, and notes when a gradient comes back through them."""

    @staticmethod
    def forward(ctx, book: Ledger, calls, *tensors: Tensor):  # type: ignore[no-untyped-def]
        ctx.book, ctx.calls = book, calls
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[no-untyped-def]
        for oracle, own in ctx.calls.items():
            ctx.book.add(oracle, own.calls, own.numbers, own.examples)
        return None, None, *grads


def tapped(calls: Callable[[], dict[str, Calls]], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, through which a backward pass makes these calls; the tensors themselves, at no cost, when no ledger is open."""
    book = current()
    return list(tensors) if book is None else list(_Tap.apply(book, calls(), *tensors))
