"""The tutorials on a person's own data: their commands, as they stand there, run on what they make."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from headstart.cli import main

TUTORIALS = Path(__file__).parent.parent / "docs" / "tutorials"
QUICK = {
    "train": ["--iterations", "4", "--validation-episodes", "6", "--test-episodes", "10", "--filters", "4"],
    "evaluate": ["--episodes", "10"],
}


@pytest.mark.parametrize("name", ["own-pictures", "own-table", "own-texts"])
def test_the_commands_of_a_tutorial(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    text = (TUTORIALS / f"{name}.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, name, "exec"), {})
    commands = re.findall(r"^headstart (.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        args = shlex.split(command)
        assert main([*args, *QUICK[args[0]]]) == 0, command
    assert "without meta-learning, on the same episodes" in capsys.readouterr().out


def test_the_date_of_the_table_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (TUTORIALS / "own-table.md").read_text()
    exec(compile(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0], "own-table", "exec"), {})
    assert main(["train", "--data", "sales.csv", "--data-options", "task=shop,target=sales", "--out", "run"]) == 2
    assert "exclude=[day]" in capsys.readouterr().err
