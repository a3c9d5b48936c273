"""Checkpoints and kept files that were cut, or of which a bit flipped: the right values, the checkpoint before, or a clear message."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import headstart as hs
from headstart import container
from headstart.errors import CheckpointError, ConfigError, DamagedError
from headstart.keeping import tensors_of
from headstart.training import checkpoint
from headstart.training import run as runs
from headstart.training.config import LearnerConfig, RunConfig, TrainConfig
from headstart.training.loop import BEST, LAST, METRICS, Run, train

SETTINGS: dict[str, Any] = {"shots": 5, "queries": 5, "tasks": 2, "validation_episodes": 4, "outer_lr": 0.01}


def learner() -> hs.MetaLearner:
    torch.manual_seed(0)
    return hs.metasgd(hs.models.mlp(1, 1, (3,)), 1, 0.01, loss="squared_error")


def trained(folder: Path, iterations: int = 6, **options: Any) -> tuple[Run, dict[str, torch.Tensor]]:
    """A small run, validated every second step, and all that it learned."""
    own = learner()
    config = TrainConfig(**{**SETTINGS, "iterations": iterations, "validate_every": 2, **options})
    run = train(own, hs.data.load("sinusoid"), config, out=folder, resume=(folder / LAST).exists(), quiet=True)
    return run, {k: v.detach().clone() for k, v in tensors_of(own).items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def damaged(content: bytes, positions: range | list[int]) -> Iterator[bytes]:
    """The content with one bit flipped at each position, and cut there."""
    rng = random.Random(0)
    for i in positions:
        changed = bytearray(content)
        changed[i] ^= 1 << rng.randrange(8)
        yield bytes(changed)
        yield content[:i]


def sound(path: Path, whole: bytes, positions: range | list[int]) -> tuple[int, int]:
    """Damages a checkpoint at each position; how often it gave the right values, and how often the one before it."""
    right, before = checkpoint.read(path), checkpoint.read(checkpoint.before(path))
    assert right.state["iteration"] > before.state["iteration"]
    counts = [0, 0]
    for content in damaged(whole, positions):
        path.write_bytes(content)
        found = checkpoint.read(path)
        expected = before if found.note else right
        assert found.state == expected.state
        assert same(found.tensors, expected.tensors)
        assert not found.note or (str(path) in found.note and "last.previous.safetensors, of step 4" in found.note)
        counts[bool(found.note)] += 1
    return counts[0], counts[1]


def test_a_bit_or_a_cut_anywhere_in_a_checkpoint_gives_its_values_or_those_before(tmp_path: Path) -> None:
    """All positions of the header's beginning, and every 29th of the rest."""
    trained(tmp_path)
    whole = (tmp_path / LAST).read_bytes()
    right, before = sound(tmp_path / LAST, whole, [*range(64), *range(64, len(whole), 29)])
    assert before > 20 * max(1, right)


@pytest.mark.slow
def test_a_bit_or_a_cut_at_every_byte_of_a_checkpoint(tmp_path: Path) -> None:
    trained(tmp_path)
    whole = (tmp_path / LAST).read_bytes()
    right, before = sound(tmp_path / LAST, whole, range(len(whole)))
    assert before > 20 * max(1, right)


