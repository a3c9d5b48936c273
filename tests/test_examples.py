"""The examples, run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def main(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_a_loop_of_ones_own_learns() -> None:
    before, after = main("plain_loop.py")(steps=15)
    assert after.mean - after.ci95 > before.mean + before.ci95


def test_lightning_learns_and_keeps_the_model(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    before, after = main("lightning_module.py")(steps=15, folder=str(tmp_path))
    assert after.mean - after.ci95 > before.mean + before.ci95
    (kept,) = tmp_path.rglob("*.ckpt")
    names = torch.load(kept, weights_only=True)["state_dict"]
    assert {"model.head.weight", "model.head.bias"} <= set(names)
