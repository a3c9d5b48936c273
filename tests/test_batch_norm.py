"""Batch normalisation of our own against torch's: values, first and second derivatives, and what it leaves to torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import headstart as hs
from headstart.program.batch_norm import batch_norm

SHAPES = [(7, 3), (5, 3, 4), (4, 3, 5, 2), (2, 3, 2, 3, 2)]


def inputs(shape: tuple[int, ...], layout: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 3).contiguous(memory_format=layout)
    return [
        x.requires_grad_(),
        torch.randn(3, dtype=torch.float64, requires_grad=True),
        torch.randn(3, dtype=torch.float64, requires_grad=True),
    ]


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return batch_norm(x, None, None, weight, bias, True, 0.1, 1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_difference_quotients(shape: tuple[int, ...]) -> None:
    """First and second derivatives, of every argument, are those of the values."""
    given = inputs(shape)
    assert torch.autograd.gradcheck(ours, given)
    assert torch.autograd.gradgradcheck(ours, given)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_torch_agrees(layout: torch.memory_format) -> None:
    """Values, running statistics, and a product with the second derivative, in both memory orders."""
    found = []
    for f in (batch_norm, F.batch_norm):
        given = inputs((6, 3, 8, 8), layout)
        mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        y = f(given[0], mean, var, given[1], given[2], True, 0.3, 1e-5)
        first = torch.autograd.grad((y.sin() * y).sum(), given, create_graph=True)
        second = torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in first), given)
        found.append([y, mean, var, *first, *second])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_left_to_torch() -> None:
    """Evaluation mode, layers without weights, half precision, vmap and forward mode run as always."""
    x, weight, bias = (v.detach() for v in inputs((6, 3)))
    mean, var = torch.zeros(3).double(), torch.ones(3).double()
    assert torch.equal(batch_norm(x, mean, var, weight, bias), F.batch_norm(x, mean, var, weight, bias))
    assert torch.equal(batch_norm(x, None, None, training=True), F.batch_norm(x, None, None, training=True))
    half = [v.bfloat16() for v in (x, weight, bias)]
    assert torch.equal(ours(*half), F.batch_norm(half[0], None, None, half[1], half[2], True, 0.1, 1e-3))
    many = torch.stack([weight, 2 * weight])
    assert torch.allclose(torch.func.vmap(lambda w: ours(x, w, bias))(many)[1], ours(x, 2 * weight, bias))
    _, tangent = torch.func.jvp(lambda w: ours(x, w, bias), (weight,), (weight,))
    assert torch.allclose(tangent, ours(x, weight, torch.zeros_like(bias)))


@pytest.mark.parametrize("way", [hs.Unrolled(), hs.Recursive("double-backward"), hs.Recursive("forward-over-reverse"), hs.Recursive()])
def test_meta_gradient_of_a_plain_loop(way: hs.Hypergradient) -> None:
    """MAML through batch statistics: a loop with torch's own layers gives the same numbers, and running averages."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)).double()
    x, y = torch.randn(2, 6, 2, 6, 6, dtype=torch.float64), torch.arange(3).repeat(2, 2)
    params, total = dict(model.named_parameters()), torch.zeros((), dtype=torch.float64)
    for t in range(2):
        w = params
        for _ in range(3):
            loss = F.cross_entropy(torch.func.functional_call(model, w, (x[t],)), y[t])
            w = {
                k: v - 0.1 * g for (k, v), g in zip(w.items(), torch.autograd.grad(loss, list(w.values()), create_graph=True), strict=True)
            }
        total = total + F.cross_entropy(torch.func.functional_call(model, w, (x[t].flip(0),)), y[t].flip(0)) / 2
    plain = torch.autograd.grad(total, list(params.values()))
    learner = hs.maml(model, steps=3, lr=0.1, hypergradient=way, vectorise=False)
    grads, _ = learner.meta_gradient(hs.TaskBatch(x, y, x.flip(1), y.flip(1)))
    for g, expected in zip(grads.values(), plain, strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-8, atol=1e-10)
