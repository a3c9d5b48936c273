"""What this machine and this installation are like, what of it slows training down, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch

from headstart.data.files.cache import cache_folder
from headstart.process import tune_process
from headstart.version import __version__

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "fuse.sshfs", "fuse.s3fs")
"""File systems that are somewhere else."""
ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
LARGE = 64 * 2**20
"""Bytes of a tensor that glibc gives back to the system whenever it is freed, by its defaults."""
SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
"""Of glibc's memory, in the environment."""
EXTRAS = {"pyarrow": "tables", "scipy": "theory", "transformers": "models", "peft": "models", "sklearn": "sklearn", "fastapi": "serve"}
EXTRAS |= {"uvicorn": "serve", "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx", "tensorboard": "tensorboard"}
EXTRAS |= {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio", "lightning": "lightning"}
LITTLE = 2 * 2**30
"""Bytes that a cache of data soon needs."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Args:
        name: what was looked at.
        value: what was found.
        advice: what is wrong with it, and what to do; "" where nothing is.
    """

    name: str
    value: str
    advice: str = ""

    def __str__(self) -> str:
        mark = "!" if self.advice else " "
        return f"{mark} {self.name:<14} {self.value}" + (f"\n    {self.advice}" if self.advice else "")


def examine(runs: Path = Path("runs"), environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Looks at everything.

    Args:
        runs: where run folders are, or will be.
        environment: the environment variables; those of this process by default.
    """
    own = os.environ if environment is None else environment
    return [
        Finding("headstart", __version__),
        Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("torch", f"{torch.__version__}, numpy {np.__version__}"),
        extras(),
        device(),
        threads(torch.get_num_threads(), usable_cores(), own),
        waiting(own, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, usable_cores()),
        denormals(),
        allocator(own),
        folder("cache", cache_folder(), "HEADSTART_CACHE"),
        folder("run folders", runs, "--out"),
    ]


def extras() -> Finding:
    """Which extras are there, and which are not."""
    missing = sorted({extra for module, extra in EXTRAS.items() if importlib.util.find_spec(module) is None})
    there = sorted(set(EXTRAS.values()) - set(missing))
    return Finding("extras", f"{', '.join(there) or 'none'}; not installed: {', '.join(missing) or 'none'}")


def device() -> Finding:
    """What computes."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("device", f"{', '.join(names)} (CUDA {torch.version.cuda})")
    if torch.backends.mps.is_available():
        return Finding("device", "Apple GPU (MPS), and the CPU")
    if any(Path(p).exists() for p in ("/dev/nvidia0", "/proc/driver/nvidia/version")):
        return Finding(
            "device", "CPU", "there is an NVIDIA GPU that torch does not see: install a build of PyTorch with CUDA that fits the driver"
        )
    return Finding("device", "CPU")


def usable_cores(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that this process may use: of its affinity, and of the quota of its container.

    Example:
        >>> usable_cores() > 0
        True
    """
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return cores if quota == "max" else min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores


def threads(used: int, cores: float, environment: Mapping[str, str]) -> Finding:
    """Threads of torch beside the cores there are."""
    set_by = next((f" ({name}={environment[name]})" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in environment), "")
    value = f"{used} of torch{set_by}; {cores:g} cores may be used"
    if used > max(cores, 1):
        return Finding("threads", value, f"more threads than cores wait for one another: set OMP_NUM_THREADS={max(int(cores), 1)}")
    if used <= cores / 2:
        return Finding("threads", value, f"cores are idle: set OMP_NUM_THREADS={int(cores)}, unless other processes are to have them")
    return Finding("threads", value)


def waiting(environment: Mapping[str, str], load: float, cores: float) -> Finding:
    """How threads of OpenMP wait, which matters where cores are shared with other work."""
    policy = environment.get("OMP_WAIT_POLICY", "")
    value = f"{policy or 'the default of OpenMP'}; {load:.1f} processes run or wait for {cores:g} cores"
    if load > cores and policy.lower() != "passive":
        return Finding(
            "waiting", value, "other work shares the cores, and threads spin while they wait for it: set OMP_WAIT_POLICY=passive"
        )
    return Finding("waiting", value)


def denormals() -> Finding:
    """Whether numbers next to zero can be flushed, as training does."""
    if torch.set_flush_denormal(True):
        return Finding("denormals", "flushed to zero in training")
    slow = "this processor cannot flush them: second-order training gets slow where values turn subnormal; keep l2 small, or use a GPU"
    return Finding("denormals", "computed", slow)


def allocator(environment: Mapping[str, str]) -> Finding:
    """What gives memory, and whether large tensors cost new pages whenever they are made: counted, with the settings of training."""
    maps = Path("/proc/self/maps")
    loaded = next((name for name in ALLOCATORS if maps.exists() and name in maps.read_text()), "")
    kind = loaded or " ".join(platform.libc_ver()) or "the system's"
    if sys.platform == "win32":  # where nobody counts page faults
        return Finding("allocator", kind)
    known = [f"{k}={environment[k]}" for k in SETTINGS if k in environment]
    kept = tune_process()[-1]
    faults = page_faults()
    value = f"{' with '.join([kind, *known])}; {kept}; a tensor of {LARGE >> 20} MiB costs {faults} page faults when made again"
    if faults > LARGE / os.sysconf("SC_PAGE_SIZE") / 2:
        remedy = f"unset {', '.join(k for k in SETTINGS if k in environment)}" if known else "preload jemalloc or tcmalloc (LD_PRELOAD)"
        return Finding("allocator", value, f"large tensors go back to the system when they are freed, and come anew page by page: {remedy}")
    return Finding("allocator", value)


def page_faults(size: int = LARGE, times: int = 5) -> int:
    """Page faults for a tensor of so many bytes, made and freed again and again after the first times: the median."""
    import resource

    seen = []
    for _ in range(2 + times):
        torch.empty(size, dtype=torch.uint8).fill_(1)
        seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return int(median(after - before for before, after in pairwise(seen[1:])))


def folder(name: str, path: Path, setting: str) -> Finding:
    """Whether a folder can be written, has room, and is on this machine."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    kind = file_system(there)
    free = shutil.disk_usage(there).free
    value = f"{path} ({kind or 'file system not known'}, {free / 2**30:.0f} GiB free)"
    if not os.access(there, os.W_OK):
        return Finding(name, value, f"{there} cannot be written: choose another by {setting}")
    if kind in NETWORK:
        return Finding(name, value, f"it is on a network, where files and locks are slow and may be stale: choose a local one by {setting}")
    if free < LITTLE:
        return Finding(name, value, f"there is little room: free some, or choose another by {setting}")
    return Finding(name, value)


def file_system(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that a path is on, or "" where it cannot be told.

    Args:
        path: absolute.
        mounts: as in /proc/mounts; that of this machine by default.

    Example:
        >>> file_system(Path("/home/me/runs"), "disk / ext4 rw 0 0\\nserver:/home /home nfs4 rw 0 0\\nserver:/h /home/m nfs rw 0 0")
        'nfs4'
    """
    if mounts is None:
        table = Path("/proc/mounts")
        mounts = table.read_text() if table.exists() else ""
    best, kind = -1, ""
    for line in mounts.splitlines():
        _, point, own, *_ = *line.split(), "", "", ""
        point = point.replace("\\040", " ")
        if point and path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), own
    return kind
