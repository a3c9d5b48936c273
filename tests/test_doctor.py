"""The doctor's lines: what they find on machines that are like this or that, and what they advise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headstart import doctor
from headstart.cli import main
from headstart.version import __version__


def test_every_line_on_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "not" / "yet"))
    assert main(["doctor", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for line in ("headstart", "torch", "device", "threads", "waiting", "denormals", "allocator", "cache", "run folders"):
        assert f"\n  {line}" in f"\n{out}" or f"\n! {line}" in f"\n{out}", line
    assert torch.__version__ in out
    assert str(tmp_path / "not" / "yet") in out
    assert not (tmp_path / "not").exists(), "looking leaves nothing behind"
    assert out.count("\n! ") + out.startswith("! ") == int(f"0{out.splitlines()[-1].split()[0]}".replace("nothing", "")), out


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/runs", "nfs4"),
        ("/home/mean", "nfs4"),
        ("/home", "nfs4"),
        ("/homes", "ext4"),
        ("/my disk/a", "cifs"),
        ("/over/x", "tmpfs"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    """The longest mount point above it; of two at one place, the later, which hides the other."""
    mounts = (
        "a / ext4 rw 0 0\nb /home nfs4 rw 0 0\nc /home/m nfs rw 0 0\nd /my\\040disk cifs rw 0 0\ne /over ext4 rw\nf /over tmpfs rw\n\nodd"
    )
    assert doctor.file_system(Path(path), mounts) == kind
    assert doctor.file_system(Path(path), "") == ""


def test_a_folder_on_a_network_and_one_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "file_system", lambda path: "nfs4")
    found = doctor.folder("cache", tmp_path / "a" / "b", "HEADSTART_CACHE")
    assert "on a network" in found.advice
    assert "HEADSTART_CACHE" in found.advice
    assert "(nfs4, " in found.value
    monkeypatch.setattr(doctor, "file_system", lambda path: "ext4")
    assert doctor.folder("cache", tmp_path, "--out").advice == ""
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "cannot be written: choose another by --out" in doctor.folder("runs", tmp_path / "a", "--out").advice


@pytest.mark.parametrize(("text", "cores"), [("150000 100000", 1.5), ("max 100000", None), ("", None), ("nonsense", None)])
def test_the_quota_of_a_container_counts(text: str, cores: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    all_of_them = doctor.usable_cores(tmp_path / "not there")
    assert doctor.usable_cores(tmp_path) == min(cores or all_of_them, all_of_them)


def test_threads_and_how_they_wait() -> None:
    assert doctor.threads(4, 4, {}).advice == ""
    assert "set OMP_NUM_THREADS=4" in doctor.threads(8, 4, {}).advice
    assert "set OMP_NUM_THREADS=1" in doctor.threads(2, 0.5, {}).advice
    assert doctor.threads(1, 0.5, {}).advice == ""
    idle = doctor.threads(1, 8, {"OMP_NUM_THREADS": "1"})
    assert "set OMP_NUM_THREADS=8, unless" in idle.advice
    assert "(OMP_NUM_THREADS=1)" in idle.value
    assert "OMP_WAIT_POLICY=passive" in doctor.waiting({}, 9.0, 4).advice
    assert doctor.waiting({}, 1.0, 4).advice == ""
    assert doctor.waiting({"OMP_WAIT_POLICY": "PASSIVE"}, 9.0, 4).advice == ""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_page_faults_are_counted_and_the_advice_mends_them() -> None:
    """In processes of their own, as the allocator reads its settings when it starts."""
    code = "import os; from headstart.doctor import allocator; found = allocator(os.environ); print(found.value); print(found.advice)"
    clean = {k: v for k, v in os.environ.items() if k not in (*doctor.SETTINGS, "LD_PRELOAD")}
    for settings, advice in (({}, ""), ({"MALLOC_MMAP_THRESHOLD_": "65536"}, "unset MALLOC_MMAP_THRESHOLD_")):
        done = subprocess.run([sys.executable, "-c", code], env={**clean, **settings}, capture_output=True, text=True, check=True)
        value, advised = done.stdout.splitlines()
        count = int(value.split("costs ")[1].split()[0])
        assert count < 100 or settings, "what training does keeps the memory"
        assert bool(advised) == (count > doctor.LARGE / os.sysconf("SC_PAGE_SIZE") / 2)  # fewer where pages are huge
        assert not advised or advice in advised


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    import headstart

    assert headstart.__version__ == __version__
    for flag in ("--version", "-V"):
        assert main([flag]) == 0
        assert capsys.readouterr().out == f"headstart {__version__}\n"


def test_shell_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script for bash completes commands and options in a real bash."""
    with pytest.raises(SystemExit) as ended:
        main(["--tyro-print-completion", "bash"])
    assert not ended.value.code
    script = tmp_path / "headstart"
    script.write_text(capsys.readouterr().out)
    ask = """source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    $(complete -p headstart | sed "s/.*-F \\([^ ]*\\).*/\\1/"); echo "${COMPREPLY[@]}\""""
    for words, expected in ((["headstart", "tr"], "train"), (["headstart", "train", "--optimi"], "--optimizer")):
        done = subprocess.run(["bash", "-c", ask, "bash", str(script), *words], capture_output=True, text=True, check=True)
        assert expected in done.stdout.split(), done
