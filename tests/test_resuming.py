"""Runs that ended before they had kept much, or long ago, go on to the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import headstart as hs
from fakes import source
from headstart.errors import CheckpointError
from headstart.training.config import TrainConfig
from headstart.training.loop import LAST, METRICS, train
from test_training import SETTINGS, learner, state


def test_resuming_where_nothing_was_kept_starts_from_the_beginning(tmp_path: Path) -> None:
    """As after a process that was killed between making its folder and its first checkpoint."""
    config = TrainConfig(**{**SETTINGS, "iterations": 2, "validate_every": 2})
    one, two = learner(), learner()
    train(one, source(), config, out=tmp_path / "whole", quiet=True)
    folder = tmp_path / "cut"
    folder.mkdir()
    for name in (f".{LAST}.123.tmp", f".{METRICS}.9.tmp", ".tmpAb3dE9", "config.json"):
        (folder / name).write_text("{}")
    run = train(two, source(), config, out=folder, resume=True, quiet=True)
    assert "starts from its beginning" in run.notes[0]
    assert all(torch.equal(v, state(two)[k]) for k, v in state(one).items())
    assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()} | {"config.json"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(learner(), source(), config, out=tmp_path / "other", resume=True, quiet=True)


def test_a_run_that_ended_before_its_first_validation_goes_on(tmp_path: Path) -> None:
    config = TrainConfig(**{**SETTINGS, "validate_every": 12})
    one, two, three = learner(), learner(), learner()
    train(one, source(), config, out=tmp_path / "whole", quiet=True)

    def dies(tasks: hs.TaskBatch, real: Any = two.meta_gradient) -> Any:
        if len((tmp_path / "cut" / METRICS).read_text().splitlines()) == 5:
            raise RuntimeError("as if killed")
        return real(tasks)

    two.meta_gradient = dies  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="as if killed"):
        train(two, source(), config, out=tmp_path / "cut", quiet=True)
    run = train(three, source(), config, out=tmp_path / "cut", resume=True, quiet=True)
    assert [e["step"] for e in run.history if "loss" in e] == list(range(1, 13))
    assert all(torch.equal(v, state(three)[k]) for k, v in state(one).items())


def test_a_checkpoint_from_before_there_was_an_outer_state_goes_on(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    config = TrainConfig(**{**SETTINGS, "iterations": 8})
    one, two, three = learner(), learner(), learner()
    train(one, source(), config, out=tmp_path / "whole", quiet=True)

    def dies(tasks: hs.TaskBatch, real: Any = two.meta_gradient) -> Any:
        if len((tmp_path / "cut" / METRICS).read_text().splitlines()) == 7:
            raise RuntimeError("as if killed")
        return real(tasks)

    two.meta_gradient = dies  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="as if killed"):
        train(two, source(), config, out=tmp_path / "cut", quiet=True)
    path = tmp_path / "cut" / LAST
    with safe_open(path, framework="pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        kept = json.loads(file.metadata()["headstart"])
    kept = kept["header"]
    del kept["outer"], kept["optimizer"]
    save_file(tensors, path, metadata={"headstart": json.dumps(kept)})
    train(three, source(), config, out=tmp_path / "cut", resume=True, quiet=True)
    assert all(torch.equal(v, state(three)[k]) for k, v in state(one).items())
