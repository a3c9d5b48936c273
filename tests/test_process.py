"""Settings of the process: seen from outside, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from headstart import process

KEEPS = """
import resource, sys, torch, headstart as hs
if "tuned" in sys.argv:
    print(hs.tune_process(), hs.tune_process() == hs.tune_process())
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(6):
    if i == 3:
        before = faults()
    torch.ones(16 * 2**20)  # 64 MiB, above any threshold that glibc comes to by itself
print(faults() - before)
"""


def run(*arguments: str, **environment: str) -> list[str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))}
    command = [sys.executable, "-c", KEEPS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**own, **environment}).stdout.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back and takes such settings")
def test_freed_memory_is_kept() -> None:
    """A block that is freed and asked for again is not fetched from the system page by page."""
    (plain,) = run()
    said, kept = run("tuned")
    assert int(plain) > 1000
    assert int(kept) < 100
    assert "freed memory is kept" in said
    assert said.endswith("True")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_the_users_own_settings_stay() -> None:
    """What the environment says of memory is left alone, and that is said."""
    said, _ = run("tuned", MALLOC_TRIM_THRESHOLD_="100000")
    assert "not kept: the environment sets MALLOC_TRIM_THRESHOLD_" in said


def test_another_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is loaded in place of glibc's is not spoken to, and neither is another C library."""
    for name in process._ITS_OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert "jemalloc" in process.unkept()
    monkeypatch.delenv("LD_PRELOAD")
    assert process.unkept() == ""
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert "not glibc" in process.unkept()
