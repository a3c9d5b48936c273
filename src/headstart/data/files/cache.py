"""Arrays that took work to make, kept in the user's cache folder and checked whenever they are read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from platformdirs import user_cache_dir

from headstart.data.files.mapped import stretches

Arrays = dict[str, NDArray[Any]]
log = logging.getLogger("headstart")
MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """The environment variable ``HEADSTART_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("HEADSTART_CACHE") or user_cache_dir("headstart"))


def cached(name: str, build: Callable[[], Arrays], folder: Path | None = None, note: str = "") -> Arrays:
    """Arrays from the cache, or made by ``build`` and kept there.

    They are memory-mapped, so large ones cost no memory until they are used. A damaged or incomplete entry is made again. A folder
    that cannot be written is no error: a warning says how to choose another.

    Args:
        name: of the entry; whatever the arrays depend on — a recipe's version, a file's fingerprint — must show in it.
        build: makes the arrays by name.
        folder: instead of :func:`cache_folder`.
        note: what to say before building.
    """
    entry = (folder or cache_folder()) / name
    found = _read(entry)
    if found is not None:
        return found
    if note:
        log.info("%s", note)
    arrays = build()
    return _read(entry) or arrays if _write(entry, arrays) else arrays


def fingerprint(*paths: Path) -> str:
    """A short name for files as they are now: their paths, sizes and times of change."""
    parts = [f"{p.resolve()} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in paths]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _digest(array: NDArray[Any]) -> str:
    content = hashlib.sha256()
    for part in stretches(array) if array.size else ():
        content.update(np.ascontiguousarray(part).data)
    # The header counts too: a flipped byte order would otherwise pass with other values.
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + content.digest()).hexdigest()


def _read(entry: Path) -> Arrays | None:
    try:
        manifest: dict[str, str] = json.loads((entry / MANIFEST).read_text())
        # Copy on write: torch wants arrays that it may write to, and the file stays as it is.
        arrays = {key: np.load(entry / f"{key}.npy", mmap_mode="c", allow_pickle=False) for key in manifest}
        if all(_digest(arrays[key]) == digest for key, digest in manifest.items()):
            return arrays
    except Exception as error:  # a damaged entry can raise almost anything, and the remedy is always to make it again
        log.debug("%s is not used: %s", entry, error)
    return None


def _write(entry: Path, arrays: Arrays) -> bool:
    temporary = entry.with_name(f".{entry.name}-{secrets.token_hex(8)}")  # renamed when complete: no one reads half an entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.parent / ".lock"):
            for left in entry.parent.iterdir():  # by processes that were killed: who writes holds the lock
                if re.fullmatch(rf"\.{re.escape(entry.name)}-[0-9a-f]{{16}}", left.name):
                    shutil.rmtree(left, ignore_errors=True)
            _fill(temporary, entry, arrays)
        return True
    except OSError as error:
        remedy = "set HEADSTART_CACHE to a folder that can be written"
        warnings.warn(f"{entry.name} cannot be kept ({error}), so it is made again next time; {remedy}", stacklevel=4)
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(temporary: Path, entry: Path, arrays: Arrays) -> None:
    temporary.mkdir()
    for key, array in arrays.items():
        np.save(temporary / f"{key}.npy", array, allow_pickle=False)
    (temporary / MANIFEST).write_text(json.dumps({key: _digest(array) for key, array in arrays.items()}))
    shutil.rmtree(entry, ignore_errors=True)
    os.replace(temporary, entry)
