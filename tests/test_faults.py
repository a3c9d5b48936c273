"""A full disk, folders that cannot be written, a clock that jumps, two processes on one folder: nothing lost, and a clear message."""

from __future__ import annotations

import ast
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import headstart as hs
from headstart import container
from headstart.cli import main
from headstart.errors import CheckpointError
from headstart.training import checkpoint
from headstart.training.config import TrainConfig
from headstart.training.holding import LOCK, held
from headstart.training.loop import LAST, train
from test_damaged import learner, same, trained

SOURCE = Path(hs.__file__).parent
FOREVER = 10**6


def child(code: str, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """A Python that runs code, with the tests and the package at hand."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE.parent), str(Path(__file__).parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


# -- a full disk -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def room(size: int) -> Any:
    """No file may grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_ends_training_with_what_to_do_and_loses_nothing(tmp_path: Path) -> None:
    trained(tmp_path / "cut", 4, schedule="constant")
    files = {p.name: p.read_bytes() for p in (tmp_path / "cut").iterdir()}
    largest = max(map(len, files.values()))
    for size in (0, 100, largest // 2):
        with room(size), pytest.raises(CheckpointError, match=r"cannot write .*free some space, or choose another"):
            trained(tmp_path / "cut", 8, schedule="constant")
        assert not list((tmp_path / "cut").glob("*.tmp"))
        assert not checkpoint.read(tmp_path / "cut" / LAST).note
    run, _ = trained(tmp_path / "cut", 8, schedule="constant")
    other, _ = trained(tmp_path / "other", 8, schedule="constant")
    assert [e.get("loss") for e in run.history] == [e.get("loss") for e in other.history]
    assert same(checkpoint.read(tmp_path / "cut" / LAST).tensors, checkpoint.read(tmp_path / "other" / LAST).tensors)


def _writers() -> dict[str, Any]:
    """Everything that writes a file of a name."""
    own = learner()
    adapted = own.adapt(torch.zeros(2, 1), torch.zeros(2, 1))
    data = hs.data.load("sinusoid")
    found = hs.evaluate(own, data.test, shots=2, queries=2, episodes=4)
    start = hs.TrainedStart.load("characters")
    x = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    predictor = hs.Predictor.of(start, x, ["a", "b", "a", "b"], 1)
    return {
        "learner": own.save,
        "adapted": adapted.save,
        "start": start.save,
        "predictor": predictor.save,
        "evaluation": found.save,
        "run": hs.Run().save,
        "json": lambda path: container.write_json(path, list(range(500))),
    }


@pytest.fixture(scope="module")
def writers() -> dict[str, Any]:
    return _writers()


def test_every_writer_leaves_the_old_file_whole_where_there_is_no_room(writers: dict[str, Any], tmp_path: Path) -> None:
    for name, write in writers.items():
        path = tmp_path / name
        path.write_text("what was there")
        with room(60), pytest.raises(CheckpointError, match=r"cannot write .*free some space"):
            write(path)
        assert path.read_text() == "what was there"
        write(path)
        assert path.read_bytes() != b"what was there"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(writers)


@pytest.mark.slow
def test_a_graph_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    own = hs.protonet(hs.models.mlp(features=4, ways=2))
    with room(60), pytest.raises(hs.HeadstartError, match="cannot write"):
        hs.export_learner_onnx(own, tmp_path / "a.onnx", torch.randn(6, 4))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_the_output_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert main(["data", "list"]) == 2
        with contextlib.suppress(OSError):
            full.close()
    assert "headstart: [Errno 28] No space left on device" in capsys.readouterr().err


def test_what_is_no_ordinary_file_is_not_replaced(writers: dict[str, Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("what was there")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for write in writers.values():
        for name in ("pipe", "folder", "file/inside", "folder/absent/a", "null\0byte", "x" * 300, "."):
            with pytest.raises(CheckpointError, match="cannot write"):
                write(f"{tmp_path}/{name}")
        with pytest.raises(CheckpointError, match="no ordinary file"):
            write("/dev/null")
        write(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo()
    assert not Path("/dev/null").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"pipe", "folder", "file", "link"}


# -- folders that cannot be written ----------------------------------------------------------------------------------------

AS_NOBODY = """
import os, sys
from pathlib import Path
import torch, headstart as hs
from test_damaged import learner, trained
trained(Path(sys.argv[1]) / "before", 2)  # so that everything is imported
os.setgroups([]); os.setgid(65534); os.setuid(65534)
folder = Path(sys.argv[1])
train, save, load = trained, learner().save, hs.load
for what, path in ((train, folder / "run"), (train, folder), (save, folder / "a"), (load, folder / "secret")):
    try:
        what(path)
        print("no error")
    except hs.HeadstartError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become nobody")
def test_a_folder_without_the_right_to_write_is_said_before_any_work() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to others
        refused(Path(name))


def refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    (tmp_path / "secret").chmod(0o600)
    tmp_path.chmod(0o755)
    done = child(AS_NOBODY, tmp_path)
    said, problem = done.communicate()
    lines = said.splitlines()
    assert len(lines) == 4, problem
    assert all("cannot write to the folder" in line and "Permission denied" in line and "--out" in line for line in lines[:2])
    assert "get the right to write there" in lines[2]
    assert "get the right to read it" in lines[3]
    assert {p.name for p in tmp_path.iterdir()} == {"before", "secret"}


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="there is no /sys")
def test_a_read_only_folder_and_a_file_in_its_place_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("a run folder?")
    command = ["train", "--data", "sinusoid", "--iterations", "2", "--test-episodes", "0", "--lr", "0.01", "--out"]
    for folder in ("/sys/kernel/run", "/proc/run", str(tmp_path / "file"), str(tmp_path / "file" / "run")):
        assert main([*command, folder]) == 2
        said = capsys.readouterr().err
        assert f"headstart: cannot write to the folder {folder!r}" in said
    assert (tmp_path / "file").read_text() == "a run folder?"


# -- two processes on one folder -------------------------------------------------------------------------------------------

HOLDS = """
import sys
from headstart.training.holding import held
with held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_belongs_to_one_process_until_it_ends_in_whatever_way(tmp_path: Path) -> None:
    trained(tmp_path, 2)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    other = child(HOLDS, tmp_path)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    leftover = tmp_path / f".{LAST}.0a1b2c3d.tmp"  # what the other process is writing
    leftover.write_text("half")
    for attempt in range(2):
        with pytest.raises(
            CheckpointError, match=r"another process is writing to the folder .*; wait until it has ended, end it, or choose"
        ):
            trained(tmp_path, 4)
        assert attempt or leftover.exists()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p != leftover} == before
    other.kill()
    other.wait()
    run, _ = trained(tmp_path, 4)
    assert run.iterations == 4
    assert not leftover.exists()


def test_a_second_server_on_one_folder_of_tasks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = child(HOLDS, tmp_path)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert main(["serve", "characters", "--state", str(tmp_path)]) == 2
    assert "another process is writing to the folder" in (said := capsys.readouterr().err)
    assert "--state" in said
    other.kill()
    other.wait()


def test_a_second_thread_is_refused_too_and_the_same_one_may_hold_again(tmp_path: Path) -> None:
    found: list[str] = []

    def second() -> None:
        try:
            with held(tmp_path):
                found.append("held twice")
        except CheckpointError as error:
            found.append(str(error))

    with held(tmp_path), held(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    with held(tmp_path):
        pass
    assert len(found) == 1
    assert "another process is writing" in found[0]
    assert {p.name for p in tmp_path.iterdir()} <= {LOCK}


# -- a clock that jumps ----------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, weights = trained(tmp_path / "whole", 6)
    calls = iter(range(FOREVER))
    jumping = lambda: 1e9 * (-1) ** next(calls) + 1.5e9  # noqa: E731  # from 1985 to 2049 and back
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", jumping)
        patch.setattr(time, "time_ns", lambda: int(1e9 * jumping()))
        run, found = trained(tmp_path / "jumping", 6)
    assert same(found, weights)
    assert 0 <= run.seconds < 1000
    assert [e.get("loss") for e in run.history] == [e.get("loss") for e in whole.history]
    last = tmp_path / "jumping" / LAST
    for moment in (0, 4e9):  # files from before there were computers, and from the future
        for path in last.parent.iterdir():
            os.utime(path, (moment, moment))
        again, _ = trained(tmp_path / "jumping", 6)
        assert again.iterations == 6
        assert not any("damaged" in note for note in again.notes)


WALL = {
    "reproduction/costs.py": "the date on a page",
    "benching/tables.py": "the date on a table",
    "data/files/cache.py": "when a file changed, which names its entry",
}


def test_nothing_asks_for_the_time_of_day() -> None:
    """Durations are of monotonic clocks; only dates on pages, and times of change of files, are of the wall."""
    for file in SOURCE.rglob("*.py"):
        names = {ast.unparse(n) for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Attribute)}
        asked = {n for n in names if n.endswith(("time.time", "time.time_ns", ".now", ".today", ".utcnow", ".st_mtime", ".st_mtime_ns"))}
        where = str(file.relative_to(SOURCE))
        if where == "serving/kept.py":
            assert asked == {"f.stat().st_mtime_ns"}, "the order in which tasks of a server that was ended were used"
        else:
            assert not asked or where in WALL, f"{where} asks {asked}"


# -- no half file ----------------------------------------------------------------------------------------------------------

DIRECT = {
    "container.py": "it is what writes by way of a temporary file",
    "training/holding.py": "an empty file that finds out whether a folder can be written",
    "data/files/cache.py": "into a folder that gets its name when it is complete",
    "data/files/fetch.py": "a part, under the name of a part",
    "measuring/cost.py": "a file of the kernel",
    "cli/entry.py": "to nowhere",
    "benching/worker.py": "its answers, into a pipe",
    "export/files.py": "into the temporary file that write_atomically gives",
    "data/files/archives.py": "into the temporary file that write_atomically gives",
}
WRITES = {"write_text", "write_bytes", "savefig", "save_file", "dump", "write_table", "copyfile"}


def test_nothing_writes_a_file_but_by_way_of_a_temporary_one() -> None:
    for file in SOURCE.rglob("*.py"):
        where = str(file.relative_to(SOURCE))
        if where in DIRECT:
            continue
        tree = ast.parse(file.read_text())
        within = {id(n) for call in ast.walk(tree) if _named(call) == "write_atomically" for n in ast.walk(call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or id(node) in within:
                continue
            owner = ast.unparse(node.func)
            plain = _named(node) in WRITES and owner not in ("write_text", "container.write_text")
            opened = _named(node) in ("open", "fdopen") and any(
                isinstance(a, ast.Constant) and isinstance(a.value, str) and set(a.value) & set("wax+") and len(a.value) < 4
                for a in node.args
            )
            assert not plain or "buffer" in ast.unparse(node), f"{where}, line {node.lineno}: {ast.unparse(node)[:80]}"
            assert not opened, f"{where}, line {node.lineno}: {ast.unparse(node)[:80]}"


def _named(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_a_config_that_training_cannot_take_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(hs.HeadstartError):
        train(learner(), hs.data.load("sinusoid"), TrainConfig(ways=0), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
