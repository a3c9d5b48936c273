"""No file that is read is ever run: not one line of the source can, and hostile files are refused by every reader."""

from __future__ import annotations

import ast
import io
import os
import pickle
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.cli import main
from readers import READERS

SOURCE = Path(hs.__file__).parent
ROOT = SOURCE.parents[1]

RUNS = {
    "pickle": {"load", "loads", "Unpickler", "_loads", "_load"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
    "dill": {"load", "loads"},
    "cloudpickle": {"load", "loads"},
    "joblib": {"load"},
    "yaml": {"load", "full_load", "unsafe_load", "load_all"},
    "torch": {"load", "jit", "hub", "package"},
    "runpy": {"run_path", "run_module"},
    "subprocess": {"run", "Popen", "call", "check_call", "check_output"},
    "os": {"system", "popen", "execv", "execvp", "spawnv"},
    "importlib": {"import_module", "__import__", "util", "machinery"},
    "builtins": {"eval", "exec", "compile", "__import__"},
}
"""What may run what a file says, by where it comes from."""
ALLOWED = {
    (
        "data/files/archives.py",
        "pickle.Unpickler",
    ): "the base of _Plain, whose find_class gives nothing but code of that file and containers",
    (
        "registry.py",
        "importlib.import_module",
    ): "module:name that the user typed; names in files are refused unless they are trusted (loading._part)",
    ("data/catalogue.py", "importlib.import_module"): "a module of headstart.data.sources, from the table of sources",
    ("reproduction/costs.py", "subprocess.run"): "this Python, to measure memory in a process of its own; and what the machine is",
    ("reproduction/reproduce.py", "subprocess.Popen"): "this Python, for the other processes of a reproduction",
    ("__init__.py", "importlib.import_module"): "headstart.estimators, when it is first used",
    ("doctor.py", "importlib.util"): "whether a package is installed, by a name of a table; it is not imported",
    ("benching/rivals.py", "importlib.import_module"): "the libraries that are timed, by names that stand in the file",
    ("benching/turns.py", "subprocess.Popen"): "this Python, for each contestant of a benchmark",
    ("training/loggers.py", "importlib.import_module"): "the libraries behind the loggers, by names that stand in the file",
}
OPTIONAL = {"pyarrow", "pyarrow.csv", "pyarrow.parquet", "transformers", "transformers.utils", "peft", "scipy.sparse.linalg", "scipy.stats"}
"""Packages that are imported when they are first needed, by a name that stands in the source."""


def used(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What of :data:`RUNS` a module names, however it imported it."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({(a.asname or a.name.partition(".")[0]): (a.name if a.asname else a.name.partition(".")[0]) for a in node.names})
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names})
    for node in ast.walk(tree):
        whole = ""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            whole = f"{names.get(node.value.id, '')}.{node.attr}"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            whole = names.get(node.id, f"builtins.{node.id}")
        module, _, name = whole.rpartition(".")
        if name in RUNS.get(module, ()):
            yield whole, node
        for keyword in getattr(node, "keywords", []):
            if keyword.arg in ("allow_pickle", "weights_only", "shell", "trust_remote_code"):
                wanted = keyword.arg == "weights_only"
                if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is wanted):
                    yield f"{keyword.arg}={ast.unparse(keyword.value)}", node
        if isinstance(node, ast.Call) and whole == "" and isinstance(node.func, ast.Attribute):
            function = f"{names.get(ast.unparse(node.func.value), '')}.{node.func.attr}"
            if function in ("numpy.load", "numpy.fromfile") and "allow_pickle" not in {k.arg for k in node.keywords}:
                yield f"{function} without allow_pickle=False", node


def test_nothing_in_the_source_can_run_what_a_file_says() -> None:
    seen = set()
    for file in SOURCE.rglob("*.py"):
        tree, where = ast.parse(file.read_text()), str(file.relative_to(SOURCE))
        calls = {id(c.func): c for c in ast.walk(tree) if isinstance(c, ast.Call)}
        for name, node in used(tree):
            call = calls.get(id(node))
            said = call.args[0].value if call and call.args and isinstance(call.args[0], ast.Constant) else None
            if name == "importlib.import_module" and said in OPTIONAL:
                continue
            if name == "importlib.import_module" and where == "export/body.py":  # what export.package is asked for stands in the source too
                continue
            if where == "models/pretrained.py" and name == "importlib.import_module":
                assert said in OPTIONAL, ast.unparse(node)
            seen.add((where, name))
            assert (where, name) in ALLOWED, f"{where}, line {getattr(node, 'lineno', '?')}: {name} can run what a file says"
    assert seen == set(ALLOWED), "what is allowed is there"


