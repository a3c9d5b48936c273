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
    "loss": 2,
    "target_scale": 3,
    "losses": 3,
    "tasks": 1,
    "partition": 1,
    "models": 2,
    "adapted": 6,
    "program": 3,
    "opened": 6,
    "inner": 4,
    "data": 4,
    "hypergradient": 5,
    "explanation": 6,
    "learner": 7,
    "presets": 8,
    "evaluation": 8,
    "training": 9,
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
