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
    "adapt": [],
    "predict": [],
}
SHARED = Path(__file__).parents[2] / "shared" / "data"
NEEDS = {"use-drawings": "omniglot", "use-intents": "clinc150", "use-assay": "fsmol"}


@pytest.mark.parametrize(
    "name", ["own-pictures", "own-table", "own-texts", *(pytest.param(name, marks=pytest.mark.slow) for name in NEEDS)]
)
def test_the_commands_of_a_tutorial(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    if name in NEEDS:
        if not (SHARED / NEEDS[name]).exists():
            pytest.skip(f"{NEEDS[name]} is not at hand")
        (tmp_path / NEEDS[name]).symlink_to(SHARED / NEEDS[name])
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    text = (TUTORIALS / f"{name}.md").read_text()
    parts = re.findall(r"^```(python)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    commands = 0
    for kind, block in parts:  # in their order: what a command reads, a block before it has made
        if kind:
            exec(compile(block, name, "exec"), {})
            continue
        for command in re.findall(r"^headstart (.*)$", block, re.MULTILINE):
            args = shlex.split(command)
            assert main([*args, *QUICK[args[0]]]) == 0, command
            commands += 1
    assert commands
    assert "without meta-learning, on the same episodes" in capsys.readouterr().out


def test_the_date_of_the_table_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (TUTORIALS / "own-table.md").read_text()
    exec(compile(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0], "own-table", "exec"), {})
    assert main(["train", "--data", "sales.csv", "--data-options", "task=shop,target=sales", "--out", "run"]) == 2
    assert "exclude=[day]" in capsys.readouterr().err
