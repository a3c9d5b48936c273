"""Imports only go down, by the levels of docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

import headstart

LEVELS = {
    "errors": 0,
    "types": 0,
    "registry": 1,
    "counting": 1,
    "losses": 1,
    "tasks": 1,
    "partition": 1,
    "models": 1,
    "running": 1,
    "probe": 2,
    "replay": 3,
    "inner": 4,
    "data": 4,
    "hypergradient": 5,
    "explanation": 5,
    "adapted": 5,
    "learner": 6,
    "presets": 7,
    "evaluation": 7,
    "training": 8,
    "theory": 9,
    "measuring": 10,
    "verifying": 11,
    "planning": 12,
    "experiments": 13,
    "cli": 14,
}
ROOT = Path(headstart.__file__).parent


def test_imports_only_go_down() -> None:
    files = [f for f in ROOT.rglob("*.py") if f != ROOT / "__init__.py"]
    assert len(files) > 30
    for file in files:
        own = file.relative_to(ROOT).with_suffix("").parts
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if isinstance(node, ast.ImportFrom) and node.module == "headstart":
                modules = [f"headstart.{a.name}" for a in node.names]
            if isinstance(node, ast.Import):
                modules = [a.name for a in node.names]
            for module in modules:
                if not module.startswith("headstart"):
                    continue
                assert module != "headstart", f"{file} imports the package itself"
                part = module.split(".")[1]
                same = part == own[0]
                assert same or LEVELS[part] < LEVELS[own[0]], f"{'.'.join(own)} (level {LEVELS[own[0]]}) imports {module} ({LEVELS[part]})"
