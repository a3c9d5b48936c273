from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """One thread (the problems are small), a fixed seed, and the default dtype as it was."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_flush_denormal(False)


@pytest.fixture
def double() -> None:
    torch.set_default_dtype(torch.float64)
