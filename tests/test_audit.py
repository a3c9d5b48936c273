"""The audit of dependencies says what is wrong with them, and never that it has looked where it has not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
assert spec is not None
assert spec.loader is not None
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)


def project(folder: Path, needs: str, pinned: str, makefile: str = "") -> Path:
    (folder / "pyproject.toml").write_text(f'[project]\ndependencies = [{needs}]\noptional-dependencies = {{more = ["b>=2"]}}\n')
    (folder / "constraints.txt").write_text(pinned)
    (folder / "Makefile").write_text(makefile)
    (folder / ".ci").mkdir(exist_ok=True)
    return folder


def test_this_project_is_pinned() -> None:
    assert audit.unpinned() == []
    assert audit.loose_installs() == []


def test_what_is_not_pinned_is_named(tmp_path: Path) -> None:
    assert audit.unpinned(project(tmp_path, '"a>=1"', "a==1.5\nB==2.0  # the same\n")) == []
    assert audit.unpinned(project(tmp_path, '"a>=1"', "b==2.0\n")) == ["a>=1 of pyproject.toml has no pin in constraints.txt"]
    assert "does not allow the pin 0.9" in audit.unpinned(project(tmp_path, '"a>=1"', "a==0.9\nb==2\n"))[0]
    for bad in ("a>=1\n", "a==1\na==2\n", "a\n"):
        with pytest.raises(SystemExit, match="NAME==VERSION"):
            audit.unpinned(project(tmp_path, '"a>=1"', bad))
    loose = "all:\n\tpip install -c constraints.txt a\n\tpython -m pip install a\n"
    assert audit.loose_installs(project(tmp_path, "", "b==2\n", loose)) == [
        "Makefile installs without -c constraints.txt: python -m pip install a"
    ]


@pytest.mark.parametrize(
    ("said", "fits"),
    [
        ({"License-Expression": "MIT AND PSF-2.0"}, True),
        ({"License-Expression": "MIT AND LicenseRef-Proprietary"}, False),
        ({"Classifier": "License :: OSI Approved :: BSD License"}, True),
        ({"Classifier": "License :: Other/Proprietary License"}, False),
        ({"License": "GPL-3.0-only"}, False),
        ({}, False),
    ],
)
def test_a_licence_that_does_not_fit_is_named(said: dict[str, str], fits: bool) -> None:
    metadata = Message()
    for name, value in said.items():
        metadata[name] = value
    assert (audit.unknown_licences({"a": SimpleNamespace(metadata=metadata)}) == []) is fits


def answering(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
    """pip-audit that gives answers one after the other; an exception is raised."""
    left = list(answers)

    def run(*_: Any, **__: Any) -> Any:
        one = left.pop(0)
        if isinstance(one, Exception):
            raise one
        text = one if isinstance(one, str) else json.dumps({"dependencies": one})
        return SimpleNamespace(stdout=text, stderr="first\nno route to host", returncode=1)

    monkeypatch.setattr(subprocess, "run", run)


BAD = [{"name": "jinja2", "version": "2.10", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.10.1"]}]}]
GOOD = [{"name": "a", "version": "1", "vulns": []}]


def test_what_is_vulnerable_is_named_unless_it_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, BAD, BAD)
    assert audit.looked_up({"jinja2": "2.10"}) == [("jinja2", "jinja2 2.10 has PYSEC-1; mended in 2.10.1")]
    answering(monkeypatch, BAD, GOOD)
    assert audit.looked_up({"a": "1"}) == []
    monkeypatch.setitem(audit.ACCEPTED, "CVE-1", "a test")
    answering(monkeypatch, BAD)
    assert audit.vulnerabilities({"jinja2": "2.10"}, 1) == []


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (["", GOOD], "no route to host"),
        ([subprocess.TimeoutExpired("pip-audit", 20), GOOD], "no answer in 20 seconds"),
        ([[{"name": "jinja2", "skip_reason": "not found"}], GOOD], "all were passed over: not found"),
        ([GOOD, GOOD], "known to be vulnerable was called sound"),
        ([BAD, ""], "no route to host"),
    ],
)
def test_who_could_not_look_says_so_and_does_not_fail(
    answers: list[Any], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "other_versions", lambda packages: [])
    answering(monkeypatch, *answers)
    assert audit.main() == 0
    said = capsys.readouterr().out
    assert "known vulnerabilities were NOT looked up" in said
    assert why in said
