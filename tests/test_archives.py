from __future__ import annotations

import codecs
import gc
import io
import os
import pickle
import shutil
import tarfile
import weakref
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.data.files.archives import extract_into, read_members, safe_unpickle
from headstart.errors import DataError

CONTENT = {"a/one.txt": b"one" * 1000, "a/two.bin": bytes(range(256)) * 40, "three": b""}
MODES = {"x.tar": "w", "x.tar.gz": "w:gz", "x.tar.bz2": "w:bz2", "x.tar.xz": "w:xz"}


def archive(path: Path, content: dict[str, bytes] = CONTENT) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr("a/", "")
            for name, data in content.items():
                out.writestr(name, data)
        return path
    with tarfile.open(path, MODES[path.name]) as out:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        out.addfile(folder)
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["x.zip", *MODES])
def test_files_are_read_from_every_kind_of_archive_and_unpacked(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / name)
    assert {k: f.read() for k, f in read_members(path)} == CONTENT
    extract_into(path, tmp_path / "out" / "deep")
    found = {str(f.relative_to(tmp_path / "out/deep")): f.read_bytes() for f in (tmp_path / "out/deep").rglob("*") if f.is_file()}
    assert found == CONTENT


@pytest.mark.parametrize("name", ["x.zip", *MODES])
def test_an_archive_cut_anywhere_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / name)
    whole = path.read_bytes()
    # A tar ends in zeros that say nothing more; what counts is cut from.
    end = len(whole.rstrip(b"\0")) if name == "x.tar" else len(whole)
    for part in [0, 1, 2, 511, 512, *range(513, end - 1, 977), end - 1]:
        if part >= end:
            continue
        path.write_bytes(whole[:part])
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            list(read_members(path))


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_flipped_byte_is_found(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / name, {"noise": np.random.default_rng(0).bytes(5000)})
    whole = bytearray(path.read_bytes())
    whole[2500] ^= 255
    path.write_bytes(whole)
    with pytest.raises(DataError, match="damaged"):
        list(read_members(path))


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar")
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"a/two.bin") + 3] ^= 255
    path.write_bytes(whole)
    with pytest.raises(DataError, match="bad checksum"):
        list(read_members(path))


