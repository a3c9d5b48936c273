"""The reverse of a head's path in sample space, written by hand: against difference quotients and against autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import headstart as hs
from headstart.inner.sample_path import Gram, Path, SamplePath
from headstart.loss import Loss

T, S, C = 2, 4, 3
CASES = {
    "classes": (hs.losses.cross_entropy, torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])),
    "soft labels": (hs.losses.cross_entropy, torch.rand(T, S, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)),
    "binary": (hs.losses.binary_cross_entropy, torch.ones(T, S, C, dtype=torch.float64)),
    "numbers": (hs.losses.squared_error, torch.ones(T, S, C, dtype=torch.float64)),
}


def path_of(loss: Loss, y: Tensor, rates: list[float], l2: float) -> Path:
    share = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)[:, None]
    return Path(loss.linearised, y, share, rates, l2, lambda: None, lambda: None)


def inputs() -> list[Tensor]:
    torch.manual_seed(0)
    z = torch.randn(T, S, 5, dtype=torch.float64)
    return [(z @ z.mT).requires_grad_(), torch.randn(T, S, C, dtype=torch.float64, requires_grad=True)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rates", [[0.3], [0.3, 0.2, 0.5]])
def test_difference_quotients(case: str, rates: list[float]) -> None:
    """Of every step's coefficients, in K and L_0. K is symmetric, and so are the directions."""
    path = path_of(*CASES[case], rates, 0.2)
    symmetric = lambda K, L_0: SamplePath.apply((K + K.mT) / 2, L_0, path)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric, inputs())


@pytest.mark.parametrize("case", CASES)
def test_autograd_finds_the_curvature(case: str) -> None:
    """A loss of one's own with a residual and no curvature has the same derivative."""
    loss, y = CASES[case]
    found = []
    for own in (loss, replace(loss, line=None)):
        given = inputs()
        every = SamplePath.apply(*given, path_of(own, y, [0.3, 0.2], 0.1))
        found.append(torch.autograd.grad(sum(a.square().sum() for a in every), given))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_one_step_in_the_middle() -> None:
    """An objective of one step alone: what comes after it has no influence."""
    loss, y = CASES["classes"]
    (K, L_0), path = inputs(), path_of(loss, y, [0.3, 0.2, 0.5], 0.0)
    first = torch.autograd.grad(SamplePath.apply(K, L_0, path)[0].square().sum(), [K, L_0])
    short = torch.autograd.grad(SamplePath.apply(K, L_0, path_of(loss, y, [0.3], 0.0))[0].square().sum(), [K, L_0])
    assert all(torch.equal(a, b) for a, b in zip(first, short, strict=True))


def test_gram() -> None:
    """Inner products of rows, and their derivative."""
    z = torch.randn(T, S, C, dtype=torch.float64, requires_grad=True)
    assert torch.equal(Gram.apply(z), z @ z.mT)
    assert torch.autograd.gradcheck(Gram.apply, [z])
