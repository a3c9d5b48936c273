"""ANIL and MAML for the same N and B: oracle calls and multiply-adds by the ledger, against measured time.

python benchmarks/anil_maml.py
"""

from __future__ import annotations

from functools import partial

import torch

import headstart as hs
from common import interleaved, machine
from headstart.counting import SYMBOLS

TASKS, WAYS, SHOTS, QUERIES = 4, 5, 5, 5


def main() -> None:
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    x = lambda n: torch.randn(TASKS, WAYS * n, 3, 32, 32)  # noqa: E731
    y = lambda n: torch.arange(WAYS).repeat(n).expand(TASKS, -1)  # noqa: E731
    tasks = hs.TaskBatch(x(SHOTS), y(SHOTS), x(QUERIES), y(QUERIES))
    print(f"{machine()}\nconv4-64 at 32×32, {WAYS}-way {SHOTS}-shot, {QUERIES} queries per class, B = {TASKS} tasks, float32\n")
    print(
        f"| N | | {' | '.join(SYMBOLS.values())} | numbers returned | G multiply-adds | seconds |\n|---|---|{'---|' * (len(SYMBOLS) + 3)}"
    )
    for steps in (1, 5, 10):
        cases = {
            "ANIL": hs.anil(hs.models.conv4(), steps, 0.1),
            "ANIL, last:2": hs.anil(hs.models.conv4(), steps, 0.05, adapt="last:2"),
            "MAML": hs.maml(hs.models.conv4(), steps, 0.01),
        }
        work = {}
        for name, learner in cases.items():
            learner.model.train()
            with hs.ledger(multiply_adds=True) as book:
                learner.meta_gradient(tasks)
            if book != hs.predicted_calls(learner, tasks):
                raise SystemExit(f"{name}: measured calls are not those predicted\n{book}")
            work[name] = book
        seconds = interleaved({name: partial(learner.meta_gradient, tasks) for name, learner in cases.items()}, rounds=5)
        for name, book in work.items():
            calls = " | ".join(str(book[k].calls) for k in SYMBOLS)
            numbers = sum(entry.numbers for entry in book.entries.values())
            macs = (book.multiply_adds or 0) / 1e9
            print(f"| {steps} | {name} | {calls} | {numbers:,} | {macs:.2f} | {seconds[name]:.3f} |", flush=True)
        for name in ("ANIL", "ANIL, last:2"):
            ratio = (work["MAML"].multiply_adds or 0) / (work[name].multiply_adds or 1)
            print(f"| {steps} | MAML / {name} |{' |' * len(SYMBOLS)} | {ratio:.1f} | {seconds['MAML'] / seconds[name]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
