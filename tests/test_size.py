"""The house rules that a script can see: short files, short functions, no switch over kinds, and names that hide no module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import headstart

ROOT = Path(headstart.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LINES, FUNCTION = 350, 60


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert (node.end_lineno or 0) - first.lineno < FUNCTION, f"{node.name} is longer than {FUNCTION} lines without its docstring"


KINDS = ("GradientDescent", "MetaSGD", "LSLR", "Ridge", "Adam", "Unrolled", "Recursive", "Implicit", "FirstOrder", "SampleSpace")
KINDS += ("ModelStart", "SharedVector", "Prototypes", "Zeros", "Centroids", "RefinedPrototypes", "MetaCurvature", "SVM", "Reptile")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_code_asks_what_kind_a_part_is(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
            named = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            assert not named & set(KINDS), f"line {node.lineno}: {sorted(named & set(KINDS))} should answer for itself"


@pytest.mark.parametrize("package", [f.parent for f in FILES if f.name == "__init__.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_name_hides_a_module(package: Path) -> None:
    modules = {f.stem for f in package.glob("*.py")} | {d.name for d in package.iterdir() if (d / "__init__.py").exists()}
    for node in ast.parse((package / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module != ".".join(("headstart", *package.relative_to(ROOT).parts)):
            for alias in node.names:
                assert (alias.asname or alias.name) not in modules, f"{alias.name} hides the module of its name"
