"""About eighty layers of torch.nn in a small net: the plain loop's numbers, looped and vmapped, or an error that says what to do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headstart as hs
from headstart.errors import MethodError
from plain import off_by, plain_gradient


class Pair(nn.Module):
    """A layer of two inputs, given the features and a turn of them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x, x.flip(-1) + 0.5)
        return found if found.dim() > 1 else found[:, None]


class First(nn.Module):
    """The first of a layer's outputs."""

    def __init__(self, layer: nn.Module, own: bool = False) -> None:
        super().__init__()
        self.layer, self.own = layer, own

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x, x, x) if self.own else self.layer(x))[0]


class Distances(nn.Module):
    def __init__(self, p: float = 2.0) -> None:
        super().__init__()
        self.centres, self.p = nn.Parameter(torch.randn(5, 6)), p

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.centres, self.p)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.ones(6), torch.zeros(6)])
        self.shifts = nn.ParameterDict({"a": torch.randn(6)})

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales[0] + self.scales[1] + self.shifts["a"]


def flat(layer: Callable[[], nn.Module], first: Callable[[], nn.Module] | None = None) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential((first or (lambda: nn.Linear(4, 6)))(), layer(), nn.Flatten(), nn.LazyLinear(3))


ACTIVATIONS = """ReLU ReLU6 ELU SELU CELU GELU SiLU Mish Softplus Softsign Tanh Sigmoid LogSigmoid Hardtanh Hardsigmoid Hardswish
Hardshrink Softshrink Tanhshrink LeakyReLU PReLU RReLU Identity Softmin Softmax LogSoftmax GLU Dropout AlphaDropout"""
VECTOR = ACTIVATIONS.split()
DIMENSION = {"Softmin": {"dim": -1}, "Softmax": {"dim": -1}, "LogSoftmax": {"dim": -1}}
conv1, conv2, conv3 = (
    lambda: nn.Conv1d(2, 4, 3, padding=1),
    lambda: nn.Conv2d(1, 4, 3, padding=1),
    lambda: nn.Conv3d(1, 2, 3, padding=1),
)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: (flat(lambda name=name: getattr(nn, name)(**DIMENSION.get(name, {}))), (4,)) for name in VECTOR},
    "Threshold": (flat(lambda: nn.Threshold(0.1, 0.2)), (4,)),
    "LayerNorm": (flat(lambda: nn.LayerNorm(6)), (4,)),
    "RMSNorm": (flat(lambda: nn.RMSNorm(6)), (4,)),
    "GroupNorm": (flat(lambda: nn.GroupNorm(2, 6)), (4,)),
    "BatchNorm1d": (flat(lambda: nn.BatchNorm1d(6)), (4,)),
    "Bilinear": (flat(lambda: Pair(nn.Bilinear(6, 6, 4))), (4,)),
    "CosineSimilarity": (flat(lambda: Pair(nn.CosineSimilarity())), (4,)),
    "PairwiseDistance": (flat(lambda: Pair(nn.PairwiseDistance())), (4,)),
    "cdist": (flat(Distances), (4,)),
    "cdist p=1": (flat(lambda: Distances(1.0)), (4,)),
    "cdist p=3": (flat(lambda: Distances(3.0)), (4,)),
    "ParameterList": (flat(Listed), (4,)),
    "spectral norm": (flat(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))), (4,)),
    "weight norm": (flat(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))), (4,)),
    "orthogonal": (flat(lambda: nn.utils.parametrizations.orthogonal(nn.Linear(6, 6))), (4,)),
    "Conv1d": (flat(nn.Tanh, conv1), (2, 8)),
    "ConvTranspose1d": (flat(nn.Tanh, lambda: nn.ConvTranspose1d(2, 3, 3)), (2, 8)),
    **{
        name: (flat(lambda name=name: getattr(nn, name)(2), conv1), (2, 8))
        for name in ("MaxPool1d", "AvgPool1d", "AdaptiveAvgPool1d", "AdaptiveMaxPool1d")
    },
    "LPPool1d": (flat(lambda: nn.LPPool1d(2, 2), lambda: nn.Sequential(conv1(), nn.Softplus())), (2, 8)),
    "InstanceNorm1d": (flat(lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), conv1), (2, 8)),
    "Conv2d": (flat(nn.Tanh, conv2), (1, 4, 4)),
    "ConvTranspose2d": (flat(nn.Tanh, lambda: nn.ConvTranspose2d(1, 2, 3)), (1, 4, 4)),
    **{
        name: (flat(lambda name=name: getattr(nn, name)(2), conv2), (1, 4, 4))
        for name in ("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "PixelShuffle", "ZeroPad2d", "ReflectionPad2d")
    },
    "LPPool2d": (flat(lambda: nn.LPPool2d(2, 2), lambda: nn.Sequential(conv2(), nn.Softplus())), (1, 4, 4)),
    "ReplicationPad2d": (flat(lambda: nn.ReplicationPad2d(1), conv2), (1, 4, 4)),
    "CircularPad2d": (flat(lambda: nn.CircularPad2d(1), conv2), (1, 4, 4)),
    "PixelUnshuffle": (flat(lambda: nn.PixelUnshuffle(2), conv2), (1, 4, 4)),
    "ChannelShuffle": (flat(lambda: nn.ChannelShuffle(2), conv2), (1, 4, 4)),
    "BatchNorm2d": (flat(lambda: nn.BatchNorm2d(4), conv2), (1, 4, 4)),
    "InstanceNorm2d": (flat(lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), conv2), (1, 4, 4)),
    "LocalResponseNorm": (flat(lambda: nn.LocalResponseNorm(2), conv2), (1, 4, 4)),
    "Dropout2d": (flat(nn.Dropout2d, conv2), (1, 4, 4)),
    "Upsample": (flat(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), conv2), (1, 4, 4)),
    "Upsample nearest": (flat(lambda: nn.Upsample(scale_factor=2), conv2), (1, 4, 4)),
    "Unfold": (flat(lambda: nn.Unfold(2), conv2), (1, 4, 4)),
    "Fold": (flat(lambda: nn.Fold((3, 3), 2), lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Unflatten(1, (4, 4)))), (1, 4, 4)),
    "Conv3d": (flat(nn.Tanh, conv3), (1, 2, 4, 4)),
    "MaxPool3d": (flat(lambda: nn.MaxPool3d(2), conv3), (1, 2, 4, 4)),
    "AvgPool3d": (flat(lambda: nn.AvgPool3d(2), conv3), (1, 2, 4, 4)),
    "RNN": (flat(lambda: First(nn.RNN(6, 5, batch_first=True))), (3, 4)),
    "LSTM": (flat(lambda: First(nn.LSTM(6, 5, batch_first=True))), (3, 4)),
    "GRU": (flat(lambda: First(nn.GRU(6, 5, batch_first=True, bidirectional=True))), (3, 4)),
    "MultiheadAttention": (flat(lambda: First(nn.MultiheadAttention(6, 2, batch_first=True), own=True)), (3, 4)),
    "TransformerEncoderLayer": (flat(lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)), (3, 4)),
    "TransformerDecoderLayer": (flat(lambda: Pair(nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0, batch_first=True))), (3, 4)),
    "Embedding": (flat(nn.Tanh, lambda: nn.Embedding(9, 4)), (3, -9)),
    "Embedding, padding": (flat(nn.Tanh, lambda: nn.Embedding(9, 4, padding_idx=0)), (3, -9)),
    "Embedding, max_norm": (flat(nn.Tanh, lambda: nn.Embedding(9, 4, max_norm=1.0)), (3, -9)),
    **{
        f"EmbeddingBag, {mode}": (flat(nn.Tanh, lambda mode=mode: nn.EmbeddingBag(9, 4, mode=mode, padding_idx=0)), (3, -9))
        for mode in ("sum", "mean", "max")
    },
}
REFUSED = {"cdist p=3", "Embedding, max_norm"}
WRONG_IN_TORCH = {"weight norm"}  # the fused kernel's second derivative; tests/test_hard_models.py compares with difference quotients


