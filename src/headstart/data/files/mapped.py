"""Arrays that stay on disk: mapped where they lie, read in stretches, and let go of again."""

from __future__ import annotations

import mmap
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGE = 2**28
"""Bytes of an array from which it stays on disk."""
STRETCH = 2**26
"""Bytes that are read at a time."""


def of_archive(path: Path, key: str) -> NDArray[Any] | None:
    """An array of an ``.npz`` file, mapped where it lies in it; None where it is small, compressed, or of Python objects.

    It is copied where something writes to it, and the file stays as it is. Processes that map one file share its memory.
    """
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{key}.npy")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < LARGE:
            return None
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)  # the local header, whose lengths may differ from the central one's
        file.seek(info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"))
        version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)  # type: ignore[no-untyped-call]
        if dtype.hasobject:
            return None
        return np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C")


def scratch(shape: tuple[int, ...], folder: Path) -> NDArray[np.uint8]:
    """Room for bytes: in memory, or, where they are many, in a file without a name that ends with the array."""
    if int(np.prod(shape)) < LARGE:
        return np.zeros(shape, np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, "w+", 0, shape)


def stretches(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The rows of an array in stretches, one after the other; what was read of a mapped file is let go of before the next.

    Example:
        >>> [len(part) for part in stretches(np.zeros((5, 2**25), np.uint8))]
        [2, 2, 1]
    """
    each = at_once(array[:1].nbytes) if array.ndim else 1
    for first in range(0, len(array) if array.ndim else 0, each):
        yield array[first : first + each]
        let_go(array)
    if not array.ndim:
        yield array


def at_once(size: int) -> int:
    """How many rows of so many bytes are read at a time."""
    return max(1, STRETCH // max(1, size))


def mapped(array: NDArray[Any]) -> mmap.mmap | None:
    """What maps the file that an array lies in; None for one in memory."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None


def let_go(array: NDArray[Any]) -> None:
    """Of a mapped array, gives the memory of what was read back to the system; it is read again when it is asked for.

    Not for arrays that somebody writes to: changes would be lost.
    """
    if (whole := mapped(array)) is not None and hasattr(mmap, "MADV_DONTNEED"):
        whole.madvise(mmap.MADV_DONTNEED)
