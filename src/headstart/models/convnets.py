"""The convolutional networks that few-shot papers compare on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headstart.errors import ConfigError
from headstart.models.context import Context
from headstart.models.heads import head_of
from headstart.models.recipe import remembered


def _check(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name}={value}: it must be at least 1")


def _flat_features(body: nn.Module, channels: int, size: int | tuple[int, int]) -> int:
    """The length of the flattened output of a body for one image."""
    was = body.training
    try:
        with torch.no_grad():
            height, width = (size, size) if isinstance(size, int) else size
            return int(body.eval()(torch.zeros(1, channels, height, width)).numel())
    except RuntimeError as error:
        raise ConfigError(f"size={size}: the images are too small for the network ({error}); use larger images or fewer layers") from error
    finally:
        body.train(was)


@remembered
def conv4(
    channels: int = 3,
    ways: int = 5,
    size: int | tuple[int, int] = 32,
    filters: int = 64,
    hidden_head: int = 0,
    head: str = "linear",
    context: int = 0,
) -> nn.Sequential:
    """Four blocks of 3×3 convolution, batch normalisation, ReLU and 2×2 max-pooling, and a linear head (Vinyals et al., 2016).

    Args:
        channels: of the input images.
        size: of the input images, at least 16: of square ones, or (height, width).
        ways: outputs.
        filters: channels of every block.
        hidden_head: width of a linear layer with a ReLU before the head; 0 for none.
        head: "linear"; "cosine": :class:`~headstart.models.Cosine`; "latent": :class:`~headstart.models.Latent`.
        context: so many context parameters, ``body.3.context``, steer the channels after the third block (CAVIA); 0 for none.

    Example:
        >>> conv4(channels=1, ways=5, size=28)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])
    """
    height, width = (size, size) if isinstance(size, int) else size
    _check(channels=channels, ways=ways, height=height, width=width, filters=filters, hidden_head=hidden_head or 1, context=context or 1)
    blocks = []
    for i in range(4):
        # Pooling before the ReLU is the same function, on a quarter of the numbers.
        blocks += [
            nn.Sequential(
                nn.Conv2d(channels if i == 0 else filters, filters, 3, padding=1),
                nn.BatchNorm2d(filters),
                nn.MaxPool2d(2),
                nn.ReLU(),
            )
        ]
    body = nn.Sequential(*blocks, nn.Flatten())
    if context:
        body.insert(3, Context(filters, context))
    model = nn.Sequential()
    model.add_module("body", body)
    features = _flat_features(body, channels, size)
    if hidden_head:
        model.add_module("hidden", nn.Sequential(nn.Linear(features, hidden_head), nn.ReLU()))
    model.add_module("head", head_of(head, hidden_head or features, ways))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class _ResidualBlock(nn.Module):
    """Three 3×3 convolutions with a 1×1 shortcut, then 2×2 max-pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.end = nn.Sequential(nn.LeakyReLU(0.1), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.main(x) + self.shortcut(x))  # type: ignore[no-any-return]


@remembered
def resnet12(
    channels: int = 3, ways: int = 5, widths: tuple[int, int, int, int] = (64, 128, 256, 512), dropout: float = 0.0, head: str = "linear"
) -> nn.Sequential:
    """ResNet-12 as in few-shot papers (Oreshkin et al., 2018): four residual blocks, global average pooling, a linear head.

    Args:
        channels: of the input images, any size from 16 on.
        ways: outputs.
        widths: channels of the four blocks.
        dropout: probability of dropping a feature before the head, in training.
        head: "linear"; "cosine": :class:`~headstart.models.Cosine`; "latent": :class:`~headstart.models.Latent`.

    Example:
        >>> resnet12(widths=(8, 16, 32, 64))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """
    _check(channels=channels, ways=ways)
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout={dropout}: it must be at least 0 and below 1")
    inputs = (channels, *widths[:-1])
    blocks = [_ResidualBlock(i, o) for i, o in zip(inputs, widths, strict=True)]
    drop = [nn.Dropout(dropout)] if dropout else []
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *drop))
    model.add_module("head", head_of(head, widths[-1], ways))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
