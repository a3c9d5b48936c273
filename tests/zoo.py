"""Small smooth models in float64, and tasks for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from headstart import TaskBatch

WAYS, TASKS, SUPPORT, QUERY = 3, 2, 4, 3


class UsedTwice(nn.Module):
    """One layer runs twice, and functional code stands between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.first(x))
        z = z + torch.tanh(self.again(z))
        return self.head(z * torch.sigmoid(self.again(z)))


class TwoInputs(nn.Module):
    """Inputs by name; a branch that does not see the adapted layers joins late; one output of a tuple is used."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.LSTM(2, 4, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, WAYS)

    def forward(self, vector: Tensor, sequence: Tensor) -> Tensor:
        hidden, _ = self.right(sequence)
        return self.head(self.norm(torch.cat([torch.tanh(self.left(vector)), hidden[:, -1]], -1)))


class Tied(nn.Module):
    """The output layer's weight is the input layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle, self.out = nn.Linear(WAYS, 5, bias=False), nn.Linear(5, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = nn.Parameter(torch.randn(5, 3))
        self.embed.weight = self.out.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.middle(torch.tanh(self.embed(x)))) @ self.out.weight.T[:, :WAYS]


class Attention(nn.Module):
    """Self-attention with the fused kernel's entry point, and a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(0.1 * torch.randn(1, 3, 4))
        self.qkv, self.mix, self.head = nn.Linear(4, 12), nn.Linear(4, 4), nn.Linear(4, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.mix(mixed)).mean(1))


def conv() -> nn.Module:
    body = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, WAYS))


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, WAYS))
    model[2].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


class Unused(nn.Module):
    """Holds parameters that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare, self.head = nn.Linear(4, 4), nn.Linear(2, 2), nn.Linear(4, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


class Encoder(nn.Module):
    """PyTorch's own transformer layer, with a recurrent layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(4, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.recurrent(x)[0]).mean(1))


VECTOR, IMAGE, SEQUENCE = (4,), (1, 4, 4), (3, 4)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | dict[str, tuple[int, ...]]]] = {
    "linear": (lambda: nn.Linear(4, WAYS), VECTOR),
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, WAYS)), VECTOR),
    "no bias": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, WAYS, bias=False)), VECTOR),
    "conv": (conv, IMAGE),
    "used twice": (UsedTwice, VECTOR),
    "two inputs": (TwoInputs, {"vector": (3,), "sequence": (2, 2)}),
    "tied": (Tied, (WAYS,)),
    "attention": (Attention, SEQUENCE),
    "encoder": (Encoder, SEQUENCE),
    "frozen": (frozen, VECTOR),
    "unused": (Unused, VECTOR),
}


def make(name: str, seed: int = 0) -> nn.Module:
    """A model of the zoo in float64 and evaluation mode, with batch statistics that are not trivial."""
    torch.manual_seed(seed)
    model = MODELS[name][0]().double().eval()
    for buffer_name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in buffer_name else 0))
    return model


def tasks_for(name: str, *, real_targets: bool = False, weighted: bool = False, seed: int = 1, tasks: int = TASKS) -> TaskBatch:
    """Random tasks for a model of the zoo."""
    torch.manual_seed(seed)
    shape = MODELS[name][1]

    def x(n: int) -> Tensor | dict[str, Tensor]:
        if isinstance(shape, dict):
            return {k: torch.randn(tasks, n, *s, dtype=torch.double) for k, s in shape.items()}
        return torch.randn(tasks, n, *shape, dtype=torch.double)

    def y(n: int) -> Tensor:
        return torch.randn(tasks, n, WAYS, dtype=torch.double) if real_targets else torch.randint(WAYS, (tasks, n))

    weights = {}
    if weighted:
        weights = {"support_weight": torch.rand(tasks, SUPPORT).double(), "query_weight": torch.rand(tasks, QUERY).double()}
        weights["support_weight"][0, 0] = 0
    return TaskBatch(x(SUPPORT), y(SUPPORT), x(QUERY), y(QUERY), **weights)
