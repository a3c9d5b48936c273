"""Operations that give the same result every time, for as long as a run takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headstart.errors import ConfigError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(on: bool, device: torch.device) -> Iterator[None]:
    """Deterministic algorithms for a while, if ``on``; afterwards torch's settings are as they were.

    Raises:
        ConfigError: on a GPU, the environment does not say that cuBLAS is to be deterministic too.
    """
    if not on:
        yield
        return
    if device.type == "cuda" and os.environ.get(WORKSPACE) not in (":4096:8", ":16:8"):
        raise ConfigError(
            f"deterministic=True on a GPU needs {WORKSPACE}=:4096:8 in the environment, and it is {os.environ.get(WORKSPACE)!r};"
            " set it before Python starts"
        )
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
        torch.backends.cudnn.benchmark = benchmark
