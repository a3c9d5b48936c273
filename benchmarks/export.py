"""Adapting to a task and predicting, in torch and as an ONNX graph: conv4-64, five classes of five pictures of 32×32, medians.

python benchmarks/export.py [ROUNDS]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

import headstart as hs
from common import interleaved, machine
from headstart.export.files import runner

WAYS, SHOTS, QUERIES, LR = 5, 5, 25, 0.01


def main(rounds: int) -> None:
    torch.manual_seed(0)
    model = hs.models.conv4().eval()
    learner = hs.protomaml(model, 5, LR)
    x, y = torch.randn(WAYS * SHOTS, 3, 32, 32), torch.arange(WAYS).repeat(SHOTS)
    q = torch.randn(QUERIES, 3, 32, 32)
    folder = Path(tempfile.mkdtemp())
    whole = hs.export_learner_onnx(learner, folder / "learner.onnx", x)
    task = hs.export_onnx(learner.adapt(x, y), folder / "task.onnx", x)
    # The head alone: the same graph behind a body that hands on its features.
    with torch.no_grad():
        z, z_q = model.body(x), model.body(q)
    alone = hs.protomaml(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(z.shape[1], WAYS)), 5, LR)
    head = hs.export_learner_onnx(alone, folder / "head.onnx", z)
    graphs, one = {"whole": runner(whole), "head": runner(head)}, runner(task)

    def onnx(name: str, x: torch.Tensor, q: torch.Tensor, steps: int) -> object:
        sizes = {"ways": np.int64(WAYS), "steps": np.int64(steps), "lr": np.float32(LR)}
        return graphs[name]({"support_x": x, "support_y": y, "query_x": q, **sizes})

    def in_torch(learner: hs.MetaLearner, x: torch.Tensor, q: torch.Tensor, steps: int) -> object:
        return learner.adapt(x, y, steps).predict_proba(q)

    print(f"{machine()}\nconv4-64 at 32×32, {WAYS}-way {SHOTS}-shot, {QUERIES} queries, prototypes; medians of {rounds} rounds\n")
    print("| | N | torch, ms | onnxruntime, ms |\n|---|---|---|---|")
    for steps in (1, 5, 50):
        cases: dict[str, Callable[[], object]] = {
            "torch": partial(in_torch, learner, x, q, steps),
            "onnx": partial(onnx, "whole", x, q, steps),
            "torch head": partial(in_torch, alone, z, z_q, steps),
            "onnx head": partial(onnx, "head", z, z_q, steps),
        }
        ms = {name: 1000 * value for name, value in interleaved(cases, rounds).items()}
        print(f"| adapt and predict | {steps} | {ms['torch']:.2f} | {ms['onnx']:.2f} |")
        print(f"| the head alone | {steps} | {ms['torch head']:.2f} | {ms['onnx head']:.2f} |", flush=True)
    adapted = learner.adapt(x, y)
    found = interleaved({"torch": partial(adapted.predict_proba, q), "onnx": partial(one, {"x": q})}, rounds)
    print(f"| predict with an adapted model | | {1000 * found['torch']:.2f} | {1000 * found['onnx']:.2f} |\n")
    parameters = 4 * sum(p.numel() for p in model.parameters())
    print(f"KiB: learner {whole.stat().st_size / 1024:.0f}, task {task.stat().st_size / 1024:.0f}, the weights {parameters / 1024:.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 21)
