"""Safe reading of what people download: archives and pickles that may be damaged, or hostile."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import pickle
import pickletools
import re
import stat
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from headstart.container import write_atomically
from headstart.errors import DataError, HeadstartError

LIMIT = 4 * 2**30
PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


def read_members(path: str | Path, limit: int = LIMIT) -> Iterator[tuple[str, io.BytesIO]]:
    """The files in a zip or tar archive, in its order and with their contents, without unpacking it to disk.

    Args:
        path: a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz; the content says which, not the name.
        limit: bytes that the archive may unpack to.

    Raises:
        DataError: the file is missing, truncated, damaged or no archive, holds a link, or unpacks to more than ``limit``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with zipfile.ZipFile(f"{folder}/a.zip", "w") as archive:
        ...         archive.writestr("notes/one.txt", "hello")
        ...     [(name, file.read()) for name, file in read_members(f"{folder}/a.zip")]
        [('notes/one.txt', b'hello')]
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(2)
            file.seek(0)
            for name, content in (_zip if magic == b"PK" else _tar)(file, path, limit):
                yield name, io.BytesIO(content)
    except HeadstartError:
        raise
    except Exception as error:  # a damaged archive can raise almost anything
        raise DataError(f"{path} is damaged, incomplete, or no archive ({error}); fetch it again") from error


