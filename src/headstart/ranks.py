"""The processes that train together: the one place that knows that there are several, and how they come to the same numbers.

Work is cut into parts whose number does not depend on that of the processes, and sums over parts are taken in the order of the parts. So
a sum is the same, bit for bit, whichever process computed which part.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from headstart.errors import HeadstartError, RankError

T = TypeVar("T")

WAIT = timedelta(hours=6)
"""How long a process waits for another that is alive: the first may measure and try for a part of a long training's time."""
LOST = (
    "the other ranks cannot be reached: one of them ended, or gave no answer in time; its own message says why. Under torchrun"
    " --max-restarts 3, with --out, training goes on from its last checkpoint"
)


@dataclass(frozen=True)
class Ranks:
    """The processes that share the work, and which of them this one is. With one process everything here does nothing.

    Every rank must call the operations in the same order: each but :meth:`own` waits for all of them.

    Args:
        rank: this process, from 0. The first prints, decides and writes.
        world: how many there are.
        local: this process among those of its machine.
        control: the process group of everything that is no gradient, where the default one has no CPUs.

    Example:
        >>> alone = Ranks()
        >>> alone.is_first, alone.own(4), alone.first(lambda: 3), alone.every(lambda: 3)
        (True, range(0, 4), 3, [3])
        >>> Ranks.present().one_first(lambda: 3), alone.any(False), list(alone.gathered([1, 2]))  # outside of a process group
        (3, False, [1, 2])
        >>> alone.total([(0, [torch.ones(2)]), (1, [torch.ones(2)])], of=2, like=[torch.ones(2)])
        ([tensor([2., 2.])], False)
        >>> alone.spread([torch.ones(2)])  # of one, everybody has them already
        >>> alone.check_same(lambda: {"model": "0a1b"})
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    control: Any = None

    @classmethod
    def present(cls) -> Ranks:
        """The ranks of torch's process group; one alone where none was initialised. The first call is one that all ranks make."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        with _talking():  # what is no gradient needs CPUs, and a reader who does not wait for a GPU
            control = None if "cpu:" in dist.get_backend_config() else dist.new_group(backend="gloo", timeout=WAIT)
        rank = dist.get_rank()
        return cls(rank, dist.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)), control)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints, decides and writes."""
        return self.rank == 0

    def own(self, parts: int) -> range:
        """Which of so many parts of the work are this rank's: neighbours, and none where there are more ranks than parts."""
        return share(parts, self.world, self.rank)

    # -- agreeing ------------------------------------------------------------------------------------------------------

    def first(self, run: Callable[[], T]) -> T:
        """What a function gives on the first rank, on all of them; an error there is an error on all.

        Raises:
            RankError: the first rank could not.
        """
        if self.world == 1:
            return run()
        own: tuple[Any, Exception | None] = _tried(run) if self.is_first else (None, None)
        found = [_said(own)]
        with _talking():
            dist.broadcast_object_list(found, src=0, group=self.control)
        return self._settled(found, own)[0]

    def every(self, run: Callable[[], T]) -> list[T]:
        """What a function gives on each rank, in their order, on all of them; an error on one is an error on all.

        Raises:
            RankError: another rank could not.
        """
        if self.world == 1:
            return [run()]
        found: list[Any] = [None] * self.world
        own = _tried(run)
        with _talking():
            dist.all_gather_object(found, _said(own), group=self.control)
        return self._settled(found, own)

    def gathered(self, items: Iterable[T]) -> Iterable[T]:
        """The items of all ranks, in the order of the ranks; of one alone as they come.

        Raises:
            RankError: another rank could not make its own.
        """
        return items if self.world == 1 else itertools.chain.from_iterable(self.every(lambda: list(items)))

    def any(self, flag: bool, error: Exception | None = None) -> bool:
        """Whether a flag is set on some rank; where one brings an error, all raise.

        Raises:
            RankError: another rank brought an error.
        """
        if self.world == 1:
            if error is not None:
                raise error
            return flag
        codes = torch.tensor([flag, error is not None], dtype=torch.int32)
        with _talking():
            dist.all_reduce(codes, dist.ReduceOp.MAX, group=self.control)
        if codes[1]:

            def fail() -> None:
                if error is not None:
                    raise error

            self.every(fail)
        return bool(codes[0])

    def one_first(self, run: Callable[[], T]) -> T:
        """A function on every rank: on one of each machine first, which fills the caches there, and then on the others."""
        if self.world == 1:
            return run()
        found, error = _tried(run) if self.local == 0 else (None, None)
        self.any(False, error)
        if self.local:
            found, error = _tried(run)
        self.any(False, error)
        return found  # type: ignore[return-value]

    def check_same(self, digests: Callable[[], dict[str, str]]) -> None:
        """Refuses ranks that differ in something.

        Args:
            digests: gives short names of this rank's things, by what they are.

        Raises:
            RankError: it says in what, and which rank differs from the first.
        """
        found = self.every(digests)
        for rank, other in enumerate(found):
            for name, digest in other.items():
                if digest != found[0][name]:
                    raise RankError(
                        f"rank {rank} has another {name} than rank 0: build the same learner, data and settings on every rank"
                        " (torch.manual_seed before the model is made, and the same files), and start again"
                    )

    # -- numbers -------------------------------------------------------------------------------------------------------

    def total(
        self, parts: Iterable[tuple[int, Sequence[Tensor]]], of: int, like: Sequence[Tensor], flag: Callable[[], bool] = lambda: False
    ) -> tuple[list[Tensor], bool]:
        """The sum of the tensors of all parts, in the order of the parts, on every rank: an all-reduce whose additions have an order.

        Its two halves are those of the usual ones. Each rank gets a stretch of everybody's tensors and adds it up, in the order of
        the parts; then all gather the sums. Every type of number goes as one flat tensor. With one part for each rank that moves
        2(R-1)/R times the tensors' size to and from each, as a ring does, and leaves no choice of order to the library.

        Args:
            parts: the number of each of this rank's parts, ascending, and its tensors; an error while they are computed is an error on
                all ranks.
            of: how many parts there are on all ranks.
            like: tensors of their shapes and types, in the memory order that is wanted.
            flag: something to agree on beside, asked when the parts are computed.

        Returns:
            The sums, and whether the flag is set on some rank.

        Raises:
            RankError: another rank could not compute its parts.
        """
        if self.world == 1:
            sums: list[Tensor] = []
            for _, tensors in parts:
                sums = [a + b for a, b in zip(sums, tensors, strict=True)] if sums else list(tensors)
            raised = flag()
        else:
            found, error = _tried(lambda: dict(parts))
            raised, sums = self.any(flag(), error), list(like)
            zeros = [torch.zeros_like(v) for v in like]  # of a part that was empty
            own = [found.get(part, zeros) for part in self.own(of)]
            for dtype in dict.fromkeys(v.dtype for v in like):
                at = [i for i, v in enumerate(like) if v.dtype == dtype]
                sizes = [_flat(like[i]).numel() for i in at]
                whole = self._total([torch.cat([_flat(tensors[i]) for i in at]) for tensors in own], of, sum(sizes), like[at[0]])
                for i, values in zip(at, whole.split(sizes), strict=True):
                    sums[i] = (
                        values.view(like[i].shape) if not like[i].is_complex() else torch.view_as_complex(values.view(*like[i].shape, 2))
                    )
        # One memory order, so that whatever is computed of them has one order of operations too.
        return [s if s.stride() == v.stride() else torch.empty_like(v).copy_(s) for s, v in zip(sums, like, strict=True)], raised

    def _total(self, flat: list[Tensor], of: int, size: int, like: Tensor) -> Tensor:
        each = -(-size // self.world)
        device = like.device if f"{like.device.type}:nccl" in dist.get_backend_config() else torch.device("cpu")
        own = _flat(like).new_zeros(len(flat), each * self.world, device=device)
        own[:, :size] = torch.stack(flat) if flat else 0.0
        counts = [len(share(of, self.world, rank)) for rank in range(self.world)]
        received, whole = own.new_empty(of * each), own.new_empty(each * self.world)
        with _talking():
            sent = own.view(len(flat), self.world, each).transpose(0, 1).reshape(-1)
            dist.all_to_all_single(received, sent, [n * each for n in counts], [len(flat) * each] * self.world)
            stretch = functools.reduce(torch.add, received.view(of, each)).contiguous()
            dist.all_gather(list(whole.view(self.world, each).unbind()), stretch)
        return whole[:size].to(like.device)

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Gives every rank the values that tensors have on the first."""
        if self.world == 1:
            return
        kept = list(tensors)
        values = self.first(lambda: [v.detach().cpu() for v in kept])
        with torch.no_grad():
            for tensor, value in zip(kept, values, strict=True):
                tensor.copy_(value)

    def _settled(self, found: Sequence[tuple[Any, str]], own: tuple[Any, Exception | None]) -> list[Any]:
        if own[1] is not None:
            raise own[1]
        for rank, (_, error) in enumerate(found):
            if error:
                raise RankError(f"rank {rank} of {self.world} ended: {error}")
        return [value for value, _ in found]


ALONE = Ranks()


def share(parts: int, ranks: int, rank: int) -> range:
    """The parts of one of some ranks: neighbours, as equal in number as can be.

    Example:
        >>> [list(share(5, 3, rank)) for rank in range(3)], [list(share(2, 3, rank)) for rank in range(3)]
        ([[0], [1, 2], [3, 4]], [[], [0], [1]])
    """
    return range(parts * rank // ranks, parts * (rank + 1) // ranks)


def _flat(values: Tensor) -> Tensor:
    """All numbers in one row, complex ones as twice as many real ones."""
    return (torch.view_as_real(values.resolve_conj()) if values.is_complex() else values).reshape(-1)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Joins the processes that torchrun started beside this one, for a while; alone where nobody started any.

    Raises:
        RankError: they cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) < 2 or not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=WAIT))  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=_fresh(store, rank, world), rank=rank, world_size=world, timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        raise RankError(f"the other ranks cannot be reached ({error}); start all of them with one torchrun command") from error
    try:
        yield Ranks.present()
    finally:
        dist.destroy_process_group()


def _fresh(store: Any, rank: int, world: int) -> Any:
    """A part of a store that no earlier processes wrote to, of which all present ones learn.

    torchrun keeps its store when it starts processes again, and in it the addresses of those that ended: whoever reads one of them
    before its successor has written its own cannot connect. Numbers of restarts do not tell, as machines count their own. So the first
    draws a name and gives it to whoever asks with a name of its own, until all have it.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"headstart/{rank}", own)
        name = store.get(f"headstart/{own}").decode()
        store.set(f"headstart/{name}/{rank}", "")
        return dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    waiting = set(range(1, world))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"headstart/{own}/{other}"]):
                waiting.discard(other)
            elif store.check([f"headstart/{other}"]):
                store.set(f"headstart/{store.get(f'headstart/{other}').decode()}", own)
        time.sleep(0.01)
    return dist.PrefixStore(own, store)  # type: ignore[attr-defined]


def may_restart() -> bool:
    """Whether torchrun will start the processes again where one ends."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS") or 0) > 0


def _tried(run: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return run(), None
    except Exception as error:
        return None, error


def _said(own: tuple[Any, Exception | None]) -> tuple[Any, str]:
    """What the others are told: the value, or the error in words, as not every error can be sent."""
    value, error = own
    told = "" if error is None else str(error) if isinstance(error, HeadstartError) else f"{type(error).__name__}: {error}"
    return value, told


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(f"{LOST} ({str(error).partition('. This is')[0] or type(error).__name__})") from error
