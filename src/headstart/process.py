"""Settings of this process that training on a CPU is faster with: memory that is kept, and no denormal numbers."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_ITS_OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
_done: list[str] = []


def tune_process() -> list[str]:
    """Makes this process keep the memory that it frees, and flush denormal numbers to zero; :func:`headstart.train` does it itself.

    A step of training frees activations and asks for the same memory again. glibc gives large blocks back to the system each time, and
    gets them anew page by page, filled with zeros: nearly half of a step at 84 pixels on one core (docs/performance.md). With it,
    memory that was once used stays with the process. Where the environment sets glibc's memory itself (``MALLOC_…_``,
    ``GLIBC_TUNABLES``), or another allocator is loaded, nothing is changed. Without flushing, second-order training becomes five to ten
    times slower once small values turn denormal.

    Returns:
        What was done, or why not, a line each.

    Example:
        >>> tune_process()[0]
        'denormal numbers are flushed to zero'
    """
    flushed = torch.set_flush_denormal(True)  # of the thread that calls, so each time
    if not _done:
        _done.append(_keep_memory())
    return ["denormal numbers are flushed to zero" if flushed else "this processor cannot flush denormal numbers", *_done]


def _keep_memory() -> str:
    if why := unkept():
        return f"freed memory is not kept: {why}"
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(_M_MMAP_MAX, 0), mallopt(_M_TOP_PAD, 64 * 2**20), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)]
    return "freed memory is kept" if all(done) else "freed memory is not kept: glibc refused"


def give_back() -> None:
    """Gives the memory that this process keeps without use back to the system, where glibc keeps it; whoever measures memory needs it.

    Example:
        >>> give_back()
    """
    if not unkept():
        ctypes.CDLL(None).malloc_trim(0)


def unkept() -> str:
    """Why this process cannot keep freed memory, or "".

    Example:
        >>> isinstance(unkept(), str)
        True
    """
    if platform.libc_ver()[0] != "glibc":
        return "the C library is not glibc"
    own = next((name for name in _ITS_OWN if name in os.environ), None)
    if own is not None:
        return f"the environment sets {own}"
    preloaded = os.environ.get("LD_PRELOAD", "")
    if any(name in preloaded for name in ("jemalloc", "tcmalloc", "mimalloc")):
        return f"another allocator is loaded ({preloaded})"
    return ""
