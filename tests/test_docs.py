"""What the documents say is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


NEED_DATA = "use-*.md"
"""Stories on public data, run by test_tutorials where it is at hand."""
RUN = [p for p in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))] if blocks(p) and not p.match(NEED_DATA)]


@pytest.mark.parametrize("path", RUN, ids=lambda p: p.name)
def test_the_python_in_a_document_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a document, one after the other, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(path):
        exec(compile(block, str(path), "exec"), names)


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", path.read_text()):
        assert (path.parent / target).exists(), target


COMMANDS = ("train", "evaluate", "adapt", "predict", "export", "serve", "playground", "plan", "reproduce", "compare", "verify", "doctor")


def test_the_commands_in_the_readme_have_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from headstart.cli import main

    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    for file in (
        ROOT / "README.md",
        ROOT / "Makefile",
        *(ROOT / "docs" / f"{name}.md" for name in ("choosing", "data", "results", "theory", "training", "using")),
    ):
        for line in re.findall(rf"headstart (?:{'|'.join(COMMANDS)}) .*", file.read_text()):
            assert set(re.findall(r"--[a-z][a-z-]*", line)) <= known, line


def test_the_tests_that_the_page_of_faults_names_are_there() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and "---" not in line and not line.startswith("| fault")]
    assert len(rows) > 20
    for row in rows:
        file, _, name = re.search(r"`(test_[\w.:]+)` \|$", row)[1].partition("::")
        assert f"def {name}" in (ROOT / "tests" / file).read_text(), row
