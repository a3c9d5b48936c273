"""The tutorials on a person's own data: their commands, as they stand there, run on what they make."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from headstart.cli import main
from pages import ROOT, TUTORIALS, TUTORIALS_ON_DATA, blocks, python

QUICK = {"train": ["--iterations", "4", "--validation-episodes", "6", "--test-episodes", "10"], "evaluate": ["--episodes", "10"]}
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.parametrize("name", [*sorted(TUTORIALS), *(pytest.param(name, marks=pytest.mark.slow) for name in TUTORIALS_ON_DATA)])
def test_the_commands_of_a_tutorial(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks in their order; one that begins with the name of a file is kept under it too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    need = TUTORIALS_ON_DATA.get(name)
    if need is not None:
        if not (SHARED / need).exists():
            pytest.skip(f"{need} is not at hand")
        (tmp_path / need).symlink_to(SHARED / need)
    ran, names = [], dict[str, object]()
    for block in blocks(ROOT / f"{name}.md"):
        if block.kind == "python":
            if file := re.match(r"# (\w+\.py)\n", block.code):
                Path(file[1]).write_text(block.code)
            exec(compile(block.code, name, "exec"), names)
        for line in re.findall(r"^headstart (.*)$", block.code, re.MULTILINE) if block.kind == "" else []:
            command, *args = shlex.split(line)
            small = ["--filters", "4"] if command == "train" and "--model" not in args else []
            assert main([command, *args, *QUICK.get(command, []), *small]) == 0, line
            ran.append(command)
    assert ran
    assert "train" not in ran or "without meta-learning, on the same episodes" in capsys.readouterr().out


def test_the_date_of_the_table_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(python(ROOT / "docs" / "tutorials" / "own-table.md")[0], "own-table", "exec"), {})
    assert main(["train", "--data", "sales.csv", "--data-options", "task=shop,target=sales", "--out", "run"]) == 2
    assert "exclude=[day]" in capsys.readouterr().err
