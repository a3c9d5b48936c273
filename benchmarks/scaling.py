"""What several processes could gain: bytes of an all-reduce against the work of a step, and a simulation to 1000 GPUs.

Work and bytes are counted on the models; speeds of GPUs and networks are assumptions, which are options. Nothing is measured here.

python benchmarks/scaling.py
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

import headstart as hs
from headstart.ranks import share

RANKS = (1, 2, 4, 8, 16, 64, 256, 1000)


@dataclass(frozen=True)
class Machine:
    """What is assumed of GPUs and the network between them.

    Args:
        flops: of one GPU on such work, per second.
        bandwidth: bytes per second that a GPU sends and receives.
        message: seconds that each message takes beside its bytes.
        jitter: deviation of the logarithm of a rank's time for the same work.
        own: seconds of a step that do not depend on its work: Python and the launch of kernels.
    """

    flops: float
    bandwidth: float
    message: float
    jitter: float
    own: float


@dataclass(frozen=True)
class Workload:
    """A learner with a meta-batch; what one part of it takes is counted by the ledger.

    Args:
        name: what to call it.
        learner: whose meta-gradient it is.
        tasks: some tasks to count on.
        count: tasks of the meta-batch as a function of the number of ranks.
    """

    name: str
    learner: hs.MetaLearner
    tasks: hs.TaskBatch
    count: Callable[[int], int]

    def work(self) -> float:
        """Floating-point operations for one task."""
        self.learner.model.train()
        with hs.ledger(multiply_adds=True) as book:
            self.learner.meta_gradient(self.tasks)
        return 2.0 * (book.multiply_adds or 0) / len(self.tasks)

    def bytes(self) -> int:
        """Of the gradient, and of the running averages, which travel with it."""
        numbers = [*self.learner.parameters().values(), *self.learner.model.buffers()]
        return sum(v.numel() * v.element_size() for v in numbers)


def pictures(tasks: int, shots: int, queries: int, size: int, pool: int = 0) -> hs.TaskBatch:
    """5-way tasks of noise, of examples of their own or from one pool."""
    s, q = 5 * shots, 5 * queries
    y = lambda n: torch.arange(5).repeat(n // 5).expand(tasks, -1)  # noqa: E731
    examples = torch.randn(pool or tasks * (s + q), 3, size, size)
    place = torch.randint(len(examples), (tasks, s + q)) if pool else torch.arange(len(examples)).view(tasks, s + q)
    return hs.TaskBatch.from_pool(examples, hs.Side(place[:, :s], y(s)), hs.Side(place[:, s:], y(q)))


def workloads() -> list[Workload]:
    """More pools for more GPUs, and the same meta-batch for more GPUs."""
    torch.manual_seed(0)
    conv, flat = hs.models.conv4(3, 5, 32), hs.models.mlp(512, 5, (2048, 2048))
    dense = "ANIL, conv4-64, a dense pool of 400 pictures and 128 tasks for each GPU"
    vectors = pictures(2, 5, 5, 1)
    vectors = hs.TaskBatch.from_pool(torch.randn(vectors.pool_size, 512), vectors.support, vectors.query)
    waves, own = hs.data.Sinusoid(10, 10, 16).batch(0), hs.maml(hs.models.mlp(1, 1), 1, 0.01, loss="squared_error")
    return [
        Workload(dense, hs.anil(conv, 5, 0.1), pictures(128, 1, 3, 32, 400), lambda r: 128 * r),
        Workload("MAML, conv4-64, 5 steps, 1024 tasks in all", hs.maml(conv, 5, 0.01), pictures(2, 5, 5, 32), lambda r: 1024),
        Workload("MAML, mlp 2048-2048, 5 steps, 1024 tasks of vectors in all", hs.maml(flat, 5, 0.01), vectors, lambda r: 1024),
        Workload("MAML, mlp 40-40, 1 step, 1024 sine waves in all", own, waves, lambda r: 1024),
    ]


def exchanged(size: float, ranks: int, parts: int, machine: Machine) -> tuple[float, float]:
    """Bytes that a rank sends for one sum over the parts, and the seconds that takes; see Ranks.total.

    Each rank sends its own parts' stretches to the R - 1 others, and then its stretch of the sum. Before, all agree that none has
    failed, along a tree.
    """
    if ranks == 1:
        return 0.0, 0.0
    most = max(len(share(parts, ranks, rank)) for rank in range(ranks))
    sent = size * (most + 1) * (ranks - 1) / ranks
    messages = 2 * (ranks - 1) + 2 * math.ceil(math.log2(ranks))
    return sent, sent / machine.bandwidth + messages * machine.message


def simulated(own: Workload, work: float, ranks: int, machine: Machine, steps: int = 200) -> dict[str, float]:
    """Seconds of a step: the slowest rank's part of it, and then the exchange, which overlaps with nothing."""
    rng, count = random.Random(ranks), own.count(ranks)
    parts = min(ranks, count)
    per_rank = [len(share(count, parts, rank)) if rank < parts else 0 for rank in range(ranks)]
    slowest = [
        max(n * work / machine.flops * rng.lognormvariate(0, machine.jitter) + machine.own for n in per_rank if n) for _ in range(steps)
    ]
    sent, exchange = exchanged(own.bytes(), ranks, parts, machine)
    compute = statistics.mean(slowest)
    return {"compute": compute, "exchange": exchange, "sent": sent, "tasks": count / (compute + exchange)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tflops", type=float, default=10.0, help="of one GPU on such small convolutions, in 10^12 a second")
    parser.add_argument("--gigabytes", type=float, default=25.0, help="that a GPU sends a second")
    parser.add_argument("--message", type=float, default=5.0, help="microseconds of each message beside its bytes")
    parser.add_argument("--jitter", type=float, default=0.05, help="deviation of the logarithm of a rank's time")
    parser.add_argument("--own", type=float, default=10.0, help="milliseconds of a step that do not depend on its work")
    options = parser.parse_args()
    machine = Machine(options.tflops * 1e12, options.gigabytes * 1e9, options.message * 1e-6, options.jitter, options.own * 1e-3)
    for own in workloads():
        work, size = own.work(), own.bytes()
        print(f"{own.name}: {work / 1e9:.3g} GFLOP a task; {size / 1e6:.3g} MB of gradient and running averages\n")
        print("| GPUs | tasks a step | compute, ms | sent by each, MB | exchange, ms | tasks a second | of perfect |")
        print("|---|---|---|---|---|---|---|")
        first = 0.0
        for ranks in RANKS:
            found = simulated(own, work, ranks, machine)
            first = first or found["tasks"]
            print(
                f"| {ranks} | {own.count(ranks)} | {1e3 * found['compute']:.3g} | {found['sent'] / 1e6:.3g} | {1e3 * found['exchange']:.3g}"
                f" | {found['tasks']:.3g} | {100 * found['tasks'] / first / ranks:.0f} % |"
            )
        print()


if __name__ == "__main__":
    main()