@pytest.mark.parametrize("content", [b"", b"hello, this is a web page", b"PK hello", b"\x1f\x8bhello"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(content)
    with pytest.raises(DataError, match="page"):
        list(read_members(tmp_path / "page"))
    with pytest.raises(DataError, match="nowhere"):
        list(read_members(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["x.zip", *MODES])
def test_a_bomb_is_stopped_before_it_is_unpacked(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / name, {"small": b"1", "zeros": bytes(2**22)})
    with pytest.raises(DataError, match="unpacks to more than"):
        list(read_members(path, limit=2**21))


def test_a_bomb_in_a_header_is_stopped(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as out:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"comment": "0" * 2**23}
        out.addfile(info)
    with pytest.raises(DataError, match="unpacks to more than"):
        list(read_members(tmp_path / "x.tar.gz", limit=2**20))


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz"])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/headstart-evil", "a\\..\\..\\evil", "c:evil"])
def test_nothing_is_written_outside_of_the_folder(kind: str, name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / kind, {"good": b"1", name: b"evil"})
    with pytest.raises(DataError, match="outside"):
        extract_into(path, tmp_path / "in" / "out")
    assert not [f for f in tmp_path.rglob("*") if "evil" in f.name]
    assert not Path("/tmp/headstart-evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as out:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc"
        out.addfile(info)
        inside = tarfile.TarInfo("link/evil")
        out.addfile(inside)
    with pytest.raises(DataError, match="link"):
        extract_into(tmp_path / "x.tar", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_links_in_a_zip_and_in_the_folder_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as out:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        out.writestr(info, "/etc")
    with pytest.raises(DataError, match="link"):
        extract_into(tmp_path / "x.zip", tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "other")
    with pytest.raises(DataError, match="outside"):
        extract_into(archive(tmp_path / "y.zip"), tmp_path / "out")
    assert not list((tmp_path / "other").iterdir())


ARRAYS = [
    np.arange(12, dtype=np.uint8).reshape(3, 4),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(3, dtype=">i4"),
    np.zeros((0, 4), np.float32),
    np.array(3.5),
    np.array([True, False]),
    np.array(["ab", "ü"]),
    np.array([b"ab", b"c"]),
    np.array([1 + 2j]),
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 0, 2),
    np.arange(24, dtype=np.int64).reshape(4, 6)[::2, ::3],
    np.asfortranarray(np.array([["ab", "ü", ""], ["c", "日本", "d"]])),
    np.frombuffer(b"read-only", np.uint8),
    np.zeros((2, 0), np.int64),
]


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_arrays_and_containers_come_back_as_they_were(protocol: int) -> None:
    scalars = [np.float32(2.5), np.int64(-3), np.bool_(True)]
    plain = [1, 2**80, 2.5, "ü", b"\xff", b"", None, True, (1, (2,)), {"a": {1, 2}}, frozenset([3]), 1j]
    thing = {"arrays": ARRAYS, "scalars": scalars, "plain": plain, "ordered": OrderedDict(b=1, a=2)}
    got = safe_unpickle(io.BytesIO(pickle.dumps(thing, protocol)), "x")
    for a, b in zip(got["arrays"], ARRAYS, strict=True):
        assert isinstance(a, np.ndarray)
        assert a.dtype in (b.dtype, b.dtype.newbyteorder("="))  # before protocol 5 numpy turns bytes round as it reads
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    assert got["scalars"] == scalars
    assert [type(s) for s in got["scalars"]] == [type(s) for s in scalars]
    assert got["plain"] == plain
    assert list(got["ordered"].items()) == [("b", 1), ("a", 2)]
    assert type(np.asarray(got["arrays"][0])) is np.ndarray


@pytest.mark.parametrize("protocol", [2, 5])
def test_what_was_read_is_freed_with_its_last_use(protocol: int) -> None:
    got = safe_unpickle(io.BytesIO(pickle.dumps(np.zeros(2000), protocol)), "x")
    gone = weakref.ref(got)
    gc.disable()
    try:
        del got
        assert gone() is None
    finally:
        gc.enable()


def python2(shape: bytes = b"K\x02K\x03\x86", raw: bytes = bytes(range(250, 256)), kind: bytes = b"u1", state: bytes = b"NNN") -> bytes:
    """What Python 2 wrote for {'data': uint8 array (2, 3), 'name': 'é'}, by hand."""
    ends = b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
    dtype = b"cnumpy\ndtype\nU\x02" + kind + b"K\x00K\x01\x87R(K\x03U\x01|" + state + ends + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + dtype
    return b"\x80\x02}(U\x04data" + array + b"\x89U" + bytes([len(raw)]) + raw + b"tbU\x04nameU\x01\xe9u."


def test_a_pickle_of_python_2_is_read() -> None:
    got = safe_unpickle(io.BytesIO(python2()), "x")
    assert got["data"].tolist() == [[250, 251, 252], [253, 254, 255]]
    assert got["name"] == "é"


class Call:
    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_hostile_pickles_are_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    write = f"open({str(sentinel)!r}, 'w').close()"
    np.save(tmp_path / "o.npy", np.array([Call(os.system, f"touch {sentinel}")]), allow_pickle=True)
    hostile = {
        "system": Call(os.system, f"touch {sentinel}"),
        "builtins.eval": Call(eval, write),
        "builtins.exec": Call(exec, write),
        "builtins.getattr": Call(getattr, "a", "upper"),
        "io.open": Call(open, str(sentinel), "w"),
        "builtins.bytearray": bytearray(b"a") if protocol < 5 else Call(bytearray, 5),
        "shutil.rmtree": Call(shutil.rmtree, str(tmp_path)),
        "numpy.load": Call(np.load, str(tmp_path / "o.npy"), None, True),
        "numpy.save": Call(np.save, str(sentinel), 1),
        "pathlib": tmp_path,
        "test_archives.Call": Call,
    }
    for name, thing in hostile.items():
        for inside in (thing, [thing], {"a": (1, thing)}, np.array([thing, 1], dtype=object)):
            content = pickle.dumps(inside, protocol)
            with pytest.raises(DataError, match=r"^file\.pkl ") as caught:
                safe_unpickle(io.BytesIO(content), "file.pkl")
            if not isinstance(inside, np.ndarray):
                assert name in str(caught.value)
    assert not sentinel.exists()
    assert tmp_path.exists()


def test_the_codecs_and_the_array_makers_cannot_be_turned() -> None:
    array = "cnumpy.core.multiarray\n_reconstruct\n"
    hostile = {
        "zlib": Call(codecs.encode, "a", "rot13"),
        "many": b"cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",
        "defaults": b"c_codecs\nencode\n(N}U\x0c__defaults__)stb.",
        "class": b"ccollections\nOrderedDict\n(N}U\x06updateNstb.",
        "reconstruct": array.encode() + b"(N}U\x08__code__Nstb.",
        "extension": b"\x82\x01.",
        "persistent": b"Pname\n.",
        "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "memo in text": b"Np2147483647\n.",
        "long": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"a.",
        "wrong size": python2(shape=b"J\xff\xff\xff\x7fK\x03\x86"),
        "negative": python2(shape=b"J\xfe\xff\xff\xffJ\xfd\xff\xff\xff\x86"),
        "pointers": python2(shape=b"K\x01\x85", raw=b"A" * 8, kind=b"O8"),
        "void": python2(shape=b"K\x01\x85", raw=b"A" * 8, kind=b"V8"),
        "fields": python2(state=b"NU\x01a\x85}U\x01aK\x01s"),
    }
    for thing in hostile.values():
        content = thing if isinstance(thing, bytes) else pickle.dumps(thing)
        with pytest.raises(DataError):
            safe_unpickle(io.BytesIO(content), "x")
    assert codecs.encode.__module__ == "_codecs"
    assert safe_unpickle(io.BytesIO(python2()), "x")["data"].shape == (2, 3)


def frombuffer(content: bytes = b"\x96\x06" + bytes(7) + b"abcdef", shape: bytes = b"K\x02K\x03\x86", order: bytes = b"\x8c\x01C") -> bytes:
    """What protocol 5 writes for a uint8 array (2, 3), by hand; remembers the content as 0 and the array as 1."""
    dtype = b"cnumpy\ndtype\n\x8c\x02u1\x89\x88\x87R(K\x03\x8c\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return b"\x80\x05cnumpy._core.numeric\n_frombuffer\n(" + content + b"\x94" + dtype + shape + order + b"tR\x94."


def test_the_maker_of_arrays_of_protocol_5_cannot_be_turned() -> None:
    good = frombuffer()
    assert safe_unpickle(io.BytesIO(good), "x").tolist() == [[97, 98, 99], [100, 101, 102]]
    old = good.replace(b"numpy._core", b"numpy.core")
    assert safe_unpickle(io.BytesIO(old), "x").tolist() == [[97, 98, 99], [100, 101, 102]]
    state = b"(K\x01K\x03\x85cnumpy\ndtype\n\x8c\x02u1\x89\x88\x87R\x89C\x05abcdetb."
    hostile = {
        "larger": frombuffer(shape=b"J\xff\xff\xff\x7fK\x03\x86"),
        "smaller": frombuffer(shape=b"K\x01K\x03\x86"),
        "negative": frombuffer(shape=b"J\xfe\xff\xff\xffJ\xfd\xff\xff\xff\x86"),
        "wraps round": frombuffer(shape=b"\x8a\x09" + (2**64).to_bytes(9, "little") + b"K\x03\x86"),
        "no shape": frombuffer(shape=b"N"),
        "text": frombuffer(content=b"\x8c\x06abcdef"),
        "numbers": frombuffer(content=b"(K\x01K\x02K\x03K\x04K\x05K\x06t"),
        "array": frombuffer(content=good[2:-1]),
        "axes": frombuffer(order=b"\x8c\x01KK\x05K\x01\x86"),
        "axis twice": frombuffer(order=b"\x8c\x01KK\x01K\x01\x86"),
        "elsewhere": frombuffer(content=b"\x97"),
        "view": good[:-1] + b"\x98.",
        "objects": good.replace(b"\x8c\x02u1", b"\x8c\x01O"),
        "no dtype": frombuffer().replace(b"cnumpy\ndtype\n", b"cbuiltins\nlist\n"),
        "state": good[:-1] + state,
        "attributes": b"\x80\x05cnumpy._core.numeric\n_frombuffer\n(N}\x8c\x08__code__Nstb.",
        "neighbour": good.replace(b"_frombuffer", b"frombuffer"),
        "other module": good.replace(b"_core.numeric", b"_core.multiarray"),
        "memory under an array": good[:-1] + b"h\x00(" + b"K\x01" * 99 + b"e.",
    }
    reasons = {
        "memory under an array": "BufferError",
        "elsewhere": "a buffer kept",
        "view": "a buffer kept",
        "state": "does not have shape",
    }
    for name, content in hostile.items():
        with pytest.raises(DataError, match=reasons.get(name)):
            pytest.fail(f"{name}: {safe_unpickle(io.BytesIO(content), 'x')!r}")


@pytest.mark.parametrize(
    "whole", [python2(), frombuffer(), pickle.dumps(ARRAYS[-4], 5), pickle.dumps(ARRAYS[0], 4), pickle.dumps({"a": ["b"] * 3}, 2)]
)
def test_a_truncated_pickle_is_refused(whole: bytes) -> None:
    for part in range(len(whole)):
        with pytest.raises(DataError, match=r"^part\.pkl"):
            safe_unpickle(io.BytesIO(whole[:part]), "part.pkl")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_random_damage_raises_nothing_but_data_errors() -> None:
    random = np.random.default_rng(0)
    for whole in (python2(), frombuffer(), pickle.dumps(ARRAYS, 5), pickle.dumps(ARRAYS, 4), pickle.dumps(ARRAYS, 2)):
        for _ in range(300):
            content = np.frombuffer(whole, np.uint8).copy()
            content[random.integers(len(content), size=2)] = random.integers(256, size=2)
            try:
                safe_unpickle(io.BytesIO(content.tobytes()), "x")
            except DataError:
                continue
