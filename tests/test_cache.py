"""The cache: built once, checked when read, and never half written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart.data.files.cache import Arrays, cache_folder, cached, fingerprint

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


class Builder:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Arrays:
        self.calls += 1
        return {"images": IMAGES.copy(), "names": np.array(["å", "bc"]), "none": np.zeros((0, 3))}


@pytest.fixture
def build() -> Builder:
    return Builder()


def same(arrays: Arrays) -> bool:
    expected = Builder()()
    return arrays.keys() == expected.keys() and all(np.array_equal(arrays[k], a) for k, a in expected.items())


def test_second_time_is_read(build: Builder, tmp_path: Path) -> None:
    assert same(cached("entry", build, tmp_path))
    assert same(cached("entry", build, tmp_path))
    assert build.calls == 1
    assert {p.name for p in tmp_path.iterdir()} == {"entry", ".lock"}  # nothing temporary is left
    assert {p.name for p in (tmp_path / "entry").iterdir()} == {"images.npy", "names.npy", "none.npy", "manifest.json"}
    cached("other", build, tmp_path)
    assert build.calls == 2


def test_writing_to_what_was_read_leaves_the_file_alone(build: Builder, tmp_path: Path) -> None:
    torch.from_numpy(cached("entry", build, tmp_path)["images"]).zero_()
    assert same(cached("entry", build, tmp_path))
    assert build.calls == 1


@pytest.mark.parametrize("file", ["images.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing", "other content"])
def test_damaged_entry_is_made_again(damage: str, file: str, build: Builder, tmp_path: Path) -> None:
    cached("entry", build, tmp_path)
    path = tmp_path / "entry" / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "other content" and file == "images.npy":  # a sound file that is not what was written
        np.save(path, 255 - IMAGES)
    elif damage == "other content":
        path.write_text(json.dumps({"images": "0" * 64}))
    else:
        flipped = content.copy()
        flipped[-5] ^= 0xFF
        path.write_bytes({"truncated": content[: len(content) // 2], "flipped": flipped, "empty": b""}[damage])
    assert same(cached("entry", build, tmp_path))
    assert build.calls == 2
    cached("entry", build, tmp_path)
    assert build.calls == 2  # the damaged entry was replaced


def test_unwritable_folder_works_with_a_warning(build: Builder, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    with pytest.warns(UserWarning, match="HEADSTART_CACHE"):
        assert same(cached("entry", build, occupied / "cache"))


def test_interrupted_write_leaves_nothing(build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(file: Path, array: Any, **options: Any) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.warns(UserWarning, match="no space left"):
        assert same(cached("entry", build, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_folder_is_the_environments(build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "mine"))
    cached("entry", build)
    assert cache_folder() == tmp_path / "mine"
    assert (tmp_path / "mine" / "entry").is_dir()


def test_fingerprint_changes_with_path_size_and_time(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for file in (a, b):
        file.write_text("1")
        os.utime(file, ns=(10**18, 10**18))
    first = fingerprint(a)
    assert first == fingerprint(a) != fingerprint(b)
    assert fingerprint(a, b) != fingerprint(b)
    os.utime(a, ns=(10**18, 10**18 + 1))
    later = fingerprint(a)
    assert later != first
    a.write_text("12")
    os.utime(a, ns=(10**18, 10**18 + 1))
    assert fingerprint(a) != later
