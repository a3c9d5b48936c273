"""How a step's time grows with N, T, ways, shots, image size and model size, one at a time; and how near its products are to the machine's.

python benchmarks/growth.py [--rounds 5] [--out docs/figures/growth.json]

All points of one curve take turns in one process. The roofline: multiply-adds of a step (counted by torch) over its time, against a product
of two large matrices, and against bf16 where it runs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import headstart as hs
from common import interleaved, machine
from headstart.benching.setting import Setting

BASE = Setting()
CURVES: dict[str, list[Any]] = {
    "steps": [1, 5, 20, 100],
    "tasks": [2, 8, 32],
    "ways": [2, 5, 10, 20],
    "shots": [1, 5, 10, 20],
    "size": [28, 32, 64, 84],
    "filters": [16, 32, 64, 128],
}
ADAPTS = ("head", "last:2", "all")


def stepper(setting: Setting, adapt: str = "head", precision: Any = None) -> Any:
    """A meta-gradient of a setting, ready to be taken."""
    learner = hs.anil(setting.network("ours").train(), setting.steps, setting.lr, adapt=adapt, precision=precision)
    return partial(learner.meta_gradient, setting.batch())


def flops(step: Any) -> float:
    """Of one step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def peak(dtype: torch.dtype) -> float:
    """FLOP per second of a product of two large matrices."""
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    return 2 * 2048**3 / interleaved({"product": lambda: a @ b}, rounds=9)["product"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    hs.tune_process()
    print(machine())
    found: dict[str, Any] = {"machine": machine(), "curves": {}}
    for name, values in CURVES.items():
        settings = {str(v): replace(BASE, tasks=4 if name == "size" else BASE.tasks) for v in values}
        settings = {v: replace(s, **{name: int(v)}) for v, s in settings.items()}
        seconds = interleaved({v: stepper(s) for v, s in settings.items()}, asked.rounds)
        found["curves"][name] = seconds
        print(f"| {name} | " + " | ".join(f"{v}: {t:.3f} s" for v, t in seconds.items()) + " |", flush=True)
    for steps in (1, 5, 10):
        small = replace(BASE, tasks=4, steps=steps, lr=0.01)
        seconds = interleaved({adapt: stepper(small, adapt) for adapt in ADAPTS}, max(2, asked.rounds // 2))
        found["curves"][f"adapt, N = {steps}"] = seconds
        print(f"| adapt, N = {steps}, 4 tasks | " + " | ".join(f"{a}: {t:.3f} s" for a, t in seconds.items()) + " |", flush=True)
    work = flops(stepper(BASE))
    roofline = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        seconds = interleaved({"step": stepper(BASE, precision=precision)}, asked.rounds)["step"]
        roofline[precision] = {"step": work / seconds / 1e9, "product": peak(dtype) / 1e9}
        print(
            f"| {precision} | a step {roofline[precision]['step']:.0f} GFLOP/s | a large product {roofline[precision]['product']:.0f} |",
            flush=True,
        )
    found["roofline"] = {"gflop_of_a_step": work / 1e9, **roofline}
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
