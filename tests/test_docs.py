"""What the documents say is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pages import PAGES, ROOT, TUTORIALS, TUTORIALS_ON_DATA, blocks, commands, name_of, python

RUN = [page for page in PAGES if python(page) and name_of(page) not in TUTORIALS | set(TUTORIALS_ON_DATA)]


@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_the_python_in_a_document_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a document, one after the other, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # a page may write a module, and then import it
    names: dict[str, object] = {}
    for block in python(path):
        exec(compile(block, str(path), "exec"), names)


def looks_like_python(code: str) -> bool:
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.FunctionDef) for node in body)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_block_that_is_not_run_says_why(path: Path) -> None:
    text = path.read_text()
    assert len(re.findall(r"^<!-- not run:", text, re.MULTILINE)) == sum(bool(b.why) for b in blocks(path)), "a mark stands before no block"
    for block in blocks(path):
        assert block.kind in ("", "python", "sh", "json") or block.kind.startswith("{"), block.kind
        if block.why:
            assert len(block.why) > 15, block.why
        elif block.kind == "":
            assert not looks_like_python(block.code), f"a block of Python that is not run, without a reason:\n{block.code}"


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    """Those from one page of the site to another are checked when it is built, with their headings."""
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", path.read_text()):
        if re.match(r"https?:", target):
            assert re.fullmatch(r"https?://[\w.-]+\.[a-z]{2,}(/[^\s<>\"{}|\\^`]*)?", target), f"no address: {target}"
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file) if file else path
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def anchors(page: Path) -> set[str]:
    """The names of headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", title).lower() for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in titles}


COMMANDS = (
    "train",
    "evaluate",
    "adapt",
    "predict",
    "export",
    "serve",
    "playground",
    "plan",
    "reproduce",
    "compare",
    "verify",
    "bench",
    "doctor",
)


def test_the_commands_in_the_documents_have_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from headstart.cli import main

    known: dict[str, set[str]] = {}
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known[command] = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    seen = set()
    for page in PAGES:
        for line in commands(page):
            command, options = line.split()[0], set(re.findall(r"(?<=\s)--[a-z][a-z-]*", line.partition("#")[0]))
            assert command == "data" or options <= known[command], f"{page.name}: headstart {line}"
            seen.add(command)
    assert seen >= set(COMMANDS)


def test_the_tests_that_the_page_of_faults_names_are_there() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and "---" not in line and not line.startswith("| fault")]
    assert len(rows) > 20
    for row in rows:
        file, _, name = re.search(r"`(test_[\w.:]+)` \|$", row)[1].partition("::")
        assert f"def {name}" in (ROOT / "tests" / file).read_text(), row