def test_the_walk_finds_what_it_should() -> None:
    found = {
        "import pickle\npickle.load(f)": "pickle.load",
        "from pickle import loads as l\nl(b)": "pickle.loads",
        "import torch\ntorch.load(f, weights_only=False)": "weights_only=False",
        "import torch as t\nt.load(f)": "torch.load",
        "import numpy as np\nnp.load(f)": "numpy.load without allow_pickle=False",
        "import numpy as np\nnp.load(f, allow_pickle=x)": "allow_pickle=x",
        "eval(text)": "builtins.eval",
        "f = exec": "builtins.exec",
        "import yaml\nyaml.load(f)": "yaml.load",
        "import joblib\njoblib.load(f)": "joblib.load",
        "import os\nos.system(t)": "os.system",
    }
    for code, name in found.items():
        assert name in {n for n, _ in used(ast.parse(code))}, code


class Runs:
    """A pickle of it touches a file when it is loaded."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.sentinel}",)


def hostile(sentinel: Path) -> dict[str, bytes]:
    """Files that run a command, if anything in them is run."""
    run = Runs(sentinel)
    found = {f"pickle {p}": pickle.dumps({"data": run, b"data": run, "x": [run]}, p) for p in range(6)}
    np.save(one := io.BytesIO(), np.array([run], object), allow_pickle=True)
    np.savez(many := io.BytesIO(), x=np.array([run] * 6, object), y=np.arange(6))
    torch.save({"state": run}, saved := io.BytesIO())
    with zipfile.ZipFile(old := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", found["pickle 2"])
        archive.writestr("train", found["pickle 4"])
    code = f"__import__('os').system('touch {sentinel}')"
    found |= {"npy": one.getvalue(), "npz": many.getvalue(), "torch": saved.getvalue(), "zip": old.getvalue(), "python": code.encode()}
    found["options"] = f'{{"model": "os:system", "model_options": "command={code!r}", "data": "os:system", "loss": "os:system"}}'.encode()
    return found


def test_the_hostile_files_are_hostile(tmp_path: Path) -> None:
    for name in ("pickle 0", "pickle 5"):
        with open(os.devnull) as _:
            pickle.loads(hostile(tmp_path / "sentinel")[name])
        assert (tmp_path / "sentinel").exists()
        (tmp_path / "sentinel").unlink()


@pytest.mark.parametrize("name", [n for n in READERS if n != "config"])
def test_no_reader_runs_a_hostile_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "system", _ran)
    monkeypatch.setattr(subprocess, "Popen", _ran)
    sentinel = tmp_path / "sentinel"
    for content in hostile(sentinel).values():
        READERS[name](content, tmp_path)
    assert not sentinel.exists()


def _ran(*_: Any, **__: Any) -> None:
    raise AssertionError("a file was run")


def test_no_command_runs_a_hostile_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "system", _ran)
    monkeypatch.chdir(tmp_path)
    sentinel = tmp_path / "sentinel"
    for name, content in hostile(sentinel).items():
        if name not in ("pickle 2", "npz", "torch", "zip"):
            continue
        for suffix in (".safetensors", ".npz", ".pkl", ".csv", ".json"):
            (tmp_path / f"input{suffix}").write_bytes(content)
        assert main(["predict", "input.safetensors", "input.npz"]) == 2
        assert main(["adapt", "input.safetensors", "--support", "input.npz"]) == 2
        assert main(["adapt", "characters", "--support", "input.npz"]) == 2
        assert main(["train", "--config", "input.json"]) == 2
        for source in ("npz:input.npz", "table:input.csv", "texts:input.json", "cifar-fs:input.pkl"):
            assert main(["data", "info", source]) == 2
    assert not sentinel.exists()
    capsys.readouterr()