@pytest.mark.parametrize("kind", ["flipped", "cut", "empty", "gone"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_bit_for_bit(kind: str, tmp_path: Path) -> None:
    whole, weights = trained(tmp_path / "whole", 8)
    trained(tmp_path / "cut", 8, patience=0)  # the same, of which steps 7 and 8 are done again
    last = tmp_path / "cut" / LAST
    content = bytearray(last.read_bytes())
    content[-3] ^= 1
    if kind == "gone":
        last.unlink()
    else:
        last.write_bytes({"flipped": bytes(content), "cut": bytes(content[:100]), "empty": b""}[kind])
    own = learner()
    config = TrainConfig(**{**SETTINGS, "iterations": 8, "validate_every": 2})
    run = train(own, hs.data.load("sinusoid"), config, out=tmp_path / "cut", resume=True, quiet=True)
    assert "last.previous.safetensors, of step 6" in run.notes[0]
    assert repr(str(last)) in run.notes[0]
    assert same({k: v.detach() for k, v in tensors_of(own).items()}, weights)
    strip = lambda history: [{k: v for k, v in e.items() if k != "seconds"} for e in history]  # noqa: E731
    assert strip(run.history) == strip(whole.history)
    again = checkpoint.read(last)
    assert not again.note
    assert same(again.tensors, checkpoint.read(tmp_path / "whole" / LAST).tensors)


def test_a_damaged_checkpoint_never_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """Killed after the first checkpoint that follows, there are two good ones; before it, the old one."""
    trained(tmp_path, 6)
    good = checkpoint.before(tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(b"nothing")
    run, _ = trained(tmp_path, 6)
    assert run.iterations == 6
    assert checkpoint.before(tmp_path / LAST).read_bytes() == good
    assert checkpoint.read(tmp_path / LAST).state["iteration"] == 6


def test_both_damaged_is_said_with_what_to_do(tmp_path: Path) -> None:
    trained(tmp_path)
    for file in (tmp_path / LAST, checkpoint.before(tmp_path / LAST)):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"last.safetensors' is damaged.*last.previous.safetensors, is damaged too; .*--overwrite"):
        trained(tmp_path)


def test_damaged_best_weights_are_those_before_or_found_again(tmp_path: Path) -> None:
    trained(tmp_path, 6)
    best, state = tmp_path / BEST, checkpoint.read(tmp_path / BEST).state
    if not checkpoint.before(best).exists():
        checkpoint.save(best, learner(), None, {**state, "best": [9.0, 0]})
    before = checkpoint.read(checkpoint.before(best))
    best.write_bytes(b"\0" * 50)
    own = learner()
    assert checkpoint.load(best, own) == before.state  # and a warning names the file
    checkpoint.before(best).write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged too"):
        checkpoint.load(best, own)
    run, _ = trained(tmp_path, 8)
    assert any("the best so far is lost" in note for note in run.notes)
    assert run.best is not None
    assert run.best[1] == 8
    assert not checkpoint.read(best).note


def test_damaged_lines_of_the_metrics_are_left_out_and_said(tmp_path: Path) -> None:
    trained(tmp_path / "a", 6)
    path = tmp_path / "a" / METRICS
    lines = path.read_bytes().splitlines()
    lines[2], lines[4] = b"\xff\xfe{", b"[" * 20_000
    path.write_bytes(b"\n".join([*lines, b'{"step": 6, "lo']))
    run, _ = trained(tmp_path / "a", 8)
    assert sum("is damaged, and left out" in note for note in run.notes) == 2
    assert [e["step"] for e in run.history if "loss" in e] == [s for s in range(1, 9) if s not in _steps(lines)]


def _steps(lines: list[bytes]) -> set[int]:
    """Steps whose line of a loss is gone."""
    kept = {json.loads(line)["step"] for i, line in enumerate(lines) if i not in (2, 4) and b"loss" in line}
    return set(range(1, 7)) - kept


def test_what_was_a_good_checkpoint_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    trained(tmp_path)
    saved = checkpoint.read(tmp_path / LAST)
    save_file(saved.tensors, tmp_path / LAST, metadata={"headstart": json.dumps(saved.state)})
    assert checkpoint.read(tmp_path / LAST).state == saved.state
    assert not checkpoint.read(tmp_path / LAST).note


def test_a_bit_or_a_cut_anywhere_in_a_kept_learner_is_noticed(tmp_path: Path) -> None:
    """The header too: a step size of which a digit flipped is another learner."""
    path, own = tmp_path / "start.safetensors", learner()
    own.save(path)
    whole, header = path.read_bytes(), container.read(path, "learner")[0]
    noticed = 0
    for content in damaged(whole, [*range(64), *range(64, len(whole), 17)]):
        path.write_bytes(content)
        try:
            found, tensors = container.read(path, "learner")
        except CheckpointError:
            noticed += 1
            continue
        assert found == header
        assert same(tensors, container.plain(tensors_of(own)))
    assert noticed > 2 * len(whole) // 18


def test_what_was_read_does_not_change_with_its_file(tmp_path: Path) -> None:
    own = learner()
    own.save(tmp_path / "a")
    tensors = container.read(tmp_path / "a", "learner")[1]
    with (tmp_path / "a").open("r+b") as file:  # in place, as another program might
        file.truncate(10)
    assert same(tensors, container.plain(tensors_of(own)))


def test_a_kept_file_of_format_1_is_read(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(2)}
    whole = {"format": 1, "kind": "learner", "checksum": container._checksum("", tensors), "header": {"ways": 5}}
    save_file(tensors, tmp_path / "a", metadata={"headstart": json.dumps(whole)})
    assert container.read(tmp_path / "a", "learner")[0] == {"ways": 5}


def test_a_file_that_says_other_things_than_it_should_is_named(tmp_path: Path) -> None:
    """The checksum is right, as whoever makes a file can make that too."""
    own = learner()
    own.save(tmp_path / "a")
    header, tensors = container.read(tmp_path / "a", "learner")
    changes: list[Any] = [{key: value} for key in header for value in (None, 7, "x", [], {}, {"name": 3}, [[[]]], -1.5)]
    for change in changes:
        container.write(tmp_path / "b", "learner", {**header, **change}, tensors)
        try:
            hs.load(tmp_path / "b")
        except hs.HeadstartError as error:
            assert len(str(error)) > 20
    for absent in header.keys() - {"precision", "frozen_norms"}:  # which files of before do not say
        container.write(tmp_path / "b", "learner", {k: v for k, v in header.items() if k != absent}, tensors)
        with pytest.raises(DamagedError, match="does not hold what such a file should"):
            hs.load(tmp_path / "b")


def test_a_config_that_is_damaged_is_said(tmp_path: Path) -> None:
    for content in (b"\xff\xff", b"[" * 100_000, b"{", b"", b"[1]", b'{"ways": "five"}'):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"config\.json"):
            RunConfig.load(tmp_path / "config.json")


def test_opening_a_run_whose_best_is_damaged_warns_and_uses_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = TrainConfig(**{**SETTINGS, "iterations": 6, "validate_every": 2})
    config = RunConfig(data="sinusoid", learner=LearnerConfig(adapt="all", steps=1, lr=0.01, hidden=(3,)), train=settings)
    runs.start(config, tmp_path, quiet=True)
    if not checkpoint.before(tmp_path / BEST).exists():
        container.copy_of(tmp_path / BEST, checkpoint.before(tmp_path / BEST))
    (tmp_path / BEST).write_bytes(b"")
    runs.open_run(tmp_path)
    assert "best.safetensors' is damaged" in caplog.text
