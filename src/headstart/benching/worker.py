"""One contestant in a process of its own: it is told by a line on its input what to do, and answers by a line of JSON.

``python -m headstart.benching.worker '{"contestant": …, "network": …, "threads": …, "setting": {…}}'``
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
from safetensors.torch import save_file

from headstart.benching import rivals as _rivals  # noqa: F401  (they enter themselves)
from headstart.benching.contestants import CONTESTANTS, Contestant, Unavailable
from headstart.benching.setting import Setting
from headstart.container import write_atomically

TURN = 0.25
"""Seconds of a turn, at least one step."""


def main(asked: dict[str, Any]) -> None:
    """Serves until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    torch.set_num_threads(asked["threads"])
    setting = Setting(**asked["setting"])
    on_gpu = torch.device(setting.device).type == "cuda"
    try:
        model = setting.network(asked["network"])
        contestant: Contestant = CONTESTANTS.find(asked["contestant"])(setting, model.train())
        if asked.get("gradient"):
            # In training mode a task's own statistics and those of a hundred images are not the same function.
            taken = CONTESTANTS.find(asked["contestant"])(setting, setting.network(asked["network"]).eval()).gradient
            if taken is not None:
                found = {n: g.detach().contiguous() for n, g in taken().items()}
                write_atomically(asked["gradient"], lambda p: save_file(found, p))
    except Unavailable as why:
        answer(unavailable=str(why))
        return
    except Exception as error:  # another library's trouble is a line of the table, not the end of it
        answer(unavailable=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return
    answer(ready=True)
    repeats = 1
    for i, _ in enumerate(sys.stdin):
        begin = time.perf_counter()
        for _ in range(repeats):
            contestant.step()
        if on_gpu:  # else the time of asking for the step, not of the step
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - begin) / repeats
        if i == 0:  # a turn of small steps takes several, or it would be the time to warm the cache that others have used
            repeats = min(100, max(1, round(TURN / seconds)))
        answer(seconds=seconds, peak=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _peak())


def _peak() -> float:
    """Peak resident memory of this process in MiB."""
    try:
        import resource
    except ImportError:  # pragma: no cover  (not on Windows)
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
