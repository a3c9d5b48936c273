"""Data that is larger than memory should be stays in its file: resident memory does not grow by the file's size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headstart as hs
from headstart.data.files import mapped
from headstart.data.files.cache import cached
from headstart.data.sources.splitting import scale
from headstart.errors import DataError
from processes import together

MB = 2**20


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large begins early, so that files of a test are."""
    monkeypatch.setattr(mapped, "LARGE", 1000)
    monkeypatch.setattr(mapped, "STRETCH", MB)


def resident(kind: str = "VmRSS") -> int:
    """Bytes of memory that this process has, mapped files included; of RssAnon, those that the system cannot take back."""
    return 1024 * int(re.search(rf"{kind}:\s*(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def measured(rank: int, folder: Path) -> dict[str, tuple[int, int, int]]:
    """The size of an archive, by how much memory grows when it is opened, and by how much of its own after drawing from it."""
    mapped.LARGE, mapped.STRETCH = 1000, MB
    rng = np.random.default_rng(0)

    def used(kind: str, n: int) -> tuple[int, int, int]:
        x = rng.random((n, 40_000), np.float32) if kind == "floats" else rng.integers(0, 255, (n, 230, 230, 3), np.uint8)
        np.savez(path := folder / f"{kind}{n}.npz", x=x, y=np.arange(n) % 20)
        size = x.nbytes
        del x
        before, own = resident(), resident("RssAnon")
        source = hs.data.load(f"npz:{path}")
        opened = resident() - before
        tasks = hs.data.Episodes(source.train, ways=2, shots=1, queries=1, tasks=2)
        assert all(bool(tasks.batch(i).examples.isfinite().all()) for i in range(3))
        return size, opened, resident("RssAnon") - own

    kinds = ("floats", "pictures, channels last")
    for kind in kinds:
        used(kind, 60)  # what runs for the first time takes memory for itself
    return {kind: used(kind, 400) for kind in kinds}


def test_memory_does_not_grow_by_the_size_of_an_archive(tmp_path: Path) -> None:
    """From opening it, with its scales, checks and digests, to drawing from it; in a process whose memory nothing else has used."""
    (found,) = together(1, measured, tmp_path)
    assert not isinstance(found, str), found
    for size, opened, drawn in found.values():
        assert size > 60 * MB
        assert opened < size / 4, f"{opened / MB:.0f} MB of {size / MB:.0f}"
        assert drawn < size / 4, f"{drawn / MB:.0f} MB of {size / MB:.0f}"


def test_mapped_and_read_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, scales and splits, of every layout; and a compressed archive, which cannot be mapped, is read."""
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = {
        "vectors": rng.random((40, 9), np.float32),
        "fortran": np.asfortranarray(rng.random((40, 9), np.float32)),
        "wide": rng.random((40, 9)),
        "last": rng.integers(0, 255, (40, 6, 5, 3), np.uint8),
        "first": rng.integers(0, 255, (40, 3, 6, 5), np.uint8),
        "grey": rng.integers(0, 255, (40, 6, 5), np.uint8),
    }
    for name, x in arrays.items():
        for save in (np.savez, np.savez_compressed):
            save(path := tmp_path / f"{name}.npz", x=x, y=np.array([f"class {i}" for i in np.arange(40) % 8]))
            found = []
            for limit in (10**9, 0):
                monkeypatch.setattr(mapped, "LARGE", limit)
                assert (mapped.of_archive(path, "x") is not None) == (limit == 0 and save is np.savez)
                source = hs.data.load(f"npz:{path}")
                every = torch.arange(len(source.train))
                found.append((source.train.batch(every), source.train.mean, source.train.std, source.test.classes))
            assert torch.equal(found[0][0], found[1][0]), name
            assert found[0][1:] == found[1][1:]


@pytest.mark.usefixtures("small")
def test_writing_to_a_mapped_array_leaves_the_file(tmp_path: Path) -> None:
    np.savez(path := tmp_path / "a.npz", x=np.ones((40, 9), np.float32), y=np.arange(40) % 8)
    content, source = path.read_bytes(), hs.data.load(f"npz:{path}")
    source.train.array.add_(1)
    assert path.read_bytes() == content
    assert float(hs.data.load(f"npz:{path}").train.array.max()) == 1.0


@pytest.mark.usefixtures("small")
def test_a_mapped_archive_with_bad_values_is_refused(tmp_path: Path) -> None:
    x = np.ones((40, 90), np.float32)
    x[33, 3] = np.nan
    np.savez(path := tmp_path / "a.npz", x=x, y=np.arange(40) % 8)
    with pytest.raises(DataError, match=r"1 examples hold NaN.*x\[33\]"):
        hs.data.load(f"npz:{path}")
    np.savez(path, x=np.array([{"a": 1}] * 400, object), y=np.arange(400) % 8)
    with pytest.raises(DataError, match="Python objects"):
        hs.data.load(f"npz:{path}")


@pytest.mark.usefixtures("small")
def test_a_folder_of_pictures_is_decoded_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    for i in range(32):
        (folder / f"c{i % 8}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (90, 90, 3), np.uint8)).save(folder / f"c{i % 8}" / f"{i}.png")
    found = []
    for limit in (1000, 10**9):
        monkeypatch.setattr(mapped, "LARGE", limit)
        monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / f"cache-{limit}"))
        found.append(hs.data.load(f"folder:{folder}"))
        assert [p.name for p in (tmp_path / f"cache-{limit}").iterdir() if p.name.startswith("folder")]
    assert torch.equal(found[0].train.array, found[1].train.array)


@pytest.mark.usefixtures("small")
def test_checking_the_cache_leaves_no_memory_behind(tmp_path: Path) -> None:
    make = lambda: {"x": np.random.default_rng(0).integers(0, 255, 60 * MB, np.uint8)}  # noqa: E731
    cached("large", make, tmp_path)
    before = resident()
    array = cached("large", make, tmp_path)["x"]
    assert resident() - before < 15 * MB
    assert mapped.mapped(array) is not None
    (file := tmp_path / "large" / "x.npy").write_bytes(file.read_bytes()[:-1] + b"?")
    assert (cached("large", make, tmp_path)["x"] == make()["x"]).all(), "a damaged entry is made again"


def test_scales_in_stretches_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for x in (rng.normal(3, 2, (50, 7)), rng.normal(-1, 2, (50, 3, 4, 5)), rng.random((50, 4, 5)), rng.random(50), np.ones((50, 2))):
        rows = [*range(0, 50, 2), 1]
        axes = (0, *range(2, x.ndim)) if x.ndim in (2, 4) else tuple(range(x.ndim))
        expected = [np.atleast_1d(v) for v in (x[rows].mean(axes), x[rows].std(axes))]
        for stretch in (2**26, 200):
            monkeypatch.setattr(mapped, "STRETCH", stretch)
            mean, std = scale(x, rows)
            assert mean == pytest.approx(expected[0].tolist(), rel=1e-13)
            assert std == pytest.approx(np.where(expected[1] > 1e-6 * abs(expected[0]), expected[1], 1).tolist(), rel=1e-12)


def test_room_for_bytes_ends_with_its_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "LARGE", 10)
    room = mapped.scratch((4, 5), tmp_path / "new")
    room[2] = 7
    mapped.let_go(room)
    assert room.sum() == 35, "what was written to it is there"
    assert not list((tmp_path / "new").iterdir())
    assert mapped.mapped(mapped.scratch((3, 3), tmp_path)) is None
