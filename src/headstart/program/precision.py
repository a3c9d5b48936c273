"""In which precision a model runs: its body in bf16 or TF32, and everything after it in single precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from headstart.errors import ConfigError

Precision = Literal["fp32", "bf16", "tf32"]


def checked(precision: Precision | None) -> Precision | None:
    """The precision, if it is one.

    Raises:
        ConfigError: it is none.
    """
    if precision is not None and precision not in get_args(Precision):
        raise ConfigError(f"precision={precision!r}: give one of {', '.join(get_args(Precision))}, or None for what torch is set to")
    return precision


def autocast(precision: Precision | None, device: torch.device) -> AbstractContextManager[Any]:
    """Where the model itself runs: in bf16 the products and convolutions, their weights and gradients in single precision."""
    if precision != "bf16":
        return nullcontext()
    # A cast weight is not kept for later: in an inner loop the next step has another.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@contextmanager
def products(precision: Precision | None, device: torch.device) -> Iterator[None]:
    """Whether CUDA may round what goes into products to TF32, forward and backward: not in "fp32", where torch itself does in convolutions.

    Raises:
        ConfigError: TF32 is asked for where there is none.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision='tf32' is for CUDA devices, and this is {device.type!r}; use 'fp32' or 'bf16'")
    if precision is None or device.type != "cuda":
        yield
        return
    was = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = was


def single(precision: Precision | None, x: Tensor) -> Tensor:
    """What came out of bf16, in single precision, for whatever follows."""
    return x.float() if precision == "bf16" and x.dtype == torch.bfloat16 else x


def in_single(last: nn.Module) -> Callable[..., Any]:
    """The forward of a model's last layer in single precision: bf16 keeps three digits, too few for logits."""
    own = last.forward

    def forward(x: Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return own(x.float())

    return forward
