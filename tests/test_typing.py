"""What a type checker says of a user's code: nothing of what is right, and something of every mistake.

mypy says it whenever the code is linted (``files`` in pyproject.toml); pyright says it here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TYPING = Path(__file__).parent / "typing"
IGNORED = "  # type: ignore["


def test_pyright_passes_what_is_right_and_finds_every_mistake(tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    source = str(TYPING.parent.parent / "src")
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [source], "pythonVersion": "3.11"}))
    bad = (TYPING / "bad.py").read_text().splitlines()
    (tmp_path / "good.py").write_text((TYPING / "good.py").read_text())
    (tmp_path / "bad.py").write_text("\n".join(line.partition(IGNORED)[0] for line in bad) + "\n")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.lstrip().startswith("{"):  # it gets the checker itself from npm, with the node that is here
        pytest.skip(f"pyright cannot be had: {(done.stderr or done.stdout)[-300:]}")
    found = [(Path(d["file"]).name, d["range"]["start"]["line"]) for d in json.loads(done.stdout)["generalDiagnostics"]]
    assert [line for file, line in found if file == "good.py"] == []
    mistakes = {i for i, line in enumerate(bad) if IGNORED in line}
    assert len(mistakes) > 25
    assert {line for file, line in found if file == "bad.py"} == mistakes
