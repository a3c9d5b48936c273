"""Imports only go down, by the levels of docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import headstart

LEVELS = {
    "errors": 0,
    "types": 0,
    "version": 0,
    "theory": 1,
    "ranks": 1,
    "registry": 1,
    "side": 1,
    "container": 1,
    "counting": 1,
    "task_checks": 1,
    "tasks": 2,
    "partition": 1,
    "untrained": 1,
    "process": 1,
    "step_weights": 1,
    "loss": 3,
    "models": 2,
    "losses": 4,
    "target_scale": 3,
    "program": 3,
    "inner": 5,
    "data": 5,
    "hypergradient": 6,
    "meta_stats": 1,
    "keeping": 7,
    "adapted": 8,
    "explanation": 8,
    "opened": 8,
    "defaults": 8,
    "learner": 9,
    "presets": 10,
    "loading": 10,
    "evaluation": 10,
    "doctor": 11,
    "estimators": 11,
    "export": 11,
    "measuring": 11,
    "training": 12,
    "verifying": 13,
    "using": 13,
    "serving": 14,
    "playing": 14,
    "planning": 14,
    "experiments": 15,
    "reproduction": 16,
    "benching": 16,
    "cli": 17,
    "__main__": 18,
}
INSIDE = {
    "program": [
        ["modes", "precision", "batch_norm"],
        ["kernels", "description"],
        ["run"],
        ["watch", "checks"],
        ["analyse"],
        ["cache"],
        ["support_norm"],
    ],
    "inner": [
        ["head_rule", "leaves", "rates", "shared"],
        ["runner", "start", "simplex_qp"],
        ["problem", "prototypes"],
        ["sample_path"],
        ["linear_head", "solver"],
        ["descent", "closed_form"],
        ["adam", "learned_rates", "curvature", "ridge", "support_vectors"],
    ],
    "hypergradient": [["base"], ["unrolled", "recursive", "implicit", "reptile", "sample_space", "chain_rule"], ["first_order"]],
    "models": [["recipe", "heads", "context"], ["convnets", "perceptron", "pretrained", "on_body"], ["by_name"]],
    "data": [["augment", "files", "store"], ["drawing"], ["samplers"], ["source"], ["sources", "check"], ["catalogue"]],
    "data/files": [["archives", "mapped", "splits"], ["cache"], ["fetch"]],
    "data/samplers": [["draws"], ["classes", "tables", "waves"], ["fixed"]],
    "data/sources": [
        ["splitting", "columns", "embedding"],
        ["arrays", "cifar", "folder", "glyphs", "mini_imagenet", "omniglot", "sinusoid", "tables", "texts"],
    ],
    "evaluation": [["batch_norm", "metrics", "result"], ["over_episodes", "calibration"]],
    "export": [["body", "head"], ["files"], ["tasks", "learners"]],
    "training": [
        ["batches", "checks", "determinism", "holding", "progress", "step_sizes"],
        ["annealing", "choices", "outer", "checkpoint"],
        ["config"],
        ["divided", "run_folder"],
        ["callback"],
        ["observer", "schedules", "stopping", "loggers"],
        ["pretraining"],
        ["loop"],
        ["algorithms", "automatic", "budget", "frozen", "trials"],
        ["run"],
    ],
    "theory": [["bounds", "oracle_counts", "descent"], ["complexity"]],
    "measuring": [
        ["access", "lanczos", "cost"],
        ["surface", "predicted", "proven"],
        ["spectrum", "lipschitz", "smoothness"],
        ["noise", "step_size"],
        ["constants", "objective", "rate"],
    ],
    "verifying": [["problems", "table"], ["zoo"], ["bound_checks", "engine_checks"], ["checks"]],
    "using": [["preprocessing"], ["reading", "trained"], ["predictor"]],
    "benching": [["setting"], ["contestants", "turns"], ["rivals", "tables"], ["worker"]],
    "serving": [["limits", "metrics", "page"], ["bodies", "examples", "held", "work"], ["kept"], ["service"], ["app"]],
    "playing": [["asked", "task"], ["about", "held_out"], ["alone", "app"]],
    "planning": [["candidates", "config"], ["recommendation", "workbench"], ["pilots"], ["search"]],
    "reproduction": [
        ["scales"],
        ["grid"],
        ["observing"],
        ["cells", "costs"],
        ["plan", "statistics"],
        ["join", "memory", "verdicts"],
        ["pictures"],
        ["findings"],
        ["page"],
        ["reproduce"],
    ],
}
"""The floors inside a room, from below; modules of one floor do not know each other."""
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


@pytest.mark.parametrize("room", INSIDE)
def test_imports_only_go_down_inside_a_room(room: str) -> None:
    floor = {module: number for number, modules in enumerate(INSIDE[room]) for module in modules}
    folder, prefix = ROOT / room, ("headstart", *room.split("/"))
    members = {f.stem: [f] for f in folder.glob("*.py") if f.stem != "__init__"}
    members |= {d.name: list(d.rglob("*.py")) for d in folder.iterdir() if (d / "__init__.py").exists()}
    assert set(members) == set(floor), "every module has its floor"
    for name, files in members.items():
        for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
            if not (isinstance(node, ast.ImportFrom) and node.module and tuple(node.module.split("."))[: len(prefix)] == prefix):
                continue
            inner = node.module.split(".")[len(prefix) :][:1] or [a.name for a in node.names]
            for other in inner:
                assert other == name or floor[other] < floor[name], f"{room}.{name} imports {other}, which is not below it"


def test_every_room_of_modules_has_its_floors() -> None:
    rooms = {d.name for d in ROOT.iterdir() if (d / "__init__.py").exists() and len(list(d.glob("*.py"))) > 2}
    assert rooms - set(INSIDE) <= {"cli", "experiments"}, "a room whose files are independent pages"
