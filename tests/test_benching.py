"""Whoever is timed computes the same meta-gradient; who cannot take part says why; no time is asserted."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

from headstart.benching import rivals, turns
from headstart.benching.contestants import CONTESTANTS, Unavailable
from headstart.benching.setting import Setting
from headstart.benching.tables import TABLES, Table, bench, markdown
from headstart.benching.turns import BenchError, Entry, take_turns
from headstart.cli import main
from headstart.cli.bench import Bench
from headstart.errors import ConfigError

assert rivals  # they enter themselves
SMALL = {"tasks": 2, "ways": 3, "shots": 2, "queries": 2, "size": 16, "filters": 4, "steps": 2}


def difference(kind: str, contestant: str, network: str) -> float:
    """Of a contestant's meta-gradient from the loop's, relative, in evaluation mode."""
    setting = Setting(kind, **SMALL)
    found = []
    for name, on in (("loop", "usual"), (contestant, network)):
        gradient = CONTESTANTS.find(name)(setting, setting.network(on).eval()).gradient
        found.append(torch.cat([g.flatten() for _, g in sorted(gradient().items())]))
    return float((found[1] - found[0]).norm() / found[0].norm())


@pytest.mark.parametrize("kind", ["anil", "maml", "fomaml", "head"])
@pytest.mark.parametrize("network", ["usual", "ours"])
def test_ours_is_the_loop(kind: str, network: str) -> None:
    assert difference(kind, "headstart", network) < 1e-4


@pytest.mark.parametrize("kind", ["anil", "maml", "fomaml"])
@pytest.mark.parametrize("rival", ["higher", "torchopt", "parallel-metalearn", "parallel-metalearn, sequential"])
def test_rivals_are_the_loop(kind: str, rival: str) -> None:
    """Driven rightly: a rival that computed something else would be no rival."""
    pytest.importorskip({"higher": "higher", "torchopt": "torchopt"}.get(rival, "metalearn"))
    if (kind, rival) == ("fomaml", "torchopt"):
        with pytest.raises(Unavailable, match="first-order"):
            difference(kind, rival, "usual")
        return
    assert difference(kind, rival, "usual") < 1e-4


def test_networks_are_one_function() -> None:
    """Pooling before or after the ReLU, in either memory order."""
    setting = Setting(**SMALL)
    x = torch.randn(4, 3, 16, 16)
    usual, ours = (setting.network(name).eval()(x) for name in ("usual", "ours"))
    torch.testing.assert_close(usual, ours)


def test_turns_and_a_missing_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own: who is not there is a line that says so, and the others are timed."""
    monkeypatch.setenv("PYTHONPATH", str(turns.Path(turns.__file__).parents[2]))
    entries = [Entry("loop", "usual"), Entry("headstart", "ours"), Entry("supervised", "ours")]
    take_turns(Setting(**SMALL), entries, rounds=2, threads=1, warm_up=1)
    assert [len(e.seconds) for e in entries] == [2, 2, 2]
    assert all(e.peak > 50 for e in entries)
    assert entries[1].difference < 1e-4
    assert entries[2].difference is None
    (none,) = take_turns(Setting("maml", **SMALL), [Entry("supervised", "ours")], rounds=1, threads=1)
    assert "no measure" in none.unavailable
    text = markdown("x", Table("two", Setting(), ()), [*entries, none])
    assert "| loop, usual network |" in text
    assert "| 1.00 |" in text
    assert "no measure" in text


def test_another_gradient_is_refused(tmp_path) -> None:
    """Whoever computes something else is not timed."""
    from safetensors.torch import save_file

    files = {}
    for entry, value in ((Entry("loop", "usual"), 1.0), (Entry("headstart", "ours"), 1.05)):
        files[entry.name] = tmp_path / entry.contestant
        save_file({"w": torch.full((3,), value)}, files[entry.name])
    with pytest.raises(BenchError, match=r"headstart, ours network computes another meta-gradient.*0\.05"):
        turns._compare([Entry("loop", "usual"), Entry("headstart", "ours")], files)


def test_command(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    """``headstart bench`` writes what it measured."""
    monkeypatch.setitem(TABLES, "head-5", Table("small", Setting("head", **SMALL), (("loop", "usual"), ("headstart", "usual"))))
    assert main(["bench", "head-5", "--rounds", "1", "--threads", "1", "--out", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["machine"]["versions"]["torch"] == torch.__version__
    assert found["tables"]["head-5"]["entries"][1]["median"] > 0
    assert "### small" in capsys.readouterr().out
    assert main(["bench", "heads"]) == 2
    assert "there are anil" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        bench(["nothing"])
    assert main(["bench", "head-5", "--device", "nowhere"]) == 2
    assert "use cpu" in capsys.readouterr().err


def test_the_help_names_every_table() -> None:
    assert ", ".join(TABLES) in inspect.getsource(Bench)