def extract_into(path: str | Path, folder: str | Path, limit: int = LIMIT) -> None:
    """Unpacks a zip or tar archive into a folder, and never outside of it.

    Args:
        path, limit: as in :func:`read_members`.
        folder: made if it does not exist.

    Raises:
        DataError: as in :func:`read_members`, or a name in the archive is absolute or leads out of the folder.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    for name, file in read_members(path, limit):
        plain = PurePosixPath(name)
        target = root / plain
        outside = plain.is_absolute() or ".." in plain.parts or re.search(r"[\\:\0]", name)
        if outside or not target.resolve().is_relative_to(root.resolve()):  # the second: a link that was in the folder before
            raise DataError(f"{path} holds {name!r}, which would be written outside of {folder}; do not use this archive")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda p, content=file: p.write_bytes(content.read()))  # type: ignore[misc]


def safe_unpickle(file: IO[bytes], name: str) -> Any:
    """Plain containers, numbers, strings and numpy arrays from a pickle; nothing in it is ever run.

    Protocols 0 to 5. Text of Python 2 is read as latin-1. Arrays come as a subclass of ndarray, and hold numbers, booleans or text;
    those of protocol 5 may be read-only.

    Args:
        file: open for reading and seekable.
        name: what to call it in messages.

    Raises:
        DataError: the pickle is damaged, or asks for a function or class other than those — the message says which.

    Example:
        >>> safe_unpickle(io.BytesIO(pickle.dumps({"x": [1, 2.5]})), "x.pkl")
        {'x': [1, 2.5]}
        >>> safe_unpickle(io.BytesIO(pickle.dumps(print)), "x.pkl")
        Traceback (most recent call last):
        headstart.errors.DataError: x.pkl asks for builtins.print, which data does not need; do not open it with any other program
    """
    try:
        _check_operations(file)
        reader = _Plain(file, encoding="latin1")
        try:
            return reader.load()
        finally:
            reader.memo.clear()  # it holds all that was read, and the reader itself, so neither would be freed at once
    except _Refused as error:
        raise DataError(f"{name} asks for {error}, which data does not need; do not open it with any other program") from error
    except Exception as error:  # a damaged pickle can raise almost anything
        raise DataError(f"{name} is not a pickle that can be read ({type(error).__name__}: {error}); fetch it again") from error


class _Refused(Exception):
    pass


class _Plain(pickle.Unpickler):
    """An unpickler that imports nothing: what a pickle may name is listed here, and is code of this file or a container.

    Bound methods are handed out, and not functions, since a pickle can set attributes of functions.
    """

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            "numpy.core.multiarray._reconstruct": self._array,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._frombuffer,
            "numpy.ndarray": self._ndarray,
            "numpy.dtype": self._dtype,
            "_codecs.encode": self._encode,
            "builtins.bytes": self._bytes,
            "collections.OrderedDict": OrderedDict,
        }
        allowed |= {f"builtins.{kind.__name__}": kind for kind in (list, dict, tuple, set, frozenset, complex)}
        module = {"__builtin__": "builtins"}.get(module, module).replace("numpy._core.", "numpy.core.")
        if f"{module}.{name}" not in allowed:
            raise _Refused(f"{module}.{name}")
        return allowed[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object kept elsewhere")

    def _array(self, kind: Any, shape: Any, dtype: Any) -> _Array:
        return _Array((0,), np.uint8)  # shape, type and content come with __setstate__

    def _frombuffer(self, content: bytes | bytearray, kind: _Type, shape: Any, order: str, axes: Any = None) -> Any:
        """What protocol 5 has for arrays whose content lies in one piece."""
        if not isinstance(content, bytes | bytearray):
            raise _Refused("an array over something that is not bytes")
        _check_size(shape, kind, len(content))
        # frombuffer, unlike ndarray(buffer=…), holds on to a bytearray: the pickle cannot make it shorter under the array.
        array = np.frombuffer(content, kind.dtype)
        if order == "K" and axes is not None:
            return array.reshape(shape).transpose(axes).view(_Array)
        return array.reshape(shape, order="F" if order == "F" else "C").view(_Array)

    def _ndarray(self, *args: Any) -> Any:
        raise _Refused("numpy.ndarray called as a function")

    def _dtype(self, text: str, align: Any = False, copy: Any = False) -> _Type:
        return _Type(text)

    def _scalar(self, dtype: _Type, content: bytes | str) -> Any:
        return np.frombuffer(_raw(content), dtype.dtype, count=1)[0]

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise _Refused(f"the encoding {encoding!r}")
        return text.encode("latin1")

    def _bytes(self) -> bytes:
        return b""


class _Type:
    """Stands for a dtype: a forged state of a real one can make numpy take bytes of the file for addresses of objects."""

    __slots__ = ("dtype",)

    def __init__(self, text: str) -> None:
        if not re.fullmatch(r"[<>=|]?[?biufcSU]\d{0,9}", text):
            raise _Refused(f"an array of type {text!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        _, order, *structure = state
        if any(structure[:3]) or order not in ("<", ">", "|", "="):
            raise _Refused("an array with fields")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray[Any, Any]):
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        raw = _raw(content)
        _check_size(shape, kind, len(raw))
        super().__setstate__((1, shape, kind.dtype, bool(fortran), raw))  # type: ignore[arg-type]


def _check_size(shape: Any, kind: Any, size: int) -> None:
    if not isinstance(kind, _Type) or min(shape, default=1) < 0 or math.prod(shape) * kind.dtype.itemsize != size:
        raise ValueError(f"an array of {size} bytes does not have shape {shape}")


def _raw(content: Any) -> bytes:
    if not isinstance(content, bytes | str):
        raise _Refused("an array of objects")
    return content.encode("latin1") if isinstance(content, str) else content  # Python 2 had one type for both


def _check_operations(file: IO[bytes]) -> None:
    """A few bytes can ask for a table of remembered objects that fills the memory, or for a view that outlives an array's content."""
    start = file.tell()
    for operation, argument, position in pickletools.genops(file):
        if operation.name in ("PUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= (position or 0):
            raise ValueError(f"object {argument} is remembered at byte {position}")
        if operation.name in ("NEXT_BUFFER", "READONLY_BUFFER"):
            raise _Refused("a buffer kept elsewhere")
    file.seek(start)


def _zip(file: IO[bytes], path: Path, limit: int) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        total = 0
        for info in archive.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(f"{path} holds the link {info.filename!r}; links are not followed")
            total += info.file_size
            if total > limit:
                raise DataError(f"{path} unpacks to more than {limit} bytes; it is not what was expected")
            if not info.is_dir():
                yield info.filename, archive.read(info)  # reads no more than file_size, and checks the CRC


class _Counted:
    """Reads on, up to a limit."""

    def __init__(self, file: IO[bytes], path: Path, limit: int) -> None:
        self.file, self.path, self.left = file, path, limit

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise DataError(f"{self.path} unpacks to more than was allowed; it is not what was expected")
        return content


class _Strict(tarfile.TarInfo):
    """tarfile takes a damaged header after the first for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Strict:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error or 'no end mark'}") from error


def _tar(file: IO[bytes], path: Path, limit: int) -> Iterator[tuple[str, bytes]]:
    magic = file.read(2)
    file.seek(0)
    # Headers and padding count too: an archive of small files has as much of them as of content.
    stream = _Counted(PACKED[magic](file) if magic in PACKED else file, path, 2 * limit + 2**20)
    total = 0
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Strict) as archive:  # type: ignore[call-overload]
        for info in archive:
            total += info.size
            if total > limit:
                raise DataError(f"{path} unpacks to more than {limit} bytes; it is not what was expected")
            if info.isdir():
                continue
            if not info.isfile():
                raise DataError(f"{path} holds the link or device {info.name!r}; links are not followed")
            content = archive.extractfile(info)
            assert content is not None
            with content:
                yield info.name, content.read()
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all
    while stream.read(2**16):  # to the end, where the checksum is
        pass