def made(name: str) -> tuple[nn.Module, hs.TaskBatch]:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    draw = lambda *n: torch.randint(9, (*n, *shape[:-1])) if shape[-1] < 0 else torch.randn(*n, *shape, dtype=torch.float64)  # noqa: E731
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(draw(2) if shape[-1] < 0 else draw(2).float())
    return model.double(), hs.TaskBatch(draw(2, 4), torch.randint(3, (2, 4)), draw(2, 3), torch.randint(3, (2, 3)))


def objects(model: nn.Module) -> dict[str, Any]:
    """Every tensor by identity, and every plain attribute."""
    found: dict[str, Any] = {n: id(t) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    for path, m in model.named_modules():
        found |= {f"{path}.{k}": v for k, v in m.__dict__.items() if isinstance(v, bool | int | float | str)}
        for k, v in m.__dict__.items():
            assert not (isinstance(v, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(v)), f"{path}.{k} is left over from vmap"
    return found


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_plain_loop_or_an_error_that_helps(name: str, training: bool) -> None:
    model, tasks = made(name)
    model.train(training)
    if (training and "Dropout" in name) or (training and name == "RReLU"):
        pytest.skip("random in training: tests/test_situations.py compares with difference quotients")
    before, state = objects(model), {n: b.clone() for n, b in model.named_buffers()}
    for adapt in ("all",) if training else ("all", "head"):
        partition = hs.Partition(model, adapt)
        for mode in (None, hs.Unrolled(), hs.Recursive("double-backward"), hs.FirstOrder()):
            with torch.no_grad():
                for n, b in model.named_buffers():
                    b.copy_(state[n])
            first_order = isinstance(mode, hs.FirstOrder)
            expected = None
            if name not in REFUSED and (first_order or name not in WRONG_IN_TORCH):
                with torch.backends.mkldnn.flags(enabled=False), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                    expected = truth(model, partition.adapted, tasks, first_order, name)
            for vectorise in (None, False, True):
                with torch.no_grad():
                    for n, b in model.named_buffers():
                        b.copy_(state[n])
                learner = hs.MetaLearner(partition, hs.GradientDescent(2, 0.1), mode, vectorise=vectorise)
                try:
                    grads, _ = learner.meta_gradient(tasks)
                except MethodError as error:
                    assert name in REFUSED or (vectorise and "vectorise=False" in str(error)), str(error)
                    continue
                if expected is not None:
                    assert off_by(grads, expected) < 1e-8, (adapt, mode, vectorise)
    assert objects(model) == before
    copy.deepcopy(model)


def truth(model: nn.Module, adapted: tuple[str, ...], tasks: hs.TaskBatch, first_order: bool, name: str) -> dict[str, Tensor] | None:
    """The plain loop's gradient; None where torch has no second derivative of its own, and other tests have the value."""
    try:
        return plain_gradient(model, adapted, tasks, F.cross_entropy, 2, 0.1, first_order=first_order)
    except RuntimeError as error:
        assert "not implemented" in str(error) or "derivative" in str(error), name
        return None
