"""Several processes of one machine, joined by gloo, for tests."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

CONTEXT = multiprocessing.get_context("forkserver")  # which imports torch once, and computes nothing
CONTEXT.set_forkserver_preload(["headstart.training.run", "torch._dynamo", "pytest"])


def together(world: int, work: Callable[[int, Path], Any], folder: Path) -> list[Any]:
    """What a function of (rank, folder) gives in each of some processes; an exception is what it gives as text."""
    with tempfile.TemporaryDirectory() as place:
        found = [Path(place) / str(rank) for rank in range(world)]
        processes = [CONTEXT.Process(target=_run, args=(rank, world, work, folder, found)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            if process.exitcode is None:
                process.kill()
        assert all(path.exists() for path in found), [process.exitcode for process in processes]
        return [pickle.loads(path.read_bytes()) for path in found]


def _run(rank: int, world: int, work: Callable[[int, Path], Any], folder: Path, found: list[Path]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{found[0].parent}/store", rank=rank, world_size=world)
    try:
        result = work(rank, folder)
    except Exception:
        result = traceback.format_exc()
    found[rank].write_bytes(pickle.dumps(result))
    dist.destroy_process_group()
