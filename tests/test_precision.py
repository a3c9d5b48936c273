"""The body in bf16, everything after it in single precision: against plain loops that do the same, and against single precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import headstart as hs
from headstart.errors import ConfigError
from headstart.program.cache import program_for
from headstart.training.config import LearnerConfig

T, S, Q, LR = 3, 10, 6, 0.3


def tasks(size: int = 16, dtype: torch.dtype = torch.float32) -> hs.TaskBatch:
    torch.manual_seed(0)
    x = lambda n: torch.randn(T, n, 3, size, size, dtype=dtype)  # noqa: E731
    return hs.TaskBatch(x(S), torch.arange(5).repeat(T, S // 5), x(Q), torch.randint(5, (T, Q)))


def network() -> nn.Module:
    torch.manual_seed(1)
    return hs.models.conv4(size=16, filters=8)


def flat(grads: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in grads.values()])


def test_head_is_the_plain_loop_with_a_body_in_bf16() -> None:
    """Features from an autocast body, then the inner loop and both losses in single precision."""
    batch, model = tasks(), network()
    learner = hs.anil(model, steps=3, lr=LR, precision="bf16")
    grads, stats = learner.meta_gradient(batch)
    params = dict(model.named_parameters())
    x = batch.examples
    with torch.autocast("cpu", torch.bfloat16):
        z = model.body(x.contiguous(memory_format=torch.channels_last))
    assert z.dtype == torch.bfloat16
    z, total = z.float(), torch.zeros(())
    for t in range(T):
        w, b = model.head.weight, model.head.bias
        zs, zq = z[batch.support.index[t]], z[batch.query.index[t]]
        for _ in range(3):
            loss = F.cross_entropy(F.linear(zs, w, b), batch.support.y[t])
            gw, gb = torch.autograd.grad(loss, (w, b), create_graph=True)
            w, b = w - LR * gw, b - LR * gb
        total = total + F.cross_entropy(F.linear(zq, w, b), batch.query.y[t]) / T
    plain = dict(zip(params, torch.autograd.grad(total, list(params.values())), strict=True))
    assert stats.loss == pytest.approx(total.item(), rel=1e-6)
    for name, g in grads.items():
        assert g.dtype == torch.float32
        if name.startswith("body") and name.endswith("0.bias"):
            continue  # nothing but rounding: batch normalisation takes it away again
        assert (g - plain[name]).norm() < 2e-2 * plain[name].norm(), name
    torch.testing.assert_close(grads["head.weight"], plain["head.weight"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adapt", ["head", "last:2", "all"])
@pytest.mark.parametrize("vectorise", [False, None])
def test_close_to_single_precision(adapt: str, vectorise: bool) -> None:
    """The same meta-gradient but for rounding, with every parameter and its gradient in single precision."""
    batch, model = tasks(), network().eval()  # statistics of ten pictures of noise amplify rounding
    found = {}
    for precision in (None, "fp32", "bf16"):
        learner = hs.anil(model, steps=2, lr=0.05, adapt=adapt, vectorise=vectorise, precision=precision)
        grads, stats = learner.meta_gradient(batch)
        assert {g.dtype for g in grads.values()} == {torch.float32} == {stats.losses.dtype}
        found[precision] = flat(grads)
    assert torch.equal(found[None], found["fp32"])
    error = (found["bf16"] - found["fp32"]).norm() / found["fp32"].norm()
    assert 1e-5 < error < 0.15  # rounded, and no more than that: a maximum here and there is another one


@pytest.mark.parametrize("adapt", ["last:2", "all"])
def test_hypergradients_agree(adapt: str) -> None:
    """Recursive and unrolled are the same function of what the model computes, whatever it computes in."""
    batch, model = tasks(), network().eval()
    ways = (hs.Unrolled(), hs.Recursive("double-backward"))
    a, b = (
        flat(hs.anil(model, 2, 0.05, adapt=adapt, vectorise=False, precision="bf16", hypergradient=way).meta_gradient(batch)[0])
        for way in ways
    )
    assert (a - b).norm() < 1e-2 * a.norm()


@pytest.mark.parametrize("adapt", ["head", "last:2", "all", "body"])
def test_body_in_bf16_last_layer_not(adapt: str) -> None:
    """What each layer gives, seen from inside: bf16 in the body; logits of a precision that bf16 has not."""
    model, dtypes = network(), set()
    model.body[0][0].register_forward_hook(lambda m, x, y: dtypes.add(y.dtype))
    learner = hs.anil(model, steps=1, lr=0.1, adapt=adapt, vectorise=False, precision="bf16")
    outputs = learner.trajectory(tasks())[-1]
    assert torch.bfloat16 in dtypes
    assert outputs.dtype == torch.float32
    assert not torch.equal(outputs, outputs.bfloat16().float())


def test_another_size_keeps_the_program() -> None:
    """Programs are compared in the model's own precision; bf16 must not look like another way through the model."""
    torch.manual_seed(0)
    model = hs.models.resnet12(widths=(4, 4, 8, 8))
    learner = hs.anil(model, steps=1, lr=0.1, precision="bf16")
    first, second = (learner.program(tasks(size)) for size in (16, 24))
    assert first is second
    assert first.head is model.head
    assert program_for(learner.partition, tasks().examples, learner.output) is not first  # that of a learner without a precision


def test_double_precision_stays(tmp_path) -> None:
    """Features in double precision are not rounded on the way back; a saved learner keeps its precision."""
    learner = hs.anil(network(), steps=1, lr=0.1, precision="bf16")
    learner.save(tmp_path / "start.safetensors")
    assert hs.load(tmp_path / "start.safetensors").precision == "bf16"
    double = hs.anil(network().double(), steps=1, lr=0.1, precision="fp32")
    grads, _ = double.meta_gradient(tasks(dtype=torch.float64))
    assert {g.dtype for g in grads.values()} == {torch.float64}


def test_refused() -> None:
    """What is no precision, and TF32 where there is none."""
    with pytest.raises(ConfigError, match=r"precision='fp8'.*bf16"):
        hs.anil(network(), steps=1, lr=0.1, precision="fp8")
    with pytest.raises(ConfigError, match="CUDA"):
        hs.anil(network(), steps=1, lr=0.1, precision="tf32").meta_gradient(tasks())
    with pytest.raises(ConfigError, match="precision='half'"):
        LearnerConfig(precision="half")


def test_a_cosine_head_is_in_single_precision_too() -> None:
    """Whatever kind the last layer is, its outputs have more digits than bf16 keeps."""
    torch.manual_seed(0)
    learner = hs.anil_cosine(hs.models.conv4(size=16, filters=8, head="cosine"), steps=1, lr=0.1, precision="bf16")
    outputs = learner.trajectory(tasks())[-1]
    assert not torch.equal(outputs, outputs.bfloat16().float())
