"""What replay and chunks of examples bring on a CPU; prints tables of docs/benchmarks.md."""

from __future__ import annotations

import torch

import headstart as hs
from common import interleaved, machine
from hypergradients import tasks


def main() -> None:
    torch.set_flush_denormal(True)
    print(machine())
    model, batch = hs.models.conv4(), tasks(8)
    learners = {str(size): hs.anil(model, 5, 0.1, chunk_examples=size) for size in (25, 50, 100, 200, 400)}
    found = interleaved({name: lambda own=own: own.meta_gradient(batch) for name, own in learners.items()}, rounds=15)
    print("\nSeconds per meta-gradient of 400 images, adapt=head, by examples that the body runs on at a time\n")
    print("| " + " | ".join(found) + " |\n|" + "---|" * len(found) + "\n| " + " | ".join(f"{v:.3f}" for v in found.values()) + " |")

    print("\nSeconds per meta-gradient, N = 5, with and without replay\n")
    print("| adapt | replay | whole model in every step | ratio |\n|---|---|---|---|")
    for adapt in ("head", "last:2"):
        pair = {replay: hs.anil(model, 5, 0.1, adapt=adapt, replay=replay) for replay in (True, False)}
        found = interleaved({str(k): lambda own=own: own.meta_gradient(batch) for k, own in pair.items()}, rounds=3)
        print(f"| {adapt} | {found['True']:.2f} | {found['False']:.2f} | {found['False'] / found['True']:.1f} |")


if __name__ == "__main__":
    main()
